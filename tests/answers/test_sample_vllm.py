"""What vLLM is given, held by a stand-in with its names: the prompts of training, the pictures, a seed per answer."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mdpo.answers import sample_command, vllm_engine
from mdpo.cli import main
from mdpo.data import PromptRow, read_rows
from mdpo.data.encode import Encoder
from mdpo.data.images import open_image
from mdpo.models import load_processor
from tests import tiny


class Params(SimpleNamespace):
    """Takes keywords alone, as vLLM's ``SamplingParams`` is given them."""


class StandIn:
    """An ``LLM`` that notes what it is given, and answers each prompt with tokens that its seed decides on."""

    made: list["StandIn"] = []
    error: Exception | None = None

    def __init__(self, model: str, **settings) -> None:
        if self.error is not None:
            raise self.error
        self.model, self.settings, self.calls = model, settings, []
        self.made.append(self)

    def generate(self, prompts, sampling_params, *, use_tqdm, lora_request):
        assert len(prompts) == len(sampling_params) and use_tqdm is False
        self.calls += zip(prompts, sampling_params, [lora_request] * len(prompts), strict=True)
        return [SimpleNamespace(outputs=[self._answer(params)]) for params in sampling_params]

    def _answer(self, params):
        word = 20 + params.seed % 300
        if params.seed % 2:
            return SimpleNamespace(token_ids=(word, word, 1), finish_reason="stop")  # </s>
        return SimpleNamespace(token_ids=(word,) * params.max_tokens, finish_reason="length")


@pytest.fixture
def vllm(monkeypatch):
    module, requests = ModuleType("vllm"), ModuleType("vllm.lora.request")
    module.__dict__.update(LLM=StandIn, SamplingParams=Params, TokensPrompt=dict, __version__="0.22.1")
    requests.__dict__.update(LoRARequest=lambda name, number, path: (name, number, path))
    for name, each in {"vllm": module, "vllm.lora": ModuleType("vllm.lora"), "vllm.lora.request": requests}.items():
        monkeypatch.setitem(sys.modules, name, each)
    monkeypatch.setattr(StandIn, "made", [])
    monkeypatch.setattr(sample_command, "open_model", None)
    return StandIn.made


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    model, data = tiny.world(tmp_path_factory.mktemp("world"), count=3)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    del rows[1]["img_path"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return model, data


def command(world, output, *more) -> list[str]:
    words = ["sample", *world, "--output", output, "--n", 4, "--max-new-tokens", 5, "--engine", "vllm", *more]
    return [str(word) for word in words]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def error_of(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_it_gets_the_prompts_of_training_with_a_placeholder_per_picture(world, vllm, tmp_path):
    assert main(command(world, tmp_path / "a.jsonl", "--temperature", 0.9, "--top-p", 0.95, "--dtype", "bfloat16")) == 0
    (engine,) = vllm
    assert engine.model == str(world[0]) and engine.settings == {
        "dtype": "bfloat16",
        "limit_mm_per_prompt": {"image": 1},
    }
    rows = list(read_rows(world[1], kind=PromptRow))
    expected = Encoder(load_processor(world[0])).prompts(rows)
    for at, (prompt, params, adapter) in enumerate(engine.calls):
        row = rows[at // 4]
        assert prompt["prompt_token_ids"] == expected[at // 4] and adapter is None
        assert prompt["prompt_token_ids"].count(3) == len(row.images)
        pictures = prompt.get("multi_modal_data", {"image": []})["image"]
        assert [each.tobytes() for each in pictures] == [open_image(each, "").tobytes() for each in row.images]
        given = {"n": 1, "temperature": 0.9, "top_p": 0.95, "max_tokens": 5, "stop_token_ids": [2, 1], "stop": None}
        assert vars(params) == given | {"seed": params.seed}
    assert len({params.seed for _, params, _ in engine.calls}) == 12
    settings = json.loads((tmp_path / "a.jsonl.settings.json").read_text())
    assert settings["settings"]["engine"] == "vllm" and settings["environment"]["vllm"] == "0.22.1"


def test_an_answer_is_cut_or_whole_as_it_says_and_a_run_goes_on(world, vllm, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_engine, "_AT_ONCE", 5)
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    assert main(command(world, whole)) == 0
    found = lines(whole)
    assert {(line["tokens"], line["whole"]) for line in found} == {(2, True), (5, False)}
    assert all(line["response"] for line in found)
    part.write_text("".join(json.dumps(line) + "\n" for line in found[:7]))
    part.with_name("part.jsonl.settings.json").write_bytes(whole.with_name("whole.jsonl.settings.json").read_bytes())
    assert main(command(world, part)) == 0
    assert lines(part) == found and len(vllm[-1].calls) == 5


def test_an_adapter_has_room_for_its_rank(world, vllm, tmp_path, capsys):
    adapter = tmp_path / "sft"
    get_peft_model(tiny.llava(), LoraConfig(r=20, target_modules=["q_proj"])).save_pretrained(str(adapter))
    assert main(command(world, tmp_path / "a.jsonl", "--adapter", adapter)) == 0
    (engine,) = vllm
    assert engine.settings["enable_lora"] is True and engine.settings["max_lora_rank"] == 32
    assert {request for _, _, request in engine.calls} == {("sft", 1, str(adapter))}
    config = json.loads((adapter / "adapter_config.json").read_text())
    for changes, message in [
        ({"r": 600}, "has rank 600, and vLLM reads up to 512"),
        ({"peft_type": "IA3"}, "vLLM reads LoRA"),
    ]:
        (adapter / "adapter_config.json").write_text(json.dumps(config | changes))
        assert main(command(world, tmp_path / "b.jsonl", "--adapter", adapter)) == 2
        said = error_of(capsys)
        assert message in said and said.endswith("give --engine transformers")


def test_a_model_that_it_does_not_serve_is_one_line(world, vllm, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(StandIn, "error", ValueError("Model architectures\n['LlavaQwen'] are not supported"))
    assert main(command(world, tmp_path / "a.jsonl")) == 2
    said = error_of(capsys)
    assert (
        f"vLLM does not serve {world[0]}: " in said
        and "['LlavaQwen'] are not supported; give --engine transformers" in said
    )


def test_auto_takes_it_where_there_is_a_gpu(vllm, monkeypatch, capsys):
    assert vllm_engine.choose_engine("auto") == "transformers"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert vllm_engine.choose_engine("auto") == "vllm" and not capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "vllm", None)  # importing it fails
    assert vllm_engine.choose_engine("auto") == "transformers"
    assert "engine: transformers, because vLLM does not import: " in capsys.readouterr().out
