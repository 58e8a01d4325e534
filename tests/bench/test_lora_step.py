"""The comparison of whole steps at toy size: both are taken in turn, and what is printed is what is written."""

import json

import pytest

from bench.inputs.models import LLAVA_7B
from bench.scripts import lora_step


def test_both_steps_are_taken_in_turn(tmp_path, capsys):
    out = tmp_path / "deep" / "lora_step.json"
    size = ["--hidden", "128", "--layers", "1", "--pairs", "2", "--turns", "1"]
    lora_step.main([*size, "--profile", "3", "--out", str(out)])
    record = json.loads(out.read_text())
    assert capsys.readouterr().out.endswith(out.read_text())
    assert record["rank"] == 2 and record["tokens"] > 4 * 64
    for clock in ("wall", "processor"):
        ratio = record[f"peft, {clock} ms"] / record[f"fused, {clock} ms"]
        assert record[f"speed, {clock} time"] == pytest.approx(ratio) and ratio > 0


def test_the_miniature_has_llavas_proportions():
    text, real = lora_step.shape_of(512, 4).text, LLAVA_7B.text
    assert text.intermediate_size * real.hidden_size == real.intermediate_size * text.hidden_size
    assert text.vocab_size / text.num_hidden_layers == pytest.approx(
        real.vocab_size / real.num_hidden_layers / 8, rel=0.03
    )
    assert text.hidden_size // text.num_attention_heads == real.hidden_size // real.num_attention_heads
    problem = lora_step.miniature(512, 4, 32, False)
    assert problem.lora_r / text.hidden_size == 64 / real.hidden_size
