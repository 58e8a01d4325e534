"""The card beside what was trained, and its way to the hub: what is uploaded, what stays here, and one line for what
fails.
"""

import json
import shlex
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from peft import LoraConfig

from mdpo import MDPOConfig, MDPOTrainer
from mdpo.cli import main
from mdpo.data import read_rows
from mdpo.errors import InputError, OutputError
from mdpo.models import load, load_processor
from mdpo.models.adapters import load_adapter
from mdpo.models.base_digest import weights_digest
from tests import tiny
from tests.hub import forget

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("world"), count=6)


def config(world, folder: Path, **changes) -> str:
    settings = {
        "model_name_or_path": str(world[0]),
        "train_data": str(world[1]),
        "output_dir": "out",
        "examples_per_step": 2,
        "max_steps": 2,
        "lora_r": 2,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        **changes,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return str(folder / "run.yaml")


def error_line(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_the_card_beside_an_adapter_says_what_it_is(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        main(["train", config(world, tmp_path, eval_fraction=0.34, beta=0.2, objective="dpo", output_dir="runs/dogs")])
        == 0
    )
    card = Path("runs/dogs/README.md").read_text()
    state = json.loads(Path("runs/dogs/trainer_state.json").read_text())
    last = [entry for entry in state["log_history"] if "rewards/margins" in entry][-1]
    for fact in (
        "# dogs",
        "| model | model |",
        "| rows | train.jsonl |",
        "4 (",
        "| objective | dpo |",
        "arXiv 2305.18290",
        "| beta | 0.2 |",
        "| steps | 2 |",
        "| adapter.r | 2 |",
        f"| rewards/margins | {last['rewards/margins']:.6g} |",
        "| eval\\_loss |",
        f"| torch | {version('torch')} |",
        "@inproceedings{wang2024mdpo",
    ):
        assert fact.replace("\\_", "_") in card.replace("\\_", "_"), fact
    assert str(tmp_path) not in card.split("---", 2)[2] and str(world[0].parent) not in card
    data = ModelCard(card).data
    assert (data.library_name, data.pipeline_tag, data.base_model) == ("peft", "image-text-to-text", None)
    assert (
        main(["train", "run.yaml", "--output_dir", "runs/dogs", "--overwrite_output_dir", "true", "--beta", "0.3"]) == 0
    )
    again = Path("runs/dogs/README.md").read_text()
    assert "| beta | 0.3 |" in again and "| beta | 0.2 |" not in again and again.count("# dogs") == 1


def test_a_card_of_the_users_own_stays(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Path("out/README.md").write_text("---\ntags: [mine]\n---\nwhat I know of it\n")
    assert main(["train", config(world, tmp_path)]) == 0
    assert (
        "what I know of it" in Path("out/README.md").read_text() and "| beta |" not in Path("out/README.md").read_text()
    )


def test_a_run_uploads_adapter_and_card_and_nothing_else(hub, world, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", hub.writer)
    hub.add("tiny/model", world[0])
    words = config(
        world,
        tmp_path,
        model_name_or_path="tiny/model",
        push_to_hub=True,
        hub_model_id="tiny/dogs",
        save_strategy="epoch",
    )
    assert main(["train", words]) == 0
    repo = hub.repos["models", "tiny/dogs"]
    folder = repo.folders[repo.refs["main"]]
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
        "tokenizer.json",
        "processor_config.json",
    } <= names
    assert json.loads((folder / "mdpo_base.json").read_text()) == {"base_weights": weights_digest(world[0])}
    assert not names & {"training_args.bin", "trainer_state.json", "mdpo_run.json"} and not any(
        "/" in name for name in names
    )
    assert ModelCard.load(folder / "README.md").data.base_model == "tiny/model"
    assert len(repo.folders) == 2, "the empty one, and one commit"
    assert f"uploaded: {hub.url}/tiny/dogs/commit/" in capsys.readouterr().out
    forget()
    load_adapter(load("tiny/model"), "tiny/dogs", base="tiny/model")  # whoever finds it there can use it
    other = tmp_path / "other"
    tiny.llava(seed=1).save_pretrained(other)
    with pytest.raises(InputError, match="trained on another base model"):
        load_adapter(load(other), "tiny/dogs", base=str(other))


def test_a_token_that_may_not_write_is_found_before_training(hub, world, tmp_path, capsys):
    assert (
        main(["train", config(world, tmp_path, push_to_hub=True, hub_model_id="tiny/dogs", hub_token="hf_reads")]) == 2
    )
    line = error_line(capsys)
    assert "push_to_hub: tiny/dogs: the hub does not let it be written to (401)" in line and "hf auth login" in line
    assert not list(Path("out").glob("*.safetensors")) and not hub.repos


def test_a_hub_that_refuses_at_the_end_loses_nothing(hub, world, tmp_path, capsys):
    hub.full = True
    settings = {"push_to_hub": True, "hub_model_id": "dogs", "hub_token": hub.writer}
    assert main(["train", config(world, tmp_path, **settings)]) == 1
    line = error_line(capsys)
    assert "what was trained is whole in out" in line and "hf upload tiny/dogs out" in line
    assert Path("out/adapter_model.safetensors").is_file()

    words = shlex.split(line.partition("Upload it later: hf upload tiny/dogs out ")[2])
    assert set(words[::2]) == {"--include"}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= set(words[1::2])
    assert not set(words[1::2]) & {"trainer_state.json", "mdpo_run.json", "training_args.bin"}


def test_from_python_as_with_the_base_class(hub, world, tmp_path):
    args = MDPOConfig(
        output_dir="out",
        max_steps=1,
        examples_per_step=2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        hub_token=hub.writer,
        hub_model_id="tiny/cats",
        disable_tqdm=True,
        check_start=False,
    )
    run = MDPOTrainer(
        model=load(world[0]),
        args=args,
        train_dataset=read_rows(world[1]),
        processing_class=load_processor(world[0]),
        peft_config=LoraConfig(r=2, target_modules=r".*language_model.*\.q_proj"),
    )
    run.train()
    assert run.push_to_hub("cats at last").startswith(f"{hub.url}/tiny/cats/commit/")
    assert "# Cats\n" not in Path("out/README.md").read_text()
    run.push_to_hub(model_name="Cats")
    assert "# Cats\n" in Path("out/README.md").read_text() and len(hub.repos["models", "tiny/cats"].folders) == 3
    hub.repos.clear()
    with pytest.raises(OutputError, match="push_to_hub: tiny/cats: .*; what was trained is whole in out"):
        run.upload()
