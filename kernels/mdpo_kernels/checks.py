"""What a public function checks before it computes: shapes, dtypes, devices and ranges of its arguments.

Every failure is a ValueError that names the argument, what came and what was expected. What can only be seen in a
tensor's values raises on a CPU; on a GPU, where looking would synchronise, and under torch.compile, where it would
break the graph, it becomes an assertion on the device.
"""

import math
import numbers
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .autocast import autocast_is_on
from .head import Head

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGER = (torch.int64, torch.int32)
MIN_WORKSPACE_BYTES = 1024
_FLOAT32 = torch.finfo(torch.float32)


def describe(value: object) -> str:
    """A tensor's shape, dtype and device in one phrase, or another value's type: the "what came" of a message."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__module__}.{type(value).__qualname__}"
    kind = f"{str(value.dtype).removeprefix('torch.')} on {value.device}"
    if value.is_nested:  # which may have no shape
        return f"a nested tensor of {kind}"
    layout = "" if value.layout == torch.strided else f"{str(value.layout).removeprefix('torch.')} "
    return f"{tuple(value.shape)} {layout}{kind}"


def check_dense(name: str, value: object) -> None:
    """`value`, if it is a tensor, lies in memory entry by entry: not sparse, not nested, not in oneDNN's layout."""
    if isinstance(value, Tensor) and (value.is_nested or value.layout != torch.strided):
        raise ValueError(f"{name} is {describe(value)}; expected a dense tensor")


def check_tensor(name: str, value: object, shape: str, dtypes: tuple[torch.dtype, ...]) -> None:
    """`value` is a dense tensor with as many dimensions as `shape` (as in "(N, V)") names, of one of `dtypes`."""
    check_dense(name, value)
    dimensions = len([part for part in shape.strip("()").split(",") if part.strip()])
    if not isinstance(value, Tensor) or value.dim() != dimensions or value.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        remedy = ""
        if isinstance(value, Tensor) and shape.startswith("(N") and value.dim() > dimensions:
            remedy = f": {name}.flatten(0, {value.dim() - dimensions})"  # a batch of rows, (B, T, …)
        raise ValueError(f"{name} is {describe(value)}; expected a {shape} tensor of {names}{remedy}")


def check_vector(name: str, value: Tensor, *, floating: bool, length: int | None = None) -> None:
    """`value` is a one-dimensional tensor of floating or of integer numbers, and of that length if one is given."""
    check_tensor(name, value, "(N,)", FLOATING if floating else INTEGER)
    if length is not None and value.shape[0] != length:
        raise ValueError(f"{name} is {describe(value)}; expected {length} entries, one for each row")


def check_branch_logps(name: str, value: Tensor, *, branches: Sequence[str], examples: int | None = None) -> None:
    """`value` is (K, B), floating, for K `branches`; with `examples`, B is that many."""
    count = len(branches)
    check_tensor(name, value, f"({count}, B)", FLOATING)
    if value.shape[0] != count or (examples is not None and value.shape[1] != examples):
        expected = f"({count}, {'B' if examples is None else examples})"
        raise ValueError(f"{name} is {describe(value)}; expected {expected}: {', '.join(branches)}")


def check_same_device(**tensors: Tensor | None) -> None:
    """All the tensors that are there lie on one device; the keywords are the arguments' names."""
    found = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(found.values())) > 1:
        raise ValueError(
            f"arguments lie on different devices; expected one: {', '.join(f'{n} on {d}' for n, d in found.items())}"
        )


def check_values(name: str, condition: Tensor, what_is_wrong: Callable[[], str]) -> None:
    """`condition`, a () bool tensor, holds: ValueError on a CPU, else an assertion on the device without a look."""
    if torch.compiler.is_compiling():
        # Sizes may be symbols here, which no text can hold.
        torch._assert_async(condition, f"{name} holds values that do not fit the other arguments")
    elif condition.is_cpu:
        if not condition:
            raise ValueError(f"{name} {what_is_wrong()}")
    else:
        torch._assert_async(condition, f"{name} {what_is_wrong()}")


def check_cu_seqlens(cu_seqlens: Tensor, *, rows: int, branches: int = 1, examples: int | None = None) -> None:
    """`cu_seqlens` is (S + 1,), integer, non-decreasing from 0 to `rows`; with `examples`, S = branches · examples."""
    check_tensor("cu_seqlens", cu_seqlens, "(S + 1,)", INTEGER)
    if cu_seqlens.shape[0] < 1:
        raise ValueError(f"cu_seqlens is {describe(cu_seqlens)}; expected at least 1 entry")
    if examples is not None and cu_seqlens.shape[0] != branches * examples + 1:
        raise ValueError(
            f"cu_seqlens is {describe(cu_seqlens)}; expected {branches}*{examples} + 1 entries for {examples} examples"
        )
    fits = (cu_seqlens[0] == 0) & (cu_seqlens[-1] == rows) & (cu_seqlens.diff() >= 0).all()
    check_values("cu_seqlens", fits, lambda: f"does not run from 0 to the {rows} rows without decreasing")


def check_sequences(logps: Tensor, cu_seqlens: Tensor, reference: Tensor | None, branches: Sequence[str]) -> None:
    """Token log-probs (N,), the bounds of their sequences, K branches by B examples, and (K, B), where there is a
    reference, fit one another."""
    count = len(branches)
    if reference is None:
        check_tensor("cu_seqlens", cu_seqlens, "(S + 1,)", INTEGER)
        if cu_seqlens.shape[0] % count != 1 % count:
            raise ValueError(f"cu_seqlens is {describe(cu_seqlens)}; expected {count}*B + 1 entries for B examples")
    else:
        check_branch_logps("reference", reference, branches=branches)
    examples = (cu_seqlens.shape[0] - 1) // count if reference is None else reference.shape[1]
    check_cu_seqlens(cu_seqlens, rows=logps.shape[0], branches=count, examples=examples)
    check_same_device(logps=logps, cu_seqlens=cu_seqlens, reference=reference)


def is_finite(*values: object) -> bool:
    """Whether all of the values are numbers that are finite in float32, which is what the ops compute in."""
    # Comparisons, not math.isfinite: under torch.compile with dynamic shapes these numbers are symbols.
    kinds = (numbers.Real, torch.SymInt, torch.SymFloat)
    return all(
        isinstance(value, kinds) and not isinstance(value, bool) and -_FLOAT32.max <= value <= _FLOAT32.max  # pyright: ignore[reportOperatorIssue]
        for value in values
    )


def check_positive(name: str, value: object, otherwise: str = "") -> None:
    """`value` is a finite number above 0; `otherwise`, as in ", or None", says what else it may be."""
    if not is_finite(value) or not value >= _FLOAT32.tiny:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(f"{name} is {value!r}; expected a finite number above 0 in float32{otherwise}")


def check_whole(name: str, value: object, least: int, most: float = math.inf) -> None:
    """`value` is a whole number from `least` to `most`."""
    whole = isinstance(value, (numbers.Integral, torch.SymInt)) and not isinstance(value, bool)
    if not whole or not least <= value <= most:  # pyright: ignore[reportOperatorIssue]
        limit = "" if most == math.inf else f" and at most {most}"
        raise ValueError(f"{name} is {value!r}; expected a whole number, at least {least}{limit}")


def _check_targets(targets: Tensor, *, vocabulary: int, ignore_index: int) -> None:
    """Each of `targets` is in 0 … vocabulary − 1 or the ignore index."""
    check_whole("ignore_index", ignore_index, -(2**63), 2**63 - 1)
    targets = targets.long()  # against an int32 tensor PyTorch compares an ignore_index beyond int32 modulo 2³²
    fits = ((targets >= 0) & (targets < vocabulary)) | (targets == ignore_index)
    check_values(
        "targets",
        fits.all(),
        lambda: f"holds a value outside 0 to {vocabulary - 1} that is not ignore_index {ignore_index}",
    )


def _check_logit_options(softcap: float | None, scale: float) -> None:
    """`softcap` is None or a finite number above 0, `scale` a finite number above 0.

    A scale of 0 or less would be defined (every token alike; the unlikeliest first), but is nobody's temperature.
    """
    if softcap is not None:
        check_positive("softcap", softcap, ", or None")
    check_positive("scale", scale)


def _check_columns(name: str, value: Tensor) -> None:
    if value.shape[1] < 1:
        raise ValueError(f"{name} is {describe(value)}; expected at least one column")


def _check_weight(weight: object) -> None:
    """`weight` is a plain (V, H) tensor: a head wrapped by an adapter has no one weight, so it is refused."""
    if isinstance(weight, nn.Module):
        if hasattr(weight, "base_layer"):
            raise ValueError(
                f"weight is {describe(weight)}, a head wrapped by an adapter; expected a (V, H) tensor. Merge the "
                "adapter (merge_and_unload), or leave lm_head out of the adapter's targets and pass its weight: "
                "base_layer.weight alone would leave out what the adapter learns"
            )
        raise ValueError(f"weight is {describe(weight)}; expected a (V, H) tensor: pass the layer's .weight")
    check_tensor("weight", weight, "(V, H)", FLOATING)


def check_logits_arguments(
    logits: Tensor, targets: Tensor, ignore_index: int, softcap: float | None, scale: float
) -> None:
    """The arguments of token_logps: logits (N, V) and targets (N,) fit one another, and so do the options."""
    check_tensor("logits", logits, "(N, V)", FLOATING)
    _check_columns("logits", logits)
    check_vector("targets", targets, floating=False, length=logits.shape[0])
    _check_logit_options(softcap, scale)
    check_same_device(logits=logits, targets=targets)
    _check_targets(targets, vocabulary=logits.shape[1], ignore_index=ignore_index)


def check_linear_arguments(
    hidden: Tensor, head: Head, targets: Tensor, ignore_index: int, max_workspace_bytes: int
) -> Tensor:
    """The arguments of linear_token_logps fit one another. Returns `hidden`, under autocast in the weight's dtype.

    Autocast would cast the weight, and a second copy of it is what these ops are there to avoid.
    """
    weight, bias, softcap, scale = head
    _check_weight(weight)
    if weight.shape[0] < 1:
        raise ValueError(f"weight is {describe(weight)}; expected at least one row, one for each token")
    check_tensor("hidden", hidden, "(N, H)", FLOATING)
    _check_columns("hidden", hidden)
    check_vector("targets", targets, floating=False, length=hidden.shape[0])
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden is {describe(hidden)}; expected {weight.shape[1]} columns as in weight {describe(weight)}"
        )
    if hidden.dtype != weight.dtype and not autocast_is_on(hidden.device):
        raise ValueError(f"hidden is {describe(hidden)}; expected the dtype of weight {describe(weight)}, or autocast")
    if bias is not None:
        check_vector("bias", bias, floating=True, length=weight.shape[0])
    check_whole("max_workspace_bytes", max_workspace_bytes, MIN_WORKSPACE_BYTES)
    _check_logit_options(softcap, scale)
    check_same_device(hidden=hidden, weight=weight, targets=targets, bias=bias)
    _check_targets(targets, vocabulary=weight.shape[0], ignore_index=ignore_index)
    return hidden.to(weight.dtype)


def check_lora_arguments(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """The arguments of lora_linear fit one another, and the layer is frozen. Returns `x`, under autocast in the
    weight's dtype."""
    for name, value in (("weight", weight), ("A", A), ("B", B)):
        if isinstance(value, nn.Module):
            raise ValueError(f"{name} is {describe(value)}; expected a tensor: pass the layer's .weight")
    check_tensor("weight", weight, "(O, I)", FLOATING)
    _check_columns("weight", weight)
    check_dense("x", x)
    if not isinstance(x, Tensor) or x.dim() < 1 or x.dtype not in FLOATING or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x is {describe(x)}; expected (..., {weight.shape[1]}), floating, as the weight {describe(weight)} reads"
        )
    if x.dtype != weight.dtype and not autocast_is_on(x.device):
        raise ValueError(f"x is {describe(x)}; expected the dtype of weight {describe(weight)}, or autocast")
    if bias is not None:
        check_vector("bias", bias, floating=True, length=weight.shape[0])
    check_tensor("A", A, "(r, I)", (weight.dtype, torch.float32))
    check_tensor("B", B, "(O, r)", (weight.dtype, torch.float32))
    if A.shape != (B.shape[1], weight.shape[1]) or B.shape[0] != weight.shape[0]:
        raise ValueError(
            f"A is {describe(A)} and B {describe(B)}; expected (r, {weight.shape[1]}) and ({weight.shape[0]}, r)"
        )
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.requires_grad:
            raise ValueError(f"{name} wants a gradient; expected a frozen layer: {name}.requires_grad_(False)")
    if not is_finite(scale):
        raise ValueError(f"scale is {scale!r}; expected a finite number")
    check_same_device(x=x, weight=weight, bias=bias, A=A, B=B)
    return x.to(weight.dtype)
