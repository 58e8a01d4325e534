"""The shipped checkpoints, and the demo from end to end on very little."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from bench.digits.demo import answers, numbers
from bench.scenes.base import BASES, MODEL
from bench.scenes.demo import OVERRIDES, Size, apportioned, run
from bench.scenes.metrics import score
from bench.scenes.pairs import LONGEST_CAPTION, POOL, make_pairs, write_questions
from bench.scenes.questions import KINDS, LONGEST_ANSWER, score_kinds, write_kinds
from bench.scenes.world import make_scene, scene_of
from mdpo.answers import read_scored

pytestmark = pytest.mark.slow

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


CHECKPOINTS = {f"{base.name}-{folder.name}": folder for base in BASES.values() for folder in (base.tuned, base.early)}


@pytest.mark.parametrize("folder", CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_the_checkpoints_load_by_auto_classes_as_they_were_trained(folder):
    AutoProcessor.from_pretrained(folder, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Of both tuned models' captions of the same scenes."""
    test = write_questions(tmp_path_factory.mktemp("scores"), "development", seed=0, count=60)
    scenes = [make_scene("development", 0, index) for index in range(60)]
    return {name: score(answers(base.tuned, test, LONGEST_CAPTION), scenes) for name, base in BASES.items()}


def test_both_tuned_models_see_and_make_up(scores):
    for found in scores.values():
        assert found.cover > 60 and found.chair_s > 25
        assert found.prior > 2 * found.sight


def test_the_small_model_looks_less(scores):
    assert 3 < scores["small"].looking < scores["sharp"].looking - 5


def test_the_sharp_model_answers_what_it_learned_to_and_believes_every_premise(tmp_path):
    path = write_kinds(tmp_path, seed=0, count=60)
    right = score_kinds(path, answers(BASES["sharp"].tuned, path, LONGEST_ANSWER))
    assert set(right) == set(KINDS)
    assert right["environment"] > 90 and right["comparison"] > 60 and right["counting"] > 40
    assert right["adversarial premise"] < 20 < right["place"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return make_pairs(tmp_path_factory.mktemp("pairs"), base=BASES["small"], seed=3, train=20, held=6)


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


def test_pictures_are_shown_in_proportion():
    assert apportioned({"right": 57, "one errs": 30, "both err": 13}, 12) == {"right": 7, "one errs": 4, "both err": 1}
    assert apportioned({"a": 1, "b": 1, "c": 1}, 2) == {"a": 1, "b": 1, "c": 0}
