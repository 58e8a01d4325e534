"""Two processes evaluate, predict and count as one does, and say what there is to say once."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.trainer.processes import run

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("distributed_evaluation_run.py")


def test_two_processes_find_what_one_finds(tmp_path):
    world = tiny.world(tmp_path / "world", count=11)
    found = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        done = run(SCRIPT, processes, *map(str, world), str(output))
        found.append(json.loads((output / "found.json").read_text()))
        for line in ("label_names: no effect, ", "eval_strategy: epoch, because there are 5 evaluation rows"):
            assert done.stderr.count(line) == 1
    one, two = found
    assert two["tokens"] == one["tokens"] > 0
    assert len(one["evaluations"]) == 2 and two["evaluations"] == pytest.approx(one["evaluations"], abs=1e-4)
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)
    for name, numbers in one["predictions"].items():
        assert np.shape(numbers) == (11, 3)
        np.testing.assert_allclose(two["predictions"][name], numbers, atol=1e-3)
