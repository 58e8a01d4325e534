"""TRL's training and ours: the record that is committed, and, where trl is installed, the comparison itself."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from bench.scripts.trl_parity import LOSS_BOUND, MODELS, WAYS, collate, compare, examples_of, main

RECORD = Path(__file__).parents[2] / "bench/scripts/results/trl_parity.json"
HAS_TRL = importlib.util.find_spec("trl") is not None


@pytest.mark.skipif(not HAS_TRL, reason='TRL is not installed: pip install -e ".[peers]"')
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["llava-llama", "qwen2.5-vl", "idefics3"])
def test_trl_and_ours_take_the_same_steps(name, way):
    row = compare(name, way, steps=3)
    assert row.loss <= LOSS_BOUND and row.gradient_norm <= 1e-5 and row.rewards <= 1e-5
    assert row.moved > 100 * row.weights  # they went somewhere, and to the same place


@pytest.mark.skipif(HAS_TRL, reason="TRL is installed")
def test_without_trl_it_says_what_to_install():
    with pytest.raises(SystemExit, match=r"TRL cannot be imported .*\[peers\]"):
        main(["--models", "llava-llama"])


def test_the_record_holds_the_bound_for_every_model_and_way():
    record = json.loads(RECORD.read_text())
    rows = {(row["model"], row["way"]): row for row in record["rows"]}
    assert set(rows) == {(name, way) for name in MODELS for way in WAYS} and len(MODELS) >= 6
    assert all(row["loss"] <= LOSS_BOUND and row["steps"] == 8 for row in rows.values())
    assert all(row["last_loss"] < row["first_loss"] for row in rows.values())
    assert "trl" in record["environment"]["versions"] and record["environment"]["device"]


@pytest.mark.parametrize("name", MODELS)
def test_the_batch_is_what_the_models_own_forward_takes(name):
    """Without TRL: the padded batch runs, and its completions are the answers."""
    model = MODELS[name]()
    examples = examples_of(model, 5)
    batch = collate(examples, model)
    mask = batch.pop("completion_mask")
    with torch.no_grad():
        assert model(**batch).logits.isfinite().all()
    answers = [*(e.chosen_ids for e in examples), *(e.rejected_ids for e in examples)]
    assert [batch["input_ids"][index][mask[index] == 1].tolist() for index in range(10)] == [list(a) for a in answers]
