"""Which component of the model an operator belongs to, forward, backward or recomputed.

Forward hooks put each module's operators into a profiler scope of its component. An operator's component is that of the
nearest thing around it that says: its own name (our kernels), a scope, or, in the backward, the forward operator that
made the autograd node, which PyTorch's profiler numbers alike. What nothing says is "other".

A fused LoRA layer is one module, and a hook inside it would have it take peft's way: its operators are the base's, but
for those of a tensor with the adapter's rank among its sizes. So the rank has to be none of the model's widths.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import record_function

from mdpo.models.fused_lora import FusedLora

COMPONENTS = ("vision", "projections", "attention", "LoRA", "MLP", "norm/rope", "head", "loss", "optimizer", "other")
_SCOPE = "component: "
OPTIMIZER = f"{_SCOPE}optimizer"
STEP = f"{_SCOPE}step"
_NAMES = {
    "varlen_attention": "attention",
    "linear_token_logps": "head",
    "Optimizer.": "optimizer",
    "AccumulateGrad": "LoRA",
}
_BACKWARD = "autograd::engine::evaluate_function"
# Outside of every module: the text's and the image's embeddings put in place.
_ASSEMBLY = ("aten::embedding", "aten::index_copy")


@contextmanager
def scopes(model: PeftModel) -> Iterator[None]:
    """While active, the model's forward runs in scopes of its components."""
    handles = []
    for module, component in _components(model):
        open_scopes: list[record_function] = []

        def enter(module: nn.Module, args: Any, opened: list = open_scopes, name: str = _SCOPE + component) -> None:
            opened.append(record_function(name).__enter__())

        def leave(module: nn.Module, args: Any, output: Any, opened: list = open_scopes) -> None:
            opened.pop().__exit__(None, None, None)

        handles.append(module.register_forward_pre_hook(enter))
        # Checkpointing leaves a module by an exception once it has recomputed all it needs.
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _components(model: PeftModel) -> Iterator[tuple[nn.Module, str]]:
    base: Any = model.get_base_model()
    yield base.model.vision_tower, "vision"
    yield base.model.multi_modal_projector, "vision"
    yield base.get_input_embeddings(), "other"
    for name, module in base.get_decoder().named_modules():
        layer: Any = module
        if isinstance(layer, LoraLayer):
            base_component = "MLP" if ".mlp." in name else "projections"
            if isinstance(layer, FusedLora):
                yield module, base_component
            else:
                yield module, "LoRA"
                yield layer.get_base_layer(), base_component
        elif name.endswith(".mlp"):
            yield module, "MLP"
        elif name.endswith(".self_attn") or "rotary" in name or "Norm" in type(module).__name__:
            yield module, "norm/rope"  # of an attention module's own operators, the attention itself goes by its name
        elif name.split(".")[-2:-1] == ["layers"]:
            yield module, "other"  # residual sums


def milliseconds(events: Sequence[Any], device: str, vocabulary: int, rank: int) -> dict[str, tuple[float, float]]:
    """(forward, backward) of a profile by component, recomputed layers in the backward: on a GPU of its kernels, on a
    CPU of the operators' own time. events: of one profiler that records shapes; one step inside a `STEP` scope.
    vocabulary: its size tells the head's operators, where they are PyTorch's, from the loss's. rank: the adapter's."""
    ours = [event for event in events if event.device_type == DeviceType.CPU]
    made_by = _forward_components(ours, vocabulary)
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in ours:
        if not any(each.name == STEP for each in _around(event)):
            continue
        if device == "cuda":
            own = 0.0 if event.is_user_annotation else sum(kernel.duration for kernel in event.kernels)
        else:
            own = event.self_cpu_time_total
        backward = any(each.name.startswith(_BACKWARD) for each in _around(event))
        component = _component(event, made_by, vocabulary)
        if component in ("projections", "MLP") and any(rank in shape for shape in event.input_shapes or ()):
            component = "LoRA"
        totals[component][backward] += own / 1e3
    return {name: (totals[name][0], totals[name][1]) for name in COMPONENTS}


def _forward_components(events: Iterable[Any], vocabulary: int) -> dict[tuple[int, int], str]:
    """Component by (thread, sequence number) of the forward operators: the last with a number is the one that made the
    autograd node; those before it only saw what the next number would be."""
    found = {}
    for event in sorted(events, key=lambda e: e.time_range.start):
        if event.sequence_nr >= 0 and not any(each.name.startswith(_BACKWARD) for each in _around(event)):
            found[event.thread, event.sequence_nr] = _component(event, {}, vocabulary)
    return found


def _component(event: Any, made_by: dict[tuple[int, int], str], vocabulary: int) -> str:
    found = _nearest(event, made_by)
    is_head = found == "loss" and any(vocabulary in shape for shape in event.input_shapes or ())
    return "head" if is_head else found


def _nearest(event: Any, made_by: dict[tuple[int, int], str]) -> str:
    for each in _around(event):
        for word, component in _NAMES.items():
            if word in each.name:
                return component
        if each.name == STEP:
            break
        if each.name.startswith(_SCOPE):
            return each.name.removeprefix(_SCOPE)
        if each.name.startswith(_BACKWARD):
            return made_by.get((each.fwd_thread, each.sequence_nr), "other")
    # Outside of every module lie head, log-probs' sums and loss; the step's own time is Python's.
    is_loss = event.name.startswith(("aten::", "mdpo_kernels::")) and not event.name.startswith(_ASSEMBLY)
    return "loss" if is_loss else "other"


def _around(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent
