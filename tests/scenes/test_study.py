"""The study's rows as the product reads them, and trials on very little: kept row by row, and gone on with."""

import json

import pytest

from bench.scenes.base import BASES
from bench.scenes.demo import CONFIG
from bench.scenes.rows import BLOCKS, CORE, SECTIONS, SHARP, SMALL, Row, find, rows
from bench.scenes.runs import Size, Trial, write_partners
from bench.scenes.study import Clock, Study, Task, _startable
from bench.scenes.world import scene_of
from mdpo.config import load_config, parse_overrides
from mdpo.data import DataOptions
from mdpo.data.negatives import parse_negative
from mdpo.errors import InputError
from mdpo.objectives import objective_of

TINY = Size(
    pairs=16, held=6, scenes=12, asked=3, overrides=("--examples_per_step", "8", "--num_train_epochs", "1")
)  # fmt: skip


def read_by_the_product(row: Row) -> DataOptions:
    words = [*(row.overrides or ()), *TINY.overrides, "--output_dir", "build/run"]
    _, settings = load_config(CONFIG, parse_overrides(words))
    parse_negative(settings.negative)
    return DataOptions.of(settings, objective_of(settings))


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: f"{row.base}-{row.name}")
def test_every_row_is_known_to_the_product(row):
    options = read_by_the_product(row)
    assert row.base in BASES
    assert (options.negative == "own") == row.partners  # who brings pictures has them read, and the other way round
    assert row.partners or not options.reads_contrast
    assert all(find(row.base, other).name == other for other in row.against)


def test_a_spelling_mistake_in_a_row_is_found():
    with pytest.raises(InputError, match="'negatve'.*'negative'"):
        read_by_the_product(Row("mDPO, misspelt", overrides=("--negatve", "random_image")))
    with pytest.raises(InputError, match="negative: 'randm_image' is unknown"):
        read_by_the_product(Row("mDPO, misspelt", overrides=("--negative", "randm_image")))


def test_rows_do_not_share_a_name_nor_a_file():
    assert (
        len({(row.base, row.name) for row in rows()})
        == len({(row.base, row.file) for row in rows()})
        == len(list(rows()))
    )


def test_every_row_stands_in_a_section():
    shown = {(section.base, name) for section in SECTIONS for name in section.rows}
    assert shown == {(row.base, row.name) for row in rows()}


def test_both_bases_have_the_rows_that_the_claims_need():
    for base in (SHARP, SMALL):
        assert {"tuned", "DPO", "mDPO", "mDPO - conditional"} <= {row.name for row in CORE if row.base == base}


def test_a_partner_is_of_the_same_theme_and_brings_its_own_caption(tmp_path):
    ids = [f"preference-0-{index:05d}" for index in range(40)]
    pairs = [{"id": id, "images": [f"images/{id}.png"], "chosen": f"about {id}"} for id in ids]
    source, target = tmp_path / "pairs.jsonl", tmp_path / "partners.jsonl"
    source.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    write_partners(source, target, seed=1)
    for row in map(json.loads, target.read_text().splitlines()):
        (picture,) = row["rejected_images"]
        other = picture.removeprefix("images/").removesuffix(".png")
        assert other != row["id"] and row["contrast"] == f"about {other}"
        assert scene_of(other).theme == scene_of(row["id"]).theme
    first = target.read_text()
    write_partners(source, target, seed=1)
    assert target.read_text() == first


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    trial = Trial(5, SMALL, tmp_path_factory.mktemp("study"), TINY)
    trial.run(find(SMALL, "mDPO"))
    return trial


@pytest.mark.slow
def test_a_row_is_measured_by_the_base_as_it_is(trial):
    scores = trial.read(find(SMALL, "mDPO"))["scores"]
    assert {"chair_s", "looking", "log_ratio", "log_ratio_crop", "cut_chair_s", "right: place"} <= set(scores)
    tuned = trial.read(find(SMALL, "tuned"))
    assert len(tuned["captions"]) == TINY.scenes and "log_ratio" not in tuned["scores"]


@pytest.mark.slow
def test_cost_is_what_the_planner_counts(trial):
    sources = trial.folder / "data" / "pairs.jsonl"
    assert sources.is_file()
    trial.run(find(SMALL, "DPO"))
    dpo, mdpo = (trial.read(find(SMALL, name))["scores"]["tokens"] for name in ("DPO", "mDPO"))
    assert dpo < mdpo < 2 * dpo  # P + 2R against 2P + 3R


@pytest.mark.slow
def test_a_study_that_was_stopped_goes_on_with_the_same_numbers(trial):
    row = find(SMALL, "mDPO")
    before = trial.read(row)["scores"]
    study = Study(trial.folder.parents[1], TINY, (5,))
    assert Task(5, row) not in study.missing()
    trial.path(row).unlink()
    assert Task(5, row) in study.missing()
    trial.run(row)
    assert trial.read(row)["scores"] == before


@pytest.mark.slow
def test_a_record_of_another_size_does_not_count(trial):
    larger = Size(pairs=17, held=6, scenes=12, asked=3, overrides=TINY.overrides)
    assert Trial(5, SMALL, trial.folder.parents[1], larger).read(find(SMALL, "mDPO")) is None


def test_whole_seeds_of_the_core_come_first(tmp_path):
    tasks = Study(tmp_path, TINY, (11, 12)).missing()
    assert [task.seed for task in tasks[: 2 * len(CORE)]] == [11] * len(CORE) + [12] * len(CORE)
    assert {task.row for task in tasks[: 2 * len(CORE)]} == set(CORE)
    assert len(tasks) == 2 * sum(len(block) for block in BLOCKS)


def test_rows_of_one_trial_do_not_run_at_once():
    tasks = [Task(seed, row) for seed in (11, 12) for row in CORE]
    started = list(_startable(tasks, {}, jobs=3))
    assert [task.trial for task in started] == [(11, SHARP), (11, SMALL), (12, SHARP)]
    assert not list(_startable(tasks, {None: tasks[0]}, jobs=1))  # pyright: ignore


def test_what_is_left_is_told_from_what_was_run():
    clock, (tuned, dpo) = Clock(2), (Task(11, find(SHARP, name)) for name in ("tuned", "DPO"))
    clock.add(tuned, 10.0)
    clock.add(dpo, 30.0)
    assert clock.left([dpo, dpo]) == 30.0
    assert clock.left([Task(11, find(SHARP, "mDPO"))]) == 10.0  # the mean, over two jobs
