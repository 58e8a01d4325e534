"""Ratios and tables from records; what is committed is what the committed records say."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench import blocks
from bench.render import __main__ as command
from bench.render import readme
from bench.render import report as render
from bench.render.targets import RATIOS
from bench.suite.cards import card_of, peak_of
from bench.suite.record import Record

ROOT = Path(__file__).parents[2]
CACHED = next(r for r in RATIOS if r.op == "train_step" and r.ours == "ours, reference cached")


def record(implementation: str, milliseconds: float | None, peak: int = 100, **environment) -> Record:
    return Record(
        part="step",
        op="train_step",
        shape={"model": "m", **dict(CACHED.shape)},
        dtype="bfloat16",
        implementation=implementation,
        role="ours" if implementation.startswith("ours") else "peer",
        status="ok" if milliseconds else "skipped",
        median_ms=milliseconds,
        peak_bytes=peak,
        environment={"device": "NVIDIA H200", "device_type": "cuda", "commit": "a", **environment},
    )


def test_the_readme_and_the_results_show_the_committed_records():
    records = render.records_below(render.COMMITTED)
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
    assert shown != text and "| | H200, m |" in shown and f"| {readme.HEADLINES[0].text} | 1.30 / – |" in shown
    assert "| 1.20 / – |" in readme.updated(text, [records[0], replace(records[1], median_ms=60.0)])


def test_a_page_is_brought_up_to_date_in_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text("a\n<!-- mine: by whom -->\nold\n<!-- /mine -->\nb\n")
    assert blocks.rewrite("page.md", lambda text: blocks.fill(text, "mine", ["new"])) == tmp_path / "page.md"
    assert (tmp_path / "page.md").read_text() == "a\n<!-- mine: by whom -->\nnew\n<!-- /mine -->\nb\n"


def test_the_readme_shows_what_was_measured_alone():
    assert readme.block([]) == ["Not measured yet."]
    records = [record("ours, reference cached", 50.0), record("TRL DPOTrainer", 65.0)]
    cpu = [replace(r, environment={"device": "CPU", "device_type": "cpu", "threads": 2}) for r in records]
    lines = readme.block([*records, *cpu])
    assert lines[0] == "| | H200, m | CPU, 2 threads, m |"
    assert lines[2:] == [f"| {readme.HEADLINES[0].text} | 1.30 / – | 1.30 / – |"]
    assert readme.block(cpu)[-1] == "On a GPU: not measured yet."


@pytest.mark.parametrize(("theirs", "verdict"), [(70.0, "met"), (69.9, "missed")])
def test_a_target_is_met_or_missed(theirs, verdict):
    lines = render.ratios([record("ours, reference cached", 50.0), record("TRL DPOTrainer", theirs)])
    assert f"| {CACHED.name} | ≥ 1.40 | not measured yet | m {theirs / 50:.2f}, {verdict} |" in lines


def test_every_device_has_a_column_of_its_own():
    """Two cards with targets, one without, one whose name only looks like another's."""
    times = {"NVIDIA H100 80GB HBM3": 75.0, "NVIDIA H100 PCIe": 65.0, "NVIDIA H200": 80.0, "NVIDIA GH200 480GB": 55.0}
    records = [
        record(name, 50.0 if name.startswith("ours") else theirs, device=device)
        for device, theirs in times.items()
        for name in ("ours, reference cached", "TRL DPOTrainer")
    ]
    lines = render.ratios(records)
    assert lines[4] == "| ours: against | target (H100 and H200) | H100 | H200 | H100 PCIe | NVIDIA GH200 480GB |"
    assert f"| {CACHED.name} | ≥ 1.40 | m 1.50, met | m 1.60, met | m 1.30 | m 1.10 |" in lines
    header, _, row = readme.block(records)
    assert header == "| | H100, m | H200, m | H100 PCIe, m | NVIDIA GH200 480GB, m |"
    assert row.endswith(" | 1.50 / – | 1.60 / – | 1.30 / – | 1.10 / – |")


def test_a_ratio_of_two_shapes_is_of_one_run():
    (whole,) = [ratio for ratio in RATIOS if ratio.other_shape]
    shape = record("", 1.0).shape
    ours = replace(record(whole.ours, 50.0), shape=shape | dict(whole.shape))
    today = replace(record(whole.other, 105.0), shape=shape | dict(whole.shape) | dict(whole.other_shape))
    assert whole.of([ours, today]) == {"m": 2.1} and whole.met(2.1) and not whole.met(1.9)
    assert whole.of([ours, replace(today, environment=today.environment | {"commit": "b"})]) == {}


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
    assert f"| {CACHED.name} | ≥ 1.40 | not measured yet | not measured yet | m 1.00 |" in render.ratios(pair)


@pytest.mark.parametrize(("content", "says"), [(None, "holds no records"), ("{}", "schema None"), ("{", "not JSON")])
def test_a_folder_without_records_is_one_line(content, says, tmp_path, capsys):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(SystemExit, match="2"):
        command.main([str(tmp_path)])
    assert says in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "RESULTS.md").exists()


@pytest.mark.parametrize(
    ("device", "card", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "H100", 989e12),
        ("NVIDIA H100 PCIe", "H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", "H100 NVL", 835e12),
        ("NVIDIA H200", "H200", 989e12),
        ("NVIDIA H200 NVL", "H200 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", "A100", 312e12),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 5090", "RTX 5090", 210e12),
        *(
            (name, name, None)
            for name in (
                "NVIDIA GH200 480GB",
                "NVIDIA GeForce RTX 4090 Laptop GPU",
                "NVIDIA GeForce RTX 4090 D",
                "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
                "NVIDIA RTX A1000",
            )
        ),
    ],
)
def test_a_card_is_known_by_its_drivers_name(device, card, peak):
    assert (card_of(device), peak_of(device)) == (card, peak)
