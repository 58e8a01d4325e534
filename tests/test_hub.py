"""Models, adapters and data by their names on the hub: from one command to a trained adapter, and one line for what
fails.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from mdpo import InputError, MDPOConfig, MDPOTrainer
from mdpo.cli import main
from mdpo.data import read_rows
from mdpo.models import LANGUAGE_LINEAR, load, load_processor
from mdpo.models.adapters import adapter_config, load_adapter
from tests import tiny
from tests.hub import forget

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, Path]:
    return tiny.world(tmp_path_factory.mktemp("world"), count=8)


@pytest.fixture(scope="module")
def adapter(world, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    config = LoraConfig(r=2, target_modules=LANGUAGE_LINEAR, init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(load(world[0]), config).save_pretrained(folder)
    return folder


def parquet_repo(data: Path, folder: Path, *, split: str = "train", count: int | None = None) -> Path:
    """The rows of a JSONL file as the hub stores them, pictures inside."""
    import datasets

    rows = [json.loads(line) for line in data.read_text().splitlines()][:count]
    for row in rows:
        row["image"] = {"bytes": (data.parent / row.pop("img_path")).read_bytes(), "path": None}
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return folder


def copy(folder: Path, to: Path, *, without: str = "*.none") -> Path:
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns(without))
    return to


def run(hub, folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess:
    """A command of a user whose hub is this one. more: of the environment."""
    paths = os.pathsep.join(path for path in sys.path if path)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    around = kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "PYTHONPATH": paths, **more}
    command = [sys.executable, "-m", "mdpo.cli", *words]
    return subprocess.run(command, cwd=folder, env=around, capture_output=True, text=True)


def test_from_hub_names_to_a_trained_adapter_in_one_command(hub, world, tmp_path):
    model, data = world
    commit = hub.add("tiny/model", model)
    hub.add("some/pairs", parquet_repo(data, tmp_path / "rows"), kind="datasets")
    (tmp_path / "run.yaml").write_text(
        "model_name_or_path: tiny/model\ntrain_data: some/pairs\noutput_dir: tiny/out\nmax_steps: "
        "1\nexamples_per_step: 4\nlora_r: 2\nuse_cpu: true\nreport_to: none\nsave_strategy: 'no'\n"
    )
    done = run(hub, tmp_path, "train", "run.yaml")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "tiny/out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("tiny/model", commit)
    assert "base_model: tiny/model\n" in (tmp_path / "tiny/out" / "README.md").read_text()

    # Whoever gets the adapter finds its base, also where there is no network any more.
    shutil.copytree(tmp_path / "home" / "hub", tmp_path / "cache", symlinks=True)
    hub.repos.clear()
    constants.HF_HUB_OFFLINE = True
    forget()
    assert main(["merge", "tiny/out", "merged"]) == 0
    trained, base = load_file(tmp_path / "merged" / "model.safetensors"), load_file(model / "model.safetensors")
    assert trained.keys() == base.keys()


def test_the_model_is_looked_at_before_the_data_is_fetched(hub, world, tmp_path):
    hub.add("tiny/pickles", copy(world[0], tmp_path / "pickles", without="*.safetensors"))
    (tmp_path / "run.yaml").write_text("model_name_or_path: tiny/pickles\ntrain_data: tiny/pairs\noutput_dir: out\n")
    assert main(["train", "run.yaml", "--use_cpu"]) == 2
    assert not any("tiny/pairs" in request for request in hub.requests) and not Path("out").exists()


def test_models_processors_and_adapters_in_python(hub, world, adapter):
    commit = hub.add("tiny/model", world[0])
    hub.add("tiny/adapter", adapter)
    model = load("tiny/model")
    assert model.config.name_or_path == "tiny/model" and commit in model.name_or_path
    load_processor("tiny/model")
    adapted = load_adapter(model, "tiny/adapter", base="tiny/model")
    saved = load_file(adapter / "adapter_model.safetensors")
    assert saved and all(
        adapted.get_parameter(name.replace(".weight", ".default.weight")).equal(value) for name, value in saved.items()
    )
    assert adapter_config("tiny/adapter")["r"] == 2


def test_what_a_trainer_in_python_saves_names_its_base(hub, world):
    first = hub.add("tiny/model", world[0])
    args = MDPOConfig(
        output_dir="out",
        max_steps=1,
        save_steps=1,
        examples_per_step=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        check_start=False,
    )
    trainer = MDPOTrainer(
        model=load("tiny/model"),
        args=args,
        train_dataset=read_rows(world[1]),
        processing_class=load_processor("tiny/model"),
        peft_config=LoraConfig(r=2, target_modules=LANGUAGE_LINEAR),
    )
    hub.add("tiny/model", world[0])  # a newer commit, which it was not trained on
    trainer.train()
    trainer.save_model("saved")
    for folder in ("out/checkpoint-1", "saved"):
        config = adapter_config(folder)
        assert (config["base_model_name_or_path"], config["revision"]) == ("tiny/model", first), folder
    trainer.create_model_card()
    assert "base_model: tiny/model\n" in Path("out/README.md").read_text()
    trainer.train(resume_from_checkpoint=True)


def test_no_pickle_and_no_code_is_fetched(hub, world, tmp_path):
    folder = copy(world[0], tmp_path / "model")
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "modeling_tiny.py",
        "consolidated.safetensors",
        "model.gguf",
    ):
        (folder / name).write_bytes(b"x" * 1000)
    (folder / "original").mkdir()
    (folder / "original" / "model.safetensors").write_bytes(b"x")
    hub.add("tiny/model", folder)
    load("tiny/model")
    assert hub.fetched() == {path.name for path in world[0].iterdir()}


def test_a_processor_takes_no_weights_and_a_plan_the_config_alone(hub, world):
    hub.add("tiny/model", world[0])
    load_processor("tiny/model")
    assert "model.safetensors" not in hub.fetched() and "tokenizer.json" in hub.fetched()


def test_a_plan_takes_the_config_alone(hub, world, tmp_path, capsys):
    hub.add("tiny/model", world[0])
    (tmp_path / "plan.yaml").write_text(
        "model_name_or_path: tiny/model\ntrain_data: tiny/pairs\noutput_dir: out\nplan_prompt_tokens: 30\n"
        "plan_response_tokens_median: 8\nplan_response_tokens_max: 12\n"
    )
    assert main(["plan", "plan.yaml", "--memory", "8GiB"]) == 0, capsys.readouterr().err
    assert {name for name in hub.fetched() if "model" in name or "token" in name} == set()
    assert "config.json" in hub.fetched()


def test_shards_are_those_that_the_index_names(hub, world, tmp_path):
    load(world[0]).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    hub.add("tiny/shards", tmp_path / "shards")
    hub.add("tiny/torn", copy(tmp_path / "shards", tmp_path / "torn", without="model-00002*"))
    load("tiny/shards")
    with pytest.raises(InputError, match="model-00002-of-.*is missing"):
        load("tiny/torn")


def test_revisions(hub, world, tmp_path):
    first = hub.add("tiny/model", world[0])
    changed = copy(world[0], tmp_path / "changed")
    (changed / "config.json").write_text("{}")
    hub.add("tiny/model", changed)
    hub.add("tiny/model", world[0], branch="refs/pr/1")
    for name, revision in (("tiny/model", first), (f"tiny/model@{first}", None), ("tiny/model@refs/pr/1", None)):
        load(name, revision=revision)
    with pytest.raises(InputError, match="not a model's config"):
        load("tiny/model")
    with pytest.raises(
        InputError, match="the hub has tiny/model, but not the revision v9; see .*/tiny/model/tree/main"
    ):
        load("tiny/model@v9")
    with pytest.raises(InputError, match="revision 'v1': tiny/model@v2 has a revision already"):
        load("tiny/model@v2", revision="v1")
    for bad in ("a/../../b", "", "-x", "a b"):
        with pytest.raises(InputError, match="not a branch, tag or commit"):
            load("tiny/model", revision=bad)
    with pytest.raises(InputError, match="is not a name on the hub, and only there are revisions"):
        load_processor(world[0], revision="v1")


def test_a_folder_comes_first(hub, world, tmp_path):
    copy(world[0], tmp_path / "tiny" / "model")
    load("tiny/model")
    with pytest.raises(InputError, match="tiny is a folder here.*hf download tiny/other --local-dir tiny/other"):
        load("tiny/other")
    with pytest.raises(
        InputError, match="model folder model does not exist in .*; give a folder, or owner/name on the hub"
    ):
        load("model")
    with pytest.raises(InputError, match="is a file"):
        load(world[1])
    assert hub.requests == []


def test_what_the_hub_does_not_hand_out(hub, world, monkeypatch, capsys):
    hub.add("tiny/gated", world[0], gated=True, readers=("hf_reader",))
    hub.add("tiny/private", world[0], readers=("hf_reader",))
    missing = "is not a folder here, and the hub has no such model, or a private one.*hf auth login"
    for name in ("tiny/private", "tiny/missing"):
        with pytest.raises(InputError, match=missing):
            load(name)
    with pytest.raises(InputError, match=f"is gated: accept its terms at {hub.url}/tiny/gated, then log in"):
        load("tiny/gated")
    capsys.readouterr()
    assert main(["generate", "tiny/missing", str(world[1]), "--output", "answers.jsonl"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    forget()
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    load("tiny/gated")
    load("tiny/private")


def test_a_cache_that_cannot_be_written(hub, world, tmp_path, monkeypatch):
    hub.add("tiny/model", world[0])
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=f"tiny/model cannot be kept in the cache {tmp_path}/file: .*; set HF_HOME"):
        load("tiny/model")


def test_weights_that_are_no_safetensors_are_refused(hub, world, adapter, tmp_path):
    folder = copy(world[0], tmp_path / "pickles", without="*.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    hub.add("tiny/pickles", folder)
    (copy(adapter, tmp_path / "old", without="*.safetensors") / "adapter_model.bin").write_bytes(b"x")
    hub.add("tiny/old", tmp_path / "old")
    hub.add("tiny/none", copy(world[0], tmp_path / "none", without="*.safetensors"))
    for name, file in (("tiny/pickles", "pytorch_model.bin"), ("tiny/old", "adapter_model.bin")):
        with pytest.raises(
            InputError, match=f"has its weights as {file} alone, a pickle, which is not read.*@refs/pr/NUMBER"
        ):
            load(name) if file[0] == "p" else load_adapter(load(world[0]), name)
    with pytest.raises(InputError, match="has no model.safetensors"):
        load("tiny/none")
    assert not any(name.endswith(".bin") for name in hub.fetched())


def test_what_is_fetched_is_checked_as_a_folder_is(hub, world, adapter, tmp_path):
    folder = copy(world[0], tmp_path / "hostile")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attn_implementation": "evil/kernel"}))
    hub.add("tiny/hostile", folder)
    with pytest.raises(InputError, match="leads outside the folder"):
        load("tiny/hostile")
    assert "model.safetensors" not in hub.fetched()
    hub.add("tiny/adapter", adapter)
    with pytest.raises(InputError, match="contains an adapter alone"):
        load("tiny/adapter")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "text" / "model.safetensors").write_bytes(b"")
    hub.add("tiny/text", tmp_path / "text")
    with pytest.raises(InputError, match="does not load as an image-text model: its model_type is 'llama'"):
        load("tiny/text")
    (tmp_path / "empty").mkdir()
    hub.add("tiny/empty", tmp_path / "empty")
    with pytest.raises(InputError, match="has neither config.json nor adapter_config.json|has no model.safetensors"):
        load("tiny/empty")


@pytest.mark.parametrize("how", ["offline", "no network", "down"])
def test_without_a_network_the_cache_is_taken(hub, world, monkeypatch, caplog, how):
    commit = hub.add("tiny/model", world[0])
    hub.add("tiny/half", world[0])
    load("tiny/model")
    load_processor("tiny/half")
    forget()
    asked = len(hub.requests)
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif how == "no network":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    hub.down = how == "down"
    reason = "HF_HUB_OFFLINE is set" if how == "offline" else "the hub cannot be reached"
    load("tiny/model")
    load_processor("tiny/model")
    said = [record.getMessage() for record in caplog.records if record.name == "mdpo.hub.repositories"]
    assert len(said) == 1 and said[0].startswith(f"tiny/model: {reason}") and said[0].endswith(commit[:12])
    load_processor("tiny/half")
    with pytest.raises(InputError, match="tiny/half: the cache lacks model.safetensors.*hf download tiny/half"):
        load("tiny/half")
    with pytest.raises(
        InputError, match=f"tiny/other is not a folder here and not in the cache .*, and {reason}.*hf download"
    ):
        load("tiny/other")
    assert (len(hub.requests) == asked) == (how != "down")


def test_commands_take_names(hub, world, adapter, tmp_path):
    model, data = world
    hub.add("tiny/model", model)
    hub.add("tiny/adapter", adapter)
    names = ["tiny/model", str(data), "--adapter", "tiny/adapter"]
    assert main(["score", *names, "--output", "by-name.jsonl"]) == 0
    assert main(["score", str(model), str(data), "--adapter", str(adapter), "--output", "by-folder.jsonl"]) == 0
    assert Path("by-name.jsonl").read_text() == Path("by-folder.jsonl").read_text()
    assert main(["generate", *names, "--max-new-tokens", "2", "--output", "answers.jsonl"]) == 0
    assert main(["data", "check", str(data), "--model", "tiny/model"]) == 0
    assert main(["merge", "tiny/adapter", "merged", "--base", "tiny/model"]) == 0
    hub.add("tiny/bunny", Path(__file__).parent / "golden" / "bunny-official")
    assert main(["convert", "bunny", "tiny/bunny", "bunny"]) == 0
    load(tmp_path / "bunny")


def test_a_run_goes_on_from_an_adapter_of_the_hub(hub, world, adapter, tmp_path):
    first = hub.add("tiny/model", world[0])
    hub.add("tiny/adapter", adapter)
    (tmp_path / "run.yaml").write_text(
        f"model_name_or_path: tiny/model\nmodel_revision: {first}\nadapter_name_or_path: tiny/adapter\n"
        f"train_data: [{world[1]}]\noutput_dir: out\nmax_steps: 2\nexamples_per_step: 4\nuse_cpu: "
        "true\nreport_to: none\nsave_steps: 1\n"
    )
    assert main(["train", "run.yaml"]) == 0
    record = json.loads(Path("out/mdpo_run.json").read_text())["run"]
    assert record["model_name_or_path"] == f"tiny/model@{first}"
    assert adapter_config("out")["base_model_name_or_path"] == "tiny/model"

    # A checkpoint as well: the folder in the cache may be gone.
    assert adapter_config("out/checkpoint-1")["base_model_name_or_path"] == "tiny/model"
    shutil.rmtree(tmp_path / "cache")
    forget()
    assert main(["merge", "out/checkpoint-1", "merged"]) == 0


def test_a_plan_counts_the_data_that_is_here(hub, world, tmp_path, capsys):
    hub.add("tiny/model", world[0])
    (tmp_path / "plan.yaml").write_text(f"model_name_or_path: tiny/model\ntrain_data: {world[1]}\noutput_dir: out\n")
    assert main(["plan", "plan.yaml", "--memory", "8GiB"]) == 0
    assert "8 examples" in capsys.readouterr().out
    assert "tokenizer.json" in hub.fetched() and "model.safetensors" not in hub.fetched()


def test_a_plan_by_shape_asks_nobody(hub, tmp_path):
    (tmp_path / "plan.yaml").write_text(
        "model_name_or_path: llava-hf/llava-1.5-7b-hf\ntrain_data: tiny/pairs\noutput_dir: out\nplan_prompt_tokens: "
        "600\nplan_response_tokens_median: 80\nplan_response_tokens_max: 120\nplan_model_shape: llava-1.5-7b\n"
    )
    assert main(["plan", "plan.yaml", "--memory", "80GiB"]) == 0
    assert hub.requests == []


def test_data_of_the_hub(hub, world, tmp_path, monkeypatch, caplog):
    import datasets

    for name, value in {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": False,
        "HF_DATASETS_CACHE": tmp_path / "tables",
    }.items():
        monkeypatch.setattr(datasets.config, name, value)
    first = parquet_repo(world[1], tmp_path / "first", count=3)
    commit = hub.add("tiny/pairs", first, kind="datasets")
    both = parquet_repo(world[1], copy(first, tmp_path / "both"), split="held_out", count=2)
    newest = hub.add("tiny/pairs", both, kind="datasets")
    hub.add("tiny/gated", both, kind="datasets", gated=True)
    assert len(read_rows("tiny/pairs")) == 3 and len(read_rows("tiny/pairs:held_out")) == 2
    assert len(read_rows(f"tiny/pairs@{commit}")) == 3
    with pytest.raises(InputError, match="has no split 'held_out'"):
        read_rows(f"tiny/pairs@{commit}:held_out")
    with pytest.raises(InputError, match="tiny/missing is not a file or folder here, and the hub has no such dataset"):
        read_rows("tiny/missing")
    with pytest.raises(InputError, match=f"tiny/gated is gated: accept its terms at {hub.url}/datasets/tiny/gated"):
        read_rows("tiny/gated")
    with pytest.raises(InputError, match="not the revision v9"):
        read_rows("tiny/pairs@v9")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    caplog.clear()
    with pytest.raises(InputError, match=f"has commit {commit[:12]}, not {newest[:12]}; .*: tiny/pairs@{commit[:12]}"):
        read_rows("tiny/pairs")  # the cache has what was read last, which is not what the name says
    assert len(read_rows(f"tiny/pairs@{commit[:12]}")) == 3
    assert (
        f"tiny/pairs@{commit[:12]}: the hub cannot be reached, so it is taken as the cache of datasets has it, "
        f"commit {commit[:12]}" in caplog.text
    )
    with pytest.raises(InputError, match=f"has commit {commit[:12]}, not v1"):
        read_rows("tiny/pairs@v1")
    with pytest.raises(
        InputError, match="tiny/other is not a file here, and the hub's dataset does not load: .*hf download tiny/other"
    ):
        read_rows("tiny/other")
