"""Every preset through the trainer on rows that bring all it reads: the start check, the steps, the metrics,
the cache.
"""

import json
import logging
import math

import pytest
from peft import LoraConfig

from mdpo import MDPOConfig, MDPOTrainer
from mdpo.data import read_rows
from mdpo.errors import InputError
from mdpo.models import LANGUAGE_LINEAR, load, load_processor
from mdpo.objectives import PRESETS
from mdpo.packing import pack
from tests import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Six rows with three rejected pictures each and the answer to the first; one row of text alone."""
    folder = tmp_path_factory.mktemp("world")
    model, _ = tiny.world(folder, count=24)
    rows = tiny.records(folder, 24)
    for index, row in enumerate(rows[:6]):
        row["rejected_images"] = [f"{6 + 3 * index + k}.png" for k in range(3)]
        row["contrast"] = "the answer to the other picture"
    rows[5] = {name: rows[5][name] for name in ("id", "prompt", "chosen", "rejected")}
    return model, rows[:6], folder


def trainer(world, output, **settings):
    model, rows, folder = world
    arguments = {
        "examples_per_step": 3,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "negative": "own",
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return MDPOTrainer(
        model=load(model),
        args=MDPOConfig(output_dir=str(output), **{**arguments, **settings}),
        train_dataset=read(folder, rows),
        eval_dataset=read(folder, rows[:4]) if "eval_strategy" in settings else None,
        processing_class=load_processor(model),
        peft_config=LoraConfig(r=4, target_modules=LANGUAGE_LINEAR),
    )


def read(folder, rows):
    path = folder / f"{hash(json.dumps(rows))}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_rows(path)


def at_the_start(objective) -> float:
    """The loss where every reward is 0, of an example that has every branch."""
    value = {"square": lambda term: term.offset**2, "linear": lambda term: term.offset}
    value["log_sigmoid"] = lambda term: math.log1p(len(term.matrix) * math.exp(term.offset))
    return sum(term.weight * value[term.link](term) for term in objective.terms)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains(world, tmp_path, preset, caplog):
    objective = PRESETS[preset]
    run = trainer(world, tmp_path, objective=preset, eval_strategy="steps", eval_steps=2)
    data = run.train_dataset
    for index in range(len(data)):
        assert pack([data[index]], run.model, branches=objective.branches).num_tokens == data.lengths[index]
    with caplog.at_level(logging.INFO, "mdpo"):
        run.train()
    (checked,) = [r.message for r in caplog.records if r.message.startswith("start check")]
    # The two shortest examples with a picture have every branch, the text alone those that read its own prompt.
    assert (
        f"{2 * len(objective.branches) + sum(branch in ('chosen', 'rejected') for branch in objective.branches)} "
        "branches" in checked
    )
    first, last = [entry for entry in run.state.log_history if "loss" in entry]
    evaluated = next(entry for entry in run.state.log_history if "eval_loss" in entry)
    for name in (term.name for term in objective.terms):
        assert f"terms/{name}" in first and f"eval_terms/{name}" in evaluated
    whole = at_the_start(objective)
    assert first["loss"] == pytest.approx(whole, abs=1e-5) or first["loss"] < whole, "a row of text alone lacks terms"
    assert last["loss"] < first["loss"]
    preferences = [t for t in objective.terms if t.link == "log_sigmoid" and not any(sum(r.values()) for r in t.matrix)]
    for term in preferences:
        assert first[f"terms/{term.name}/margins"] == pytest.approx(0, abs=1e-6)
        assert 0 <= last[f"terms/{term.name}/accuracies"] <= 1
    assert len(preferences) == {"svco": 4, "symmpo": 3, "c2dpo": 3, "mdpo": 2, "rdpo": 2, "misp": 2}.get(preset, 1)


def test_what_one_objective_computed_another_finds(world, tmp_path, caplog):
    cache = str(tmp_path / "cache")
    with caplog.at_level(logging.INFO, "mdpo"):
        for name in ("dpo", "mdpo", "symmpo", "dpo"):
            trainer(
                world, tmp_path / name, objective=name, reference_cache_dir=cache, overwrite_output_dir=True
            ).train()
    lines = [r.message.split(": ")[-1] for r in caplog.records if r.message.startswith("reference cache")]
    # Five rows with a picture and one of text alone.
    assert lines == [
        "0 branches found, 12 computed",
        "12 branches found, 5 computed",
        "17 branches found, 10 computed",
        "12 branches found, 0 computed",
    ]


def test_rows_that_lack_what_an_objective_reads_are_refused(world, tmp_path):
    model, rows, folder = world
    with pytest.raises(InputError, match="rejected_images.*1 per image, and the objective reads 3"):
        trainer(
            (model, [{**row, "rejected_images": row["rejected_images"][:1]} for row in rows[:5]], folder),
            tmp_path,
            objective="misp",
        )
    with pytest.raises(InputError, match="contrast"):
        bare = [{name: value for name, value in row.items() if name != "contrast"} for row in rows]
        trainer((model, bare, folder), tmp_path, objective="symmpo")
    with pytest.raises(InputError, match="set negative: own"):
        trainer(world, tmp_path, objective="symmpo", negative="crop_0_20")


def test_three_drawn_negatives(world, tmp_path):
    model, rows, folder = world
    bare = [{name: value for name, value in row.items() if name not in ("rejected_images", "contrast")} for row in rows]
    run = trainer((model, bare, folder), tmp_path, objective="misp", negative="random_image")
    pictures = [image["pixel_values"] for image in run.train_dataset[0].negatives]
    assert len(pictures) == 3 and not any((a == b).all() for a in pictures[:1] for b in pictures[1:])
    run.train()


def test_rows_of_which_an_objective_reads_nothing_are_named(world, tmp_path):
    model, rows, folder = world
    sight = [{"name": "sight", "rows": {"contrast@negative": 1, "chosen@negative": -1}}]
    with pytest.raises(
        InputError, match="row 5.*: images: is empty, so that the row has nothing of what the objective reads"
    ):
        trainer(world, tmp_path, objective=sight)
    apart = [{"name": "apart", "rows": {"chosen": 1, "contrast@negative": -1}}]
    half = [{name: value for name, value in row.items() if name != "contrast"} for row in rows[:5]]
    alone = {**rows[5], "contrast": "the answer to a picture that is not there"}
    with pytest.raises(
        InputError, match=r"^train_dataset: no row has all that any term .* \(as apart: chosen, contrast@negative\)"
    ):
        trainer((model, [*half, alone], folder), tmp_path, objective=apart)
    run = trainer(world, tmp_path, objective="svco")
    with pytest.raises(InputError, match="^eval_dataset: no row has all that any term of the objective reads"):
        run.evaluate(read(folder, [alone]))
