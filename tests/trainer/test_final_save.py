"""The last save of a run: whole or not there, and on a full disk the weights are kept wherever there is room."""

import errno
import resource

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from mdpo import MDPOConfig, MDPOTrainer
from mdpo.data import read_rows
from mdpo.errors import OutputError, TrainingError
from mdpo.models import load, load_processor
from mdpo.models.reference_cache import Record, ReferenceCache
from tests import tiny

pytestmark = pytest.mark.slow

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("world"), count=4)


def trainer(world, output_dir, **settings) -> MDPOTrainer:
    defaults = {
        "examples_per_step": 2,
        "max_steps": 3,
        "save_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "learning_rate": 1e-3,
        "check_start": False,
    }
    return MDPOTrainer(
        model=load(world[0]),
        args=MDPOConfig(output_dir=str(output_dir), **{**defaults, **settings}),
        train_dataset=read_rows(world[1]),
        processing_class=load_processor(world[0]),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
    )


def fill(monkeypatch, times: int) -> None:
    """The next final saves find a full disk."""
    save, left = MDPOTrainer._save_whole, [times]

    def full_at_first(self, folder):
        left[0] -= 1
        if left[0] >= 0:
            raise OutputError(f"{folder}: the disk is full") from OSError(errno.ENOSPC, "No space left on device")
        save(self, folder)

    monkeypatch.setattr(MDPOTrainer, "_save_whole", full_at_first)


def checkpoints(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_the_checkpoint_of_the_last_step_has_the_weights(world, tmp_path, monkeypatch):
    run = trainer(world, tmp_path)
    run.train()
    fill(monkeypatch, 1)
    said = (
        r"saved to .*: the disk is full; its weights are in the checkpoint .*checkpoint-3; "
        r".*--resume_from_checkpoint true"
    )
    with pytest.raises(TrainingError, match=said):
        run.save_model()
    assert (
        checkpoints(tmp_path) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"] and not (tmp_path / WEIGHTS).exists()
    )


def test_without_checkpoints_one_is_written_and_the_way_on_leads_to_the_end(world, tmp_path, monkeypatch):
    run = trainer(world, tmp_path, save_strategy="no")
    run.train()
    with monkeypatch.context() as patch:
        fill(patch, 1)
        with pytest.raises(TrainingError, match=r"its weights are in the checkpoint .*checkpoint-3"):
            run.save_model()
    kept = load_file(tmp_path / "checkpoint-3" / WEIGHTS)
    again = trainer(world, tmp_path, save_strategy="no")
    again.train(resume_from_checkpoint=True)
    again.save_model()
    saved = load_file(tmp_path / WEIGHTS)
    assert kept and all(torch.equal(kept[name], saved[name]) for name in kept)


def test_an_older_checkpoint_goes_only_if_the_user_allowed_it(world, tmp_path, monkeypatch, caplog):
    run = trainer(world, tmp_path, save_total_limit=3)
    run.train()
    with monkeypatch.context() as patch:
        fill(patch, 2)
        run.save_model()
    assert checkpoints(tmp_path) == ["checkpoint-3"] and (tmp_path / WEIGHTS).is_file()
    assert "checkpoint-1 is removed to make room, as save_total_limit allows" in caplog.text
    fill(monkeypatch, 1)
    with pytest.raises(TrainingError, match="checkpoint-3"):  # the newest never goes
        run.save_model()
    assert checkpoints(tmp_path) == ["checkpoint-3"] and (tmp_path / WEIGHTS).is_file()


def test_where_nothing_fits_the_last_good_state_is_named_and_nothing_is_left(world, tmp_path):
    run = trainer(world, tmp_path, save_steps=2)
    run.train()
    for name in ("checkpoint-3", "checkpoint-2"):
        (tmp_path / name).rename(tmp_path / name.replace("checkpoint", "moved"))
    before = sorted(tmp_path.rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))  # fails a write as a full disk does
    try:
        with pytest.raises(TrainingError, match="the disk is full; there is no checkpoint"):
            run.save_model()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_lies_beside_stays_and_the_card_is_added_to(world, tmp_path):
    (tmp_path / "README.md").write_text("---\ntags: [mine]\n---\nwhat I know of it\n")
    (tmp_path / "notes.txt").write_text("mine")
    run = trainer(world, tmp_path, save_strategy="no")
    run.train()
    run.save_model()
    run.save_state()
    assert (
        "what I know of it" in (tmp_path / "README.md").read_text() and (tmp_path / "notes.txt").read_text() == "mine"
    )
    found = {path.name for path in tmp_path.iterdir()}
    assert {WEIGHTS, "adapter_config.json", "trainer_state.json"} <= found
    assert not [name for name in found if name.startswith(".")]


def test_a_full_disk_behind_the_model_leaves_it_and_asks_for_no_other_run(world, tmp_path):
    run = trainer(world, tmp_path, save_strategy="no")
    run.train()
    run.save_model()
    before = sorted(tmp_path.rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(
            OutputError, match=r"trainer_state.json .* the disk is full; .* whole, and needs no other run$"
        ):
            run.save_state()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(tmp_path.rglob("*")) == before


def record(name: str) -> Record:
    return Record(name, name, "chosen", -1.0)


def test_a_full_disk_under_the_reference_cache_costs_time_alone(tmp_path, caplog):
    cache = ReferenceCache(tmp_path, "model")
    cache.keep([record("a")])
    size = (tmp_path / "model.jsonl").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
    try:
        cache.keep([record("b")])
        cache.keep([record("c")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    cache.keep([record("d")])
    assert caplog.text.count("cannot be written: the disk is full; the run goes on and keeps no more of it") == 1
    assert len(cache) == 4 and (tmp_path / "model.jsonl").stat().st_size == size
    assert len(ReferenceCache(tmp_path, "model")) == 1


def test_a_cache_folder_that_cannot_be_made_is_a_line(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = ReferenceCache(tmp_path / "file" / "cache", "model")
    cache.keep([record("a")])
    assert len(cache) == 1 and "cannot be written: Not a directory" in caplog.text
