"""The input bench at toy size: it measures, and a slow disk shows where nothing reads ahead."""

import json
import sys

import pytest

from bench import input_wait


@pytest.mark.parametrize(("workers", "low", "high"), [(0, 80.0, 10_000.0), (2, 0.0, 80.0)])
def test_workers_hide_a_slow_disk(tmp_path, monkeypatch, capsys, workers, low, high):
    out = tmp_path / "deep" / "wait.json"
    arguments = ["--steps", "4", "--examples-per-step", "2", "--step-ms", "1500", "--read-ms", "40"]
    monkeypatch.setattr(sys, "argv", ["input_wait", *arguments, "--workers", str(workers), "--out", str(out)])
    input_wait.main()
    record = json.loads(out.read_text())
    assert record == json.loads(capsys.readouterr().out)
    assert record["steps"] == 3
    assert low <= record["wait_ms"] <= high  # two images at 40 ms, unless they are there before they are asked for
    assert record["wait_share"] == pytest.approx(record["wait_ms"] / record["total_ms"], rel=1e-6)
