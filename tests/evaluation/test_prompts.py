"""What a model is asked: the prompt ids of training, whatever the processor, the batch and the tokenizer; and where it
stops.
"""

import dataclasses
import json

import pytest
import torch

from mdpo import InputError
from mdpo.cli import main
from mdpo.data import DataOptions, PreferenceDataset, TextOptions
from mdpo.evaluation import generate
from mdpo.evaluation.answering import fingerprint
from tests import tiny
from tests.data import templates
from tests.evaluation.asked import FAMILIES, Seen, rows, saying


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_the_prompts_of_training_in_any_batch(family, monkeypatch):
    model, processor = (make() for make in FAMILIES[family])
    seen = Seen(model, monkeypatch)
    one = list(generate(model, processor, rows(), max_new_tokens=4, batch_size=1))
    assert list(generate(model, processor, rows(), max_new_tokens=4, batch_size=4)) == one
    data = PreferenceDataset(rows(), processor, DataOptions(branches=("chosen", "rejected")))
    assert seen.prompts() == [example.prompt_ids for example in data] * 2
    padded = seen.inputs[-1]["input_ids"].shape[1]
    assert padded == max(len(example.prompt_ids) for example in data), "padded, and on the left"


def test_the_logits_behind_a_padded_prompt_are_the_plain_forwards():
    model, processor = (make() for make in FAMILIES["smolvlm"])
    data = PreferenceDataset(rows(), processor, DataOptions(branches=("chosen", "rejected")))
    firsts = []
    with torch.no_grad():
        for example in data:
            logits = model(input_ids=torch.tensor([example.prompt_ids]), **(example.images or {})).logits
            firsts.append(processor.decode([int(logits[0, -1].argmax())], skip_special_tokens=True).strip())
    assert list(generate(model, processor, rows(), max_new_tokens=1, batch_size=4)) == firsts


@pytest.mark.parametrize("kind", templates.TOKENIZERS)
@pytest.mark.parametrize("name", ["vicuna", "llama-3"])
def test_generation_has_one_bos_and_no_eos_whatever_tokenizer_and_template_add(kind, name, monkeypatch):
    model, processor = tiny.llava(), templates.processor(name, kind)
    seen = Seen(model, monkeypatch)
    list(generate(model, processor, rows(), max_new_tokens=1, batch_size=4))
    data = PreferenceDataset(rows(), processor, DataOptions(branches=("chosen", "rejected")))
    assert seen.prompts() == [example.prompt_ids for example in data]
    for ids in seen.prompts():
        assert ids.count(0) == (kind != "bytes" or name == "llama-3") and 1 not in ids


def test_the_settings_decide_what_is_asked(monkeypatch):
    model, processor = tiny.llava(), templates.processor("chatml")
    seen = Seen(model, monkeypatch)
    text = TextOptions(system_prompt="Be brief.", chat_template=templates.TEMPLATES["vicuna"])
    list(generate(model, processor, rows(), max_new_tokens=1, text=text))
    data = PreferenceDataset(rows(), processor, DataOptions(branches=("chosen", "rejected"), text=text))
    assert seen.prompts() == [example.prompt_ids for example in data]
    assert processor.decode(seen.prompts()[1]) == "Be brief. USER: a cat sits ASSISTANT:"


@pytest.mark.parametrize("pad", ["<pad>", None, "</s>"])
@pytest.mark.parametrize("name", sorted(templates.TEMPLATES))
def test_an_answer_stops_where_the_template_ends_a_turn(name, pad, monkeypatch):
    processor = templates.processor(name)
    processor.tokenizer.pad_token = pad
    word, end = (processor.tokenizer(text)["input_ids"] for text in ("a", templates.ENDS[name]))
    model = saying(tiny.llava(), [*word, *end])
    model.generation_config.eos_token_id = [399]
    seen = Seen(model, monkeypatch)
    assert list(generate(model, processor, rows(), max_new_tokens=12, batch_size=4)) == ["a"] * 4
    assert seen.new[0].shape[1] == len(word) + len(end)
    assert 399 in seen.inputs[0]["eos_token_id"], "what the model stops at by itself stays"


def test_a_row_that_cannot_be_asked_is_named():
    row = dataclasses.replace(rows()[0], images=())
    with pytest.raises(InputError, match="row 0: prompt: the chat template renders 1 image placeholders for 0 images"):
        list(generate(tiny.llava(), tiny.processor(), [row]))


# The command line


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("world"), count=3)


def test_a_changed_template_or_system_prompt_is_other_settings(world, tmp_path, capsys):
    model, data = world
    output, template = tmp_path / "out.jsonl", tmp_path / "t.jinja"
    template.write_text(tiny.TEMPLATE)
    command = ["generate", str(model), str(data), "--output", str(output), "--max-new-tokens", "2"]
    assert main(command) == 0 and main(command) == 0
    assert main([*command, "--system-prompt", "none", "--chat-template", "null"]) == 0  # none is no text
    for changed in (
        ["--system-prompt", "Be brief."],
        ["--chat-template", str(template)],
        ["--prompt-is-rendered", "false"],
    ):
        assert main([*command, *changed]) == 2
        assert "was begun with other settings (text: " in capsys.readouterr().err
    [jinja] = model.glob("*.jinja")
    before = fingerprint(model)
    jinja.write_text(jinja.read_text() + " ")
    assert fingerprint(model) != before
    assert main(command) == 2
    assert "was begun with other settings (model: " in capsys.readouterr().err
    jinja.write_text(jinja.read_text()[:-1])


def test_score_and_check_take_the_settings_of_training(world, tmp_path, capsys):
    model, data = world
    outputs = [tmp_path / "plain.jsonl", tmp_path / "system.jsonl"]
    for output, settings in zip(outputs, ([], ["--system-prompt", "Be brief."]), strict=True):
        assert main(["score", str(model), str(data), "--output", str(output), *settings]) == 0
    plain, system = ([json.loads(line)["policy_logps"] for line in path.read_text().splitlines()] for path in outputs)
    assert all(a["chosen"] != b["chosen"] for a, b in zip(plain, system, strict=True))
    check = ["data", "check", str(data)]
    assert main([*check, "--model", str(model), "--system-prompt", "Be brief."]) == 0
    assert main([*check, "--model", str(model), "--chat-template-kwargs", '{"thinking": true}']) == 2
    assert "chat_template_kwargs: the chat template does not read 'thinking'" in capsys.readouterr().err
    for wrong in (["--chat-template-kwargs", "{"], ["--chat-template-kwargs", "[]"]):
        assert main([*check, "--model", str(model), *wrong]) == 2
    assert main([*check, "--system-prompt", "Be brief."]) == 2
    assert "give --model too" in capsys.readouterr().err
