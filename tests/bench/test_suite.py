"""The bench end to end at sizes of a dozen rows: measured, resumed, rendered. Times are not looked at."""

import dataclasses
import json
import sys
import types
from pathlib import Path

import pytest
import torch

from bench.inputs.problems import Head, Projection, sequence_bounds
from bench.render import report as render
from bench.scripts import memory_caps, profile_step
from bench.suite import __main__ as suite
from bench.suite import measure
from bench.suite.group import Implementation
from bench.suite.implementations import attention, logps, lora
from bench.suite.parts import PARTS
from bench.suite.parts import lora as lora_part
from bench.suite.parts.attention import attention_group
from bench.suite.parts.kernels import fused_linear_group, fused_logits_group, linear_group, logits_group
from bench.suite.record import environment
from bench.suite.shelf import Shelf
from mdpo.memory.live import LiveMemory

CPU = torch.device("cpu")
TINY = Head("tiny", 16, 40)
LAYER = Projection("tiny", "q", 16, 24, bias=True, rank=4)


def not_installed() -> None:
    raise ImportError("No module named 'someone_elses'")


def broken() -> None:
    raise RuntimeError("does not compile here")


@pytest.mark.slow
def test_a_group_is_measured_resumed_and_rendered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = (
        Implementation(name="missing peer", role="peer", load=not_installed),
        Implementation(name="broken peer", role="peer", load=lambda: lambda *_: broken()),
        Implementation(name="gpu peer", role="peer", load=not_installed, devices=("cuda",)),
    )
    ours_and_eager = tuple(i for i in logps.LINEAR_TOKEN_LOGPS if i.name in ("ours", "torch eager"))
    conditions = environment(CPU)
    for rows in (4, 12):
        group = linear_group(TINY, rows, torch.float32, CPU, "frozen head")
        group = dataclasses.replace(group, implementations=ours_and_eager + extra)
        found = {r.implementation: r for r in measure.measure_group(group, CPU, tmp_path, conditions, 0.01)}
        assert [r.status for r in found.values()] == ["ok", "ok", "skipped", "failed", "skipped"]
        assert found["missing peer"].reason == "No module named 'someone_elses'"
        assert found["broken peer"].reason == "RuntimeError: does not compile here"
        assert found["gpu peer"].reason == "needs cuda"
        again = measure.measure_group(group, CPU, tmp_path, conditions, 0.01)
        assert {r.implementation for r in again} == {"missing peer", "broken peer", "gpu peer"}
        # Another commit is measured anew.
        assert len(measure.measure_group(group, CPU, tmp_path, conditions | {"commit": "later"}, 0.01)) == 5
    ours = found["ours"]
    assert ours.runs >= 3 and ours.median_ms and ours.floor_ms and ours.ratio_to_floor == ours.median_ms / ours.floor_ms
    assert max(ours.errors.values()) < 1e-4

    pytest.importorskip("matplotlib")
    written = render.render(tmp_path, tmp_path / "report")
    assert written[0].name == "RESULTS.md" and written[1].name.endswith("kernels-linear_token_logps.png")
    text = written[0].read_text(encoding="utf-8")
    record = next(r for r in Shelf(tmp_path).records() if r.implementation == "ours" and r.shape["N"] == 12)
    assert record.peak_bytes is not None and "missing peer: skipped, No module named" in text
    assert f"| **ours** | {render.number(record.median_ms)} |" in text
    picture = written[1].relative_to(tmp_path / "report").as_posix()
    assert written[1].exists() and f"![linear_token_logps]({picture})" in text
    assert text == render.markdown(Shelf(tmp_path).records(), {picture})


def test_every_kernel_group_measures_what_it_says() -> None:
    """Each group's inputs, floor and errors: eager PyTorch and ours both compute what float64 says."""
    groups = [
        linear_group(TINY, 12, torch.float32, CPU, "no grad"),
        linear_group(TINY, 12, torch.float32, CPU, "trainable head"),
        logits_group(TINY, 12, torch.float32, CPU),
        fused_logits_group(TINY, 12, torch.float32, CPU),
        fused_linear_group(TINY, 12, torch.float32, CPU),
        attention_group(("tiny", 4, 2, 8), 5, 3, 2, torch.float32, CPU),
        *(lora_part.lora_group(LAYER, 12, torch.float32, CPU, backward) for backward in (True, False)),
    ]
    for group in groups:
        prepared = group.prepare()
        assert prepared.floor is not None
        prepared.floor.run()
        for implementation in group.implementations:
            if implementation.name in ("ours", "torch eager", "torch addmm", "peft", "peft, as it comes"):
                bound = prepared.bind(implementation.load())
                found = bound.errors(bound.run())
                # The worst row of a confident token is what eager float32 gets wrong, and what the bench is to show.
                assert all(e < 1e-3 for name, e in found.items() if name != "gradient, worst row"), (group.op, found)


def test_three_calls_compute_what_the_packed_one_does() -> None:
    """The baselines of the attention part hold the same three branches: their outputs are the packed call's rows."""
    rows, generator = 2 * (2 * 5 + 3 * 3), torch.Generator().manual_seed(0)
    tensors = [torch.randn(rows, heads, 8, generator=generator) for heads in (4, 2, 2, 4)]
    problem = attention.AttentionProblem(*(t.requires_grad_() for t in tensors[:3]), tensors[3], 2, 5, 3)
    packed = attention.packed(problem)[0]()[0].view(2, 19, 4, 8)
    varlen, sdpa = attention.three_varlen_calls(problem)[0](), attention.three_sdpa_calls(problem)[0]()
    for branch, (own, first) in enumerate(((slice(0, 8), 0), (slice(8, 11), 5), (slice(11, 19), 0))):
        apart = varlen[4 * branch].view(2, 8, 4, 8)
        torch.testing.assert_close(packed[:, own], apart[:, first:])
        torch.testing.assert_close(apart, sdpa[4 * branch].transpose(1, 2))


def test_unsloth_s_layer_is_called_as_its_models_call_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """x with a batch, no state of a quantisation, no bias; in a process of its own, after all others."""

    class LoRA_W:
        @staticmethod
        def apply(X, W, W_quant, A, B, S):  # as unsloth/kernels/fast_lora.py has it
            assert X.dim() == 3 and W_quant is None
            return X @ W.t() + S * (X @ A.t()) @ B.t()

    stand_in = types.ModuleType("unsloth.kernels.fast_lora")
    stand_in.LoRA_W = LoRA_W  # pyright: ignore[reportAttributeAccessIssue]
    problem = lora.lora_problem(dataclasses.replace(LAYER, bias=False), 12, torch.float32, CPU)
    with monkeypatch.context() as patched:
        for name in ("unsloth", "unsloth.kernels", "unsloth.kernels.fast_lora"):
            patched.setitem(sys.modules, name, stand_in)
        torch.testing.assert_close(lora.unsloth(problem)(problem.x), lora.ours(problem)(problem.x))
    listed = [group for group in PARTS["kernels"].groups(torch.device("cuda")) if group.op == "lora_linear"]
    assert listed and all(group.implementations[-1].patches for group in listed)
    assert not any(group.own_process for group in listed)
    monkeypatch.setattr(lora_part, "find_spec", lambda name: name)
    assert all(group.own_process for group in lora_part.lora_groups(torch.bfloat16, torch.device("cuda")))
    assert not any(group.own_process for group in lora_part.lora_groups(torch.float32, CPU))
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    for implementation in (lora.LORA_LINEAR[-1], lora.LORA_LINEAR_BIAS[-1]):
        with pytest.raises(ImportError, match="No module named 'unsloth'|takes no bias"):
            implementation.load()


def test_live_memory_counts_what_is_alive_at_once() -> None:
    with LiveMemory() as memory:
        kept = torch.zeros(1000)  # 4000 bytes
        torch.zeros(500)  # dies at once
        view = kept.view(10, 100)  # nothing new
        view.add_(1)
        more = kept * 2
    assert (memory.peak, memory.live) == (8000, 8000)
    del kept, view, more
    assert memory.live == 0


def test_sequences_are_uneven_and_none_is_empty() -> None:
    bounds = sequence_bounds(9, 50, CPU)
    lengths = bounds.diff()
    assert bounds[0] == 0 and bounds[-1] == 50 and len(lengths) == 9 and lengths.min() >= 1
    assert len(lengths.unique()) > 1


def test_every_part_lists_groups_for_both_devices_without_touching_them() -> None:
    for name in PARTS:
        for device in (CPU, torch.device("cuda")):
            groups = PARTS[name].groups(device)
            assert groups and all(group.part == name for group in groups)
            assert len({(group.op, group.case) for group in groups}) == len(groups)


def test_the_typical_size_is_measured_whole_before_any_other() -> None:
    sizes = [group.shape.get("N", 4096) for group in PARTS["kernels"].groups(torch.device("cuda"))]
    assert 4096 not in sizes[sizes.index(1024) :]


def test_all_parts_fit_ten_minutes_of_a_cpu() -> None:
    assert sum(part.cpu_minutes for part in PARTS.values()) <= 10


def test_the_command_line_measures_within_its_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["kernels", "--out", str(tmp_path), "--device", "cpu", "--only", "sequence_logps", "--seconds", "0.01"]
    assert suite.main(arguments) == 0
    assert {r.op for r in Shelf(tmp_path).records()} == {"sequence_logps"}
    assert suite.main([*arguments, "--minutes", "0"]) == 0
    assert "0 minutes are up, 1 groups left" in capsys.readouterr().out


def test_what_would_be_measured_is_listed_and_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert suite.main(["kernels", "--list", "--device", "cpu", "--only", "sequence_logps"]) == 0
    assert capsys.readouterr().out == "kernels: sequence_logps S=6,N=1024, float32: ours; torch eager\n"
    assert suite.main(["step", "--list", "--device", "cpu", "--only", "layers=liger"]) == 0
    assert capsys.readouterr().out.endswith("layers=liger, float32: none on cpu\n")
    assert suite.main(["--list", "--device", "cuda"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == sum(len(part.groups(torch.device("cuda"))) for part in PARTS.values())
    with pytest.raises(SystemExit, match="2"):
        suite.main(["kernels"])
    assert "give --out DIR, or --list" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("main", [suite.main, profile_step.main])
def test_a_gpu_that_is_not_there_is_one_line(main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--device", "cuda", "--out", str(tmp_path / "out")])
    assert "--device: PyTorch sees no CUDA device" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_word_that_no_group_contains_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--list"], ["--out", str(tmp_path)]):
        with pytest.raises(SystemExit, match="2"):
            suite.main(["kernels", "--device", "cpu", "--only", "sequence_logp5", *more])
        assert "--only: no group of kernels contains 'sequence_logp5'" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("main", "arguments", "part"),
    [
        (suite.main, ["kernels", "--device", "cpu"], "kernels"),
        (profile_step.main, ["--device", "cpu"], "profile"),
        (memory_caps.main, ["--rehearse"], "memory"),
    ],
)
def test_where_no_records_can_go_is_one_line_before_anything_is_measured(
    main, arguments, part, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn, file = tmp_path / "torn", tmp_path / "file"
    (torn / "d").mkdir(parents=True)
    (torn / "d" / f"{part}.json").write_text('{"schema": 2')
    file.write_text("")
    for out, says in ((torn, f"{torn}/d/{part}.json: not JSON"), (file, f"--out: {file} is a file")):
        with pytest.raises(SystemExit, match="2"):
            main([*arguments, "--out", str(out)])
        assert says in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("option", ["--minutes", "--seconds"])
@pytest.mark.parametrize("value", ["nan", "-1", "soon"])
def test_a_time_that_no_clock_reaches_is_one_line(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        suite.main(["kernels", "--out", str(tmp_path), f"{option}={value}"])
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"{option}: {value!r} is not a number from 0 on")


@pytest.mark.slow
def test_a_group_that_changes_its_process_gets_one_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = next(g for g in PARTS["kernels"].groups(CPU) if g.op == "sequence_logps")

    def prepare_here() -> None:
        raise AssertionError("measured in the suite's own process")

    apart = dataclasses.replace(group, own_process=True, prepare=prepare_here)
    monkeypatch.setitem(PARTS, "kernels", types.SimpleNamespace(groups=lambda device, tiny: [apart]))
    records = measure.run_part("kernels", CPU, tmp_path, 1, 0.01)
    assert {r.implementation for r in records} == {i.name for i in group.implementations}
    assert all(record in records for record in Shelf(tmp_path).records())
    assert next(r for r in records if r.implementation == "ours").median_ms


def test_no_process_is_started_to_find_that_all_peers_are_missing(tmp_path: Path, monkeypatch) -> None:
    group = next(g for g in PARTS["kernels"].groups(CPU) if g.op == "sequence_logps")
    missing = Implementation(name="missing peer", role="peer", load=not_installed)
    apart = dataclasses.replace(group, own_process=True, implementations=(missing,))
    monkeypatch.setitem(PARTS, "kernels", types.SimpleNamespace(groups=lambda device, tiny: [apart]))
    monkeypatch.setattr(measure, "_measure_apart", lambda *arguments: pytest.fail("a process was started"))
    (record,) = measure.run_part("kernels", CPU, tmp_path, 1, 0.01)
    assert (record.status, record.reason) == ("skipped", "No module named 'someone_elses'")


def test_what_is_no_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no records"):
        render.render(tmp_path, tmp_path)
    (tmp_path / "old.json").write_text(json.dumps({"schema": 0}))
    with pytest.raises(ValueError, match=r"old\.json: schema 0, expected 2"):
        Shelf(tmp_path).records()
    (tmp_path / "old.json").write_text("{")
    with pytest.raises(ValueError, match=r"old\.json: not JSON"):
        Shelf(tmp_path).records()
