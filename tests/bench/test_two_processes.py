"""The two-process bench at toy size."""

import json

import pytest
import torch.distributed

from bench.scripts.two_processes import main, tokens_per_second

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="PyTorch was built without gloo")
def test_a_round_of_each_kind(tmp_path, capsys):
    out = tmp_path / "deep" / "two.json"
    main(["--shape", "llava-tiny", "--steps", "2", "--pairs", "4", "--rounds", "1", "--out", str(out)])
    record = json.loads(out.read_text())
    (together,), (apart,) = record["tokens_per_second_ddp"], record["tokens_per_second_apart"]
    assert record["communication_and_waiting_share"] == pytest.approx(1 - together / apart)
    assert 1 <= record["fullest_rank_over_mean"] < 2
    assert record["gradient_bytes"] % 4 == 0 and record["all_reduce_seconds"] > 0
    assert "communication and waiting" in capsys.readouterr().out


def test_throughput_is_summed_over_processes():
    assert tokens_per_second([{"tokens": [10, 20], "seconds": [1, 2]}, {"tokens": [8], "seconds": [4]}]) == 12
