"""Whatever is wrong with a file of a model or an adapter: it loads and answers, or it is refused in one line.

As a script it goes on for as long as one likes: ``python -m tests.models.test_any_folder FOLDER MINUTES [SEED]``.
"""

import json
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mdpo.data import PromptRow, read_rows
from mdpo.errors import InputError
from mdpo.evaluation.generate import generate
from mdpo.models import load, load_processor
from mdpo.models.adapters import load_adapter
from mdpo.shown import shown
from tests import tiny
from tests.models.mutations import copied, mutate

SECONDS = 60  # for one folder, on a machine that does other things too


def make_world(folder: Path) -> Path:
    tiny.world(folder, 1)
    model = load(folder / "model")
    model.save_pretrained(folder / "sharded", max_shard_size="60KB")
    tiny.processor().save_pretrained(folder / "sharded")
    config = LoraConfig(
        r=4,
        target_modules=r".*language_model\..*(q|v)_proj",
        rank_pattern={"q_proj": 4},
        alpha_pattern={"v_proj": 8},
        modules_to_save=["linear_2"],
    )
    get_peft_model(model, config).save_pretrained(folder / "adapter")
    tiny.processor().save_pretrained(folder / "adapter")
    return folder


def try_one(world: Path, seed: int) -> tuple[str, str]:
    """What was done to a folder, and what came of it: "fine", "refused", or the beginning of what must not be."""
    rng = random.Random(seed)
    kind = rng.choice(("model", "model", "sharded", "adapter"))
    folder = copied(world / kind, world / "tried")
    done = f"{kind}: {mutate(folder, rng)}"
    torch.manual_seed(seed)
    rows = read_rows(world / "train.jsonl", kind=PromptRow)
    if kind == "adapter":
        base = load(world / "model")
        actions: list[Callable] = [
            lambda: list(generate(load_adapter(base, folder), load_processor(folder), rows, max_new_tokens=2))
        ]
    else:
        actions = [
            lambda: load_processor(folder),
            lambda: load_adapter(load(folder), world / "adapter"),
            lambda: list(generate(load(folder), load_processor(folder), rows, max_new_tokens=2)),
        ]
    outcome = "fine"
    for action in actions:
        signal.signal(signal.SIGALRM, _late)
        signal.alarm(SECONDS)
        try:
            action()
        except InputError as error:
            outcome = "refused"
            if str(error) != shown(str(error)) or len(str(error)) > 1500:
                return done, f"a message that is not one plain line: {str(error)[:300]!r}"
        except Exception:
            return done, traceback.format_exc()[-1500:]
        finally:
            signal.alarm(0)
    return done, outcome


def _late(*_) -> None:
    raise TimeoutError(f"not done after {SECONDS} s")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", range(0, 40, 10))
def test_no_folder_ends_in_anything_but_an_answer_or_one_line(world, start):
    found = Counter()
    for seed in range(start, start + 10):
        done, outcome = try_one(world, seed)
        assert outcome in ("fine", "refused"), f"seed {seed}: {done}\n{outcome}"
        found[outcome] += 1
    assert found["refused"], "something was wrong with some of them"


def main(folder: Path, minutes: float, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    world = make_world(folder)
    end, found = time.time() + 60 * minutes, Counter()
    while time.time() < end:
        done, outcome = try_one(world, seed)
        found[outcome if outcome in ("fine", "refused") else "BAD"] += 1
        if outcome not in ("fine", "refused"):
            print(f"seed {seed}: {done}\n{outcome}\n", flush=True)
        seed += 1
    print(json.dumps(found), "up to seed", seed, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), *map(int, sys.argv[3:]))
