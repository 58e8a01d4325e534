"""The sampling bench at toy size: both sides draw as many tokens, and the record says how fast."""

import json
import sys

import pytest

from bench.scripts import sampling


def test_both_sides_draw_as_many_tokens(tmp_path, monkeypatch, capsys):
    out = tmp_path / "deep" / "sampling.json"
    monkeypatch.setattr(sys, "argv", ["sampling", "--rounds", "1", "--tokens", "2", "--out", str(out)])
    sampling.main()
    record = json.loads(out.read_text())
    assert record == json.loads(capsys.readouterr().out)
    found = [each for each in record.values() if isinstance(each, dict) and "speed" in each]
    assert len(found) == 2
    for each in found:
        assert each["speed"] == pytest.approx(each["plain_ms"] / each["ours_ms"])
        assert each["ours_tokens_per_s"] == pytest.approx(32 / each["ours_ms"] * 1e3)
