"""The packed attention against the oracle in float64: every backend that is here, forward and every gradient."""

import itertools
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mdpo_kernels import (
    Segments,
    attention_gather,
    attention_segmentwise,
    backend,
    reference,
    varlen_attention,
)
from mdpo_kernels.attention import Backend, choose_backend
from tests.kernels.packed_rows import PATTERNS, Grads, inputs, run
from tests.numerics import assert_as_exact_as_torch

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="FlashAttention runs on a CUDA device and there is none"
)
needs_triton = pytest.mark.skipif(
    not torch.cuda.is_available() and not backend.INTERPRETED, reason="no CUDA device and TRITON_INTERPRET is not 1"
)

# Heads: none shared, groups of two and of three. Head dims: LLaVA's 128, Phi's 80, tiny and odd ones of test models.
HEADS = [(2, 2, 16), (4, 2, 80), (3, 1, 5), (2, 2, 128)]


def assert_as_good_as_torch(ours: Grads, tensors: Grads, segments: Segments, **options: object) -> None:
    truth = run(reference.varlen_attention, tuple(t.double() for t in tensors), segments, **options)
    torchs = run(reference.varlen_attention, tensors, segments, **options)
    for name, got, same, expected in zip(("out", "dquery", "dkey", "dvalue"), ours, torchs, truth, strict=True):
        assert_as_exact_as_torch(got, truth=expected, torch_value=same, what=name)


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_segmentwise_equals_the_oracle_in_float64(pattern: str, heads: tuple[int, int, int]) -> None:
    segments = PATTERNS[pattern]
    tensors = inputs(segments.copies.shape[0], heads)
    assert_as_good_as_torch(run(varlen_attention, tensors, segments), tensors, segments)


# Shorter than a prompt, as long as one segment of most patterns, longer than some, longer than all
WINDOWS = [2, 4, 10, 11, 30]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_window_is_that_of_the_oracle(pattern: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = PATTERNS[pattern]
    tensors = inputs(segments.copies.shape[0], (4, 2, 16))
    for queries in (attention_segmentwise._WINDOW_QUERIES, 3):  # taken at a time
        monkeypatch.setattr(attention_segmentwise, "_WINDOW_QUERIES", queries)
        ours = run(varlen_attention, tensors, segments, window=window)
        assert_as_good_as_torch(ours, tensors, segments, window=window)


def test_a_window_reaches_back_into_the_prompt_that_a_response_reads() -> None:
    """Against scaled_dot_product_attention on a branch laid out apart: its prompt's rows 0 … 6, its own 10 … 13."""
    query, key, value = inputs(24, (2, 2, 16))[:3]
    out = varlen_attention(query, key, value, PATTERNS["example"], window=3)
    q, k, v = (t[[*range(7), *range(10, 14)]].transpose(0, 1)[None] for t in (query, key, value))
    apart = torch.arange(11)[:, None] - torch.arange(11)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=(apart >= 0) & (apart < 3))
    torch.testing.assert_close(out[10:14], expected[0].transpose(0, 1)[7:])


def test_a_window_of_one_key_gives_its_value() -> None:
    query, key, value = inputs(24, (4, 2, 16))[:3]
    out = varlen_attention(query, key, value, PATTERNS["three-readers"], window=1)
    torch.testing.assert_close(out, value.repeat_interleave(2, dim=1))


def test_a_window_that_cuts_nothing_changes_no_bit() -> None:
    segments = PATTERNS["three-readers"]
    tensors = inputs(24, (4, 2, 16), torch.float32)
    plain, windowed = (run(varlen_attention, tensors, segments, window=window) for window in (None, 12))
    assert all(map(torch.equal, plain, windowed))


def test_dense_blocks_equal_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU runs in fp32 and float64: no CPU tensor takes it by itself."""
    monkeypatch.setattr(attention_segmentwise, "_block_forward", attention_segmentwise._dense_forward)
    monkeypatch.setattr(attention_segmentwise, "_block_backward", attention_segmentwise._dense_backward)
    segments = PATTERNS["three-readers"]
    tensors = inputs(24, (4, 2, 16))
    assert_as_good_as_torch(run(varlen_attention, tensors, segments), tensors, segments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("pattern", ["example", "three-readers"])
def test_segmentwise_is_as_exact_as_torch_in_smaller_dtypes(pattern: str, dtype: torch.dtype) -> None:
    segments = PATTERNS[pattern]
    tensors = inputs(segments.copies.shape[0], (4, 2, 80), dtype)
    assert_as_good_as_torch(run(varlen_attention, tensors, segments), tensors, segments)


def test_oracle_equals_separate_causal_attentions() -> None:
    """The oracle itself, held against scaled_dot_product_attention on the three sequences laid out apart."""
    query, key, value = inputs(24, (2, 2, 16))[:3]
    packed = reference.varlen_attention(query, key, value, PATTERNS["example"])
    rejected = [*range(7), *range(10, 14)]
    for rows, kept in ((range(10), range(10)), (rejected, range(10, 14)), (range(14, 24), range(14, 24))):
        q, k, v = (t[list(rows)].transpose(0, 1)[None] for t in (query, key, value))
        apart = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[0].transpose(0, 1)
        torch.testing.assert_close(packed[list(kept)], apart[-len(kept) :])


def test_scale_is_used() -> None:
    segments = PATTERNS["example"]
    tensors = inputs(24, (2, 2, 16))
    ours = run(varlen_attention, tensors, segments, scale=0.7)
    for got, expected in zip(ours, run(reference.varlen_attention, tensors, segments, scale=0.7), strict=True):
        torch.testing.assert_close(got, expected)


def test_gradcheck() -> None:
    segments = PATTERNS["three-readers"]
    leaves = [t.requires_grad_() for t in inputs(24, (2, 1, 3))[:3]]
    assert torch.autograd.gradcheck(lambda *qkv: varlen_attention(*qkv, segments), leaves)


def test_scores_in_the_thousands_stay_finite() -> None:
    """A softmax without its maximum overflows here, and the merge of two blocks must not. p = exp(score − lse) cannot
    be more exact than fp32 holds a log-sum-exp of that size, in any implementation that keeps one."""
    segments = PATTERNS["example"]
    query, key, value, grad = inputs(24, (2, 2, 16), torch.float32)
    tensors = (query * 30, key * 30, value, grad)
    truth = run(reference.varlen_attention, tuple(t.double() for t in tensors), segments)
    resolution = 900 * 16 * torch.finfo(torch.float32).eps
    for got, expected in zip(run(varlen_attention, tensors, segments), truth, strict=True):
        torch.testing.assert_close(got, expected, rtol=resolution, atol=resolution)


@pytest.mark.parametrize("special", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("blocks", ["fused", "dense"])
def test_nan_and_infinities_come_out_as_softmax_has_them(
    blocks: str, special: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's kernel for CPUs makes 0 of a query that is NaN, and of keys at −inf."""
    if blocks == "dense":
        monkeypatch.setattr(attention_segmentwise, "_block_forward", attention_segmentwise._dense_forward)
        monkeypatch.setattr(attention_segmentwise, "_block_backward", attention_segmentwise._dense_backward)
    segments = PATTERNS["example"]
    for which in range(3):
        for rows in ([2], list(range(7)), [11], [0]):  # in a prefix, all of it, in a response, its first row
            tensors = [t.abs() for t in inputs(24, (2, 2, 8))]
            tensors[which][rows, :, 0] = special
            ours = run(varlen_attention, tuple(tensors), segments)
            expected = run(reference.varlen_attention, tuple(tensors), segments)
            for got, wanted in zip(ours[:2], expected[:2], strict=True):
                torch.testing.assert_close(got, wanted, equal_nan=True)
            for got, wanted in zip(ours[2:], expected[2:], strict=True):
                assert got.isnan().any() == wanted.isnan().any()


def test_views_and_strides_of_a_model_are_taken() -> None:
    """Models hand over (1, H, T, D) transposed and squeezed: no stride is the contiguous one."""
    segments = PATTERNS["example"]
    tensors = inputs(24, (4, 2, 16), torch.float32)
    strided = tuple(t.transpose(0, 1).contiguous().transpose(0, 1) for t in tensors)
    for got, expected in zip(
        run(varlen_attention, strided, segments), run(varlen_attention, tensors, segments), strict=True
    ):
        assert torch.equal(got, expected)


def test_checkpointing_gives_the_same_gradients() -> None:
    segments = PATTERNS["example"]
    tensors = inputs(24, (4, 2, 16), torch.float32)

    def checkpointed(*args: object) -> torch.Tensor:
        return checkpoint(varlen_attention, *args, use_reentrant=False)

    for got, expected in zip(
        run(checkpointed, tensors, segments), run(varlen_attention, tensors, segments), strict=True
    ):
        assert torch.equal(got, expected)


def test_saved_for_backward_is_not_the_gathered_copy() -> None:
    """Activations grow with the packed rows: the third branch costs no second copy of the prefix's keys and values."""
    segments = PATTERNS["three-readers"]
    rows, saved = segments.copies.shape[0], []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    leaves = [t.requires_grad_() for t in inputs(rows, (2, 2, 16))[:3]]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        varlen_attention(*leaves, segments)
    assert {t.shape[0] for t in saved if t.dim() == 3} == {rows}


def test_autocast_casts_as_torchs_own_attention_does() -> None:
    segments = PATTERNS["example"]
    query, key, value = inputs(24, (2, 2, 16), torch.float32)[:3]
    with torch.autocast("cpu", torch.bfloat16):
        out = varlen_attention(query, key, value.bfloat16(), segments)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, varlen_attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), segments))


@pytest.mark.parametrize("window", [0, 4])
def test_registered_op_is_sound_under_compile(window: int) -> None:
    """Schema, fake implementation and autograd registration, with fixed and with symbolic sizes."""
    segments = PATTERNS["example"]
    leaves = [t.requires_grad_() for t in inputs(24, (2, 1, 4), torch.float32)[:3]]
    args = (
        *leaves,
        segments.cu_seqlens_q,
        segments.cu_seqlens_k,
        segments.key_rows,
        segments.copies,
        segments.max_seqlen_q,
        segments.max_seqlen_k,
        0.5,
        window,
        False,
        "segmentwise",
    )
    torch.library.opcheck(torch.ops.mdpo_kernels.varlen_attention.default, args)


def test_compiles_without_a_graph_break() -> None:
    segments = PATTERNS["example"]
    tensors = inputs(24, (2, 2, 16), torch.float32)
    # aot_eager traces everything that inductor would and needs no compiler on the machine.
    compiled = torch.compile(varlen_attention, fullgraph=True, backend="aot_eager")
    for got, expected in zip(run(compiled, tensors, segments), run(varlen_attention, tensors, segments), strict=True):
        torch.testing.assert_close(got, expected)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sum_of_copies_kernel_equals_its_twin(dtype: torch.dtype) -> None:
    """A width that is no power of two, and holes in the table."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    segments = PATTERNS["three-readers"].to(device)
    gathered = torch.randn(len(segments.key_rows), 2, 5, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    truth = torch.zeros(24, 2, 5, dtype=torch.float64, device=device).index_add_(
        0, segments.key_rows, gathered.double()
    )
    for total in (
        attention_gather.sum_copies(gathered, segments.copies),
        attention_gather.sum_copies_plain(gathered, segments.copies),
    ):
        # Summed in fp32 and rounded once. (The interpreter rounds to bf16 towards zero, so one unit, not half of one.)
        torch.testing.assert_close(total.double(), truth, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_segments_know_who_reads_a_row() -> None:
    segments = PATTERNS["three-readers"]
    assert segments.shared and not PATTERNS["unshared"].shared
    assert (segments.max_seqlen_q, segments.max_seqlen_k) == (9, 12)
    assert segments.cu_seqlens_q.tolist() == [0, 9, 12, 17, 22, 24]
    for row, readers in enumerate(segments.copies.tolist()):
        assert [i for i in readers if i >= 0] == (segments.key_rows == row).nonzero().flatten().tolist()


def test_empty_batch_is_an_empty_output() -> None:
    segments = Segments.build([], [])
    leaves = [torch.empty(0, 2, 8, requires_grad=True) for _ in range(3)]
    out = varlen_attention(*leaves, segments)
    out.sum().backward()
    assert out.shape == (0, 2, 8) and leaves[1].grad is not None


@pytest.mark.parametrize(
    ("query_ranges", "key_ranges", "message"),
    [
        ([(0, 3), (4, 6)], [[(0, 3)], [(4, 6)]], r"query_ranges\[1\].*starts at row 3"),
        ([(0, 3)], [[(0, 3)], [(0, 3)]], "2 entries for 1"),
        ([(0, 3)], [[(0, 4)]], r"key_ranges\[0\].*<= 3 rows"),
        ([(0, 3)], [[(1, 3)]], "2 keys for 3 query rows"),
        ([(0, 3), (3, 5)], [[(0, 3)], [(3, 5), (0, 3)]], r"key_ranges\[1\].*own rows \(3, 5\) at the end"),
        ([(0, 3), (3, 5)], [[(0, 3)], [(0, 4)]], r"key_ranges\[1\].*own rows"),
    ],
)
def test_ranges_that_do_not_fit_are_named(query_ranges: list, key_ranges: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Segments.build(query_ranges, key_ranges)


def test_arguments_that_do_not_fit_are_named() -> None:
    segments = PATTERNS["example"]
    query, key, value = inputs(24, (4, 2, 16), torch.float32)[:3]
    bad = {
        r"query is \(24, 64\)": (query.flatten(1), key, value, segments),
        "key is .*divisor of 4": (query, key[:, :1].expand(-1, 3, -1), value[:, :1].expand(-1, 3, -1), segments),
        "value is .*the same for key and value": (query, key, value[:, :1], segments),
        "key is .*float16": (query, key.half(), value, segments),
        "different devices.*value on meta": (query, key, value.to("meta"), segments),
        "segments is a": (query, key, value, (segments.cu_seqlens_q,)),
        "segments is built for 17 rows; expected 24": (query, key, value, PATTERNS["unshared"]),
    }
    for message, arguments in bad.items():
        with pytest.raises(ValueError, match=message):
            varlen_attention(*arguments)
    no_heads = query[:, :0]
    with pytest.raises(ValueError, match="query is a builtins.list"):
        varlen_attention(query.tolist(), key, value, segments)
    with pytest.raises(ValueError, match=r"query is \(24, 0, 16\) .*at least one head"):
        varlen_attention(no_heads, no_heads, no_heads, segments)
    with pytest.raises(ValueError, match=r"key is \(24, 0, 16\)"):
        varlen_attention(query, no_heads, no_heads, segments)
    for scale in (float("inf"), float("nan"), 0.0, -1.0):
        with pytest.raises(ValueError, match=rf"scale is {scale}; expected a finite number above 0"):
            varlen_attention(query, key, value, segments, scale=scale)
    for window in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=rf"window is {window}; expected a whole number, at least 1"):
            varlen_attention(query, key, value, segments, window=window)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="backend is 'flash'"):
        varlen_attention(query, key, value, segments, backend="flash")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="expects bfloat16 or float16 on a GPU"):
        varlen_attention(query, key, value, segments, backend="torch-flash")


def test_the_choice_of_backend_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    choose_backend.cache_clear()
    with caplog.at_level("INFO", logger="mdpo_kernels"):
        assert choose_backend("cpu", torch.float32, 64) == "segmentwise"
        assert choose_backend("cuda", torch.float32, 64) == "segmentwise"
        assert choose_backend("cuda", torch.float32, 64) == "segmentwise"
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert "because FlashAttention takes" in caplog.records[1].getMessage()
    choose_backend.cache_clear()


def test_a_gpu_too_old_for_flash_attention_is_said(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    choose_backend.cache_clear()
    assert choose_backend("cuda", torch.float16, 64) == "segmentwise"
    assert "needs an Ampere GPU" in caplog.text
    choose_backend.cache_clear()


def gpu_backends(dtype: torch.dtype) -> list[Backend]:
    chosen = choose_backend("cuda", dtype, 64)
    every: list[Backend] = [chosen, "torch-flash", "segmentwise"]
    return ["segmentwise"] if dtype == torch.float32 else list(dict.fromkeys(every))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    ("heads", "dtype"),
    [
        *((heads, torch.bfloat16) for heads in [*HEADS, (4, 2, 64), (4, 1, 256)]),
        ((4, 2, 80), torch.float16),
        ((4, 2, 80), torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("pattern", ["three-readers", "unshared"])
def test_every_gpu_backend_equals_the_oracle(pattern: str, heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    segments = PATTERNS[pattern].to("cuda")
    tensors = inputs(segments.copies.shape[0], heads, dtype, "cuda")
    for name in gpu_backends(dtype):
        for window in (None, 2, 4, 30):
            ours = run(varlen_attention, tensors, segments, backend=name, window=window)
            assert_as_good_as_torch(ours, tensors, segments, window=window)


@pytest.mark.gpu
@needs_gpu
def test_gpu_is_deterministic_on_request() -> None:
    """Long enough that the backward runs in several thread blocks: ten runs, one result."""
    prompt, response = 1500, 300
    end = 2 * prompt + 3 * response
    bounds = [0, prompt + response, prompt + 2 * response, end]
    keys = [[(0, bounds[1])], [(0, prompt), (bounds[1], bounds[2])], [(bounds[2], end)]]
    segments = Segments.build(list(itertools.pairwise(bounds)), keys).to("cuda")
    tensors = inputs(end, (8, 2, 80), torch.bfloat16, "cuda")
    before = torch.are_deterministic_algorithms_enabled()
    for name in gpu_backends(torch.bfloat16):
        first, *others = [run(varlen_attention, tensors, segments, deterministic=True, backend=name) for _ in range(10)]
        assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True)), name
    assert torch.are_deterministic_algorithms_enabled() == before


@pytest.mark.gpu
@needs_gpu
def test_gpu_compiles_without_a_graph_break_and_does_not_synchronise() -> None:
    segments = PATTERNS["example"].to("cuda")
    tensors = inputs(24, (4, 2, 64), torch.bfloat16, "cuda")
    expected = run(varlen_attention, tensors, segments)
    compiled = torch.compile(varlen_attention, fullgraph=True)
    for got, wanted in zip(run(compiled, tensors, segments), expected, strict=True):
        torch.testing.assert_close(got, wanted)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(varlen_attention, tensors, segments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
