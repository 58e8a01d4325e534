"""The shipped checkpoints, and demo and study from end to end on very little."""

import json

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from bench.digits.demo import answers, numbers
from bench.scenes.base import EARLY, MODEL, TUNED
from bench.scenes.demo import OVERRIDES, Size, run
from bench.scenes.metrics import score
from bench.scenes.pairs import LONGEST_CAPTION, POOL, make_pairs, write_questions
from bench.scenes.study import Seed
from bench.scenes.world import make_scene, scene_of
from mdpo.answers import read_scored

LIMIT = 6_000_000
TINY = Size(
    pairs=20,
    held=6,
    scenes=12,
    overrides=("--examples_per_step", "10", "--num_train_epochs", "1", "--logging_steps", "1"),
)


def test_the_checkpoints_are_small_and_hold_no_pickle():
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT
    assert {path.suffix for path in files} <= {".json", ".jinja", ".safetensors"}


@pytest.mark.parametrize("folder", [TUNED, EARLY], ids=lambda folder: folder.name)
def test_the_checkpoints_load_by_auto_classes(folder):
    AutoProcessor.from_pretrained(folder, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000


def test_the_tuned_model_sees_and_makes_up(tmp_path):
    test = write_questions(tmp_path, "development", seed=0, count=60)
    found = score(answers(TUNED, test, LONGEST_CAPTION), [make_scene("development", 0, index) for index in range(60)])
    assert found.cover > 70 and found.looking > 10
    assert found.chair_s > 25 and found.prior > found.sight


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return make_pairs(tmp_path_factory.mktemp("pairs"), seed=3, train=20, held=6)


def test_pairs_are_the_judges_best_against_its_worst(pairs):
    scored = read_scored(pairs.train.with_name("scored.jsonl"))
    assert len(scored) == 26 * sum(draw.captions for draw in POOL)
    rows = [json.loads(line) for path in pairs for line in path.read_text().splitlines()]
    assert len(rows) > 20
    for row in rows:
        those = {
            each.answer.response: each.score for each in scored if each.answer.row.id == row["id"] and each.answer.whole
        }
        assert those[row["chosen"]] == max(those.values()) and those[row["rejected"]] == min(those.values())


def test_what_is_held_out_is_of_other_scenes(pairs):
    train, held = ([json.loads(line)["id"] for line in path.read_text().splitlines()] for path in pairs)
    assert all(scene_of(id).index < 20 for id in train) and all(scene_of(id).index >= 20 for id in held)


def test_the_demo_trains_both_ways_and_tells_them_apart(tmp_path):
    results = run(0, tmp_path, TINY)
    assert [result.name for result in results] == ["tuned", *OVERRIDES]
    tuned, dpo, mdpo = results
    assert tuned.log_ratio is None and not tuned.history
    assert "rewards/imageless_margins" not in dpo.history[0] and "rewards/imageless_margins" in mdpo.history[0]
    assert numbers({0: results}, TINY)["seeds"][0]["mDPO"]["looking"] == mdpo.scores.looking
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("data:image/png;base64,") == 3 + 12
    assert "Over the 8 seeds" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert Image.open(tmp_path / "report.png").width >= 1200


def test_a_seed_that_was_stopped_goes_on(tmp_path):
    seed = Seed(5, tmp_path, TINY, {"tuned": None, "mDPO": ()})
    before = seed.complete()
    assert set(before["mDPO"]["scores"]) > {"chair_s", "looking", "log_ratio", "log_ratio_crop", "cut_chair_s"}
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "seeds" / "5").glob("*.json")}
    (tmp_path / "seeds" / "5" / "mDPO.json").unlink()
    after = seed.complete()
    assert after["mDPO"]["scores"] == before["mDPO"]["scores"]
    changed = {path.name for path, time in kept.items() if path.stat().st_mtime_ns != time}
    assert changed == {"mDPO.json"}
