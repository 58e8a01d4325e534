"""Ratios and tables from records; what is committed is what the committed records say."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench import readme, render
from bench.record import Record
from bench.targets import RATIOS

ROOT = Path(__file__).parents[2]
CACHED = next(r for r in RATIOS if r.op == "train_step" and r.ours == "ours, reference cached")


def record(implementation: str, milliseconds: float | None, peak: int = 100, **environment) -> Record:
    return Record(
        part="step", op="train_step", shape={"model": "m", **dict(CACHED.shape)}, dtype="bfloat16",
        implementation=implementation, role="ours" if implementation.startswith("ours") else "peer",
        status="ok" if milliseconds else "skipped", median_ms=milliseconds, peak_bytes=peak,
        environment={"device": "NVIDIA H200", "device_type": "cuda", "commit": "a", **environment},
    )  # fmt: skip


def test_the_readme_and_the_results_show_the_committed_records():
    records = render.committed_records()
    assert records
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.updated(text, records) == text, "run python -m bench.render bench/results"
    plots = {path.relative_to(ROOT / "bench").as_posix() for path in (ROOT / "bench" / "plots").glob("*.png")}
    results = (ROOT / "bench" / "RESULTS.md").read_text(encoding="utf-8")
    assert render.markdown(records, plots) == results, "run python -m bench.render bench/results"


def test_another_number_in_the_json_is_seen_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    records = [record("ours, reference cached", 50.0), record("TRL DPOTrainer", 65.0)]
    shown = readme.updated(text, records)
    assert shown != text and "| m 1.30 | ≥ 1.25 |" in shown
    assert "| m 1.20 | ≥ 1.25 |" in readme.updated(text, [records[0], replace(records[1], median_ms=60.0)])


@pytest.mark.parametrize(("theirs", "verdict"), [(62.5, "met"), (62.4, "missed")])
def test_a_target_is_met_or_missed(theirs, verdict):
    lines = render.ratios([record("ours, reference cached", 50.0), record("TRL DPOTrainer", theirs)])
    assert f"| {CACHED.name} | NVIDIA H200 | m | {theirs / 50:.2f} | ≥ 1.25 | {verdict} |" in lines


def test_memory_has_an_upper_bound():
    memory = next(r for r in RATIOS if r.measure == "memory" and r.target)
    found = [record(memory.ours, 1.0, peak=105), record(memory.other, 1.0, peak=100)]
    assert memory.of(found) == {"m": 1.05}
    assert memory.met(1.05) and not memory.met(1.06)


def test_what_was_not_measured_is_said():
    lines = render.ratios([])
    assert all(any(ratio.name in line and "not measured yet" in line for line in lines) for ratio in RATIOS)
    assert CACHED.of([record("ours, reference cached", 50.0), record("TRL DPOTrainer", None)]) == {}


def test_rows_of_two_runs_make_no_ratio():
    assert CACHED.of([record("ours, reference cached", 50.0), record("TRL DPOTrainer", 65.0, commit="b")]) == {}


def test_a_cpu_has_no_verdict():
    pair = [
        record(name, 50.0, device="CPU", device_type="cpu") for name in ("ours, reference cached", "TRL DPOTrainer")
    ]
    lines = [line for line in render.ratios(pair) if line.startswith(f"| {CACHED.name} |")]
    assert lines == [
        f"| {CACHED.name} | CPU | m | 1.00 | ≥ 1.25 |  |",
        f"| {CACHED.name} | H200 | | not measured yet | ≥ 1.25 | |",
    ]
