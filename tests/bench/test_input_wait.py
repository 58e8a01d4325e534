"""The input bench at toy size: it measures, and a slow disk shows where nothing reads ahead."""

import json
import sys

import pytest

from bench.scripts import input_wait

pytestmark = pytest.mark.slow

ARGUMENTS = ["--steps", "4", "--examples-per-step", "2", "--step-ms", "1500", "--read-ms", "100"]


def test_workers_hide_a_slow_disk(tmp_path, monkeypatch, capsys):
    waits = []
    for workers in ("0", "2"):
        out = tmp_path / "deep" / f"{workers}.json"
        monkeypatch.setattr(sys, "argv", ["input_wait", *ARGUMENTS, "--workers", workers, "--out", str(out)])
        input_wait.main()
        record = json.loads(out.read_text())
        assert record == json.loads(capsys.readouterr().out)
        assert record["steps"] == 3
        assert record["wait_share"] == pytest.approx(record["wait_ms"] / record["total_ms"], rel=1e-6)
        waits.append(record["wait_ms"])
    assert waits[0] >= 200  # two images, and nothing reads ahead
    assert waits[1] < waits[0]
