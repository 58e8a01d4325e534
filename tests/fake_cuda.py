"""A CUDA device that computes nothing: on it a step shows where the host waits for the device, without a GPU.

Fake tensors have a device and a shape but no values. What a run reads of them is noted, with the place in the code that
read it, and answered with what the same run read of real tensors on the CPU; so the run goes on to its next read. A
registered op is its fake here: what waits inside of it stays unseen.
"""

import sys
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from mdpo.packing import PackedBatch
from tests.graph import run_backward

CARD, HOST = torch.device("cuda", 0), torch.device("cpu")
_TORCH, _OURS = Path(torch.__file__).parent, (Path(__file__), Path(__file__).with_name("graph.py"))
Step = Callable[[list[PackedBatch], Callable[[Tensor], None]], object]

_WHY = (
    "a GPU is here, and a process that has one cannot fork"
    if torch.cuda.is_available()
    else f"PyTorch {torch.__version__} has no CUDA device to fake: it is built without CUDA; make test-newest has one"
)
needs_cuda_build = pytest.mark.skipif(not torch.backends.cuda.is_built() or torch.cuda.is_available(), reason=_WHY)


class Wait(NamedTuple):
    """The host waiting for the device. where: "package/…/file.py function", or "backward" and the node of the graph."""

    where: str
    operation: str


class Seen(NamedTuple):
    """waits: in order. trained: the names of the parameters that were given a gradient on the device."""

    waits: list[Wait]
    trained: set[str]


def waits(step: Step, model: nn.Module, batches: Sequence[PackedBatch]) -> Seen:
    """What the host waits for in `step`, on a fake CUDA device and under autocast to bfloat16.

    step: called once on the CPU and once on the fake device, both times with the batches on the CPU and, in place of
        `Tensor.backward`, a function that runs the backward of a loss. In a process of its own: PyTorch counts a device
        that it has faked for as long as the process lives.
    model: what `step` runs.
    """
    receiver, sender = Pipe(duplex=False)
    child = get_context("fork").Process(target=_send, args=(sender, step, model, batches))
    child.start()
    sender.close()
    found = receiver.recv()
    child.join()
    if isinstance(found, str):
        pytest.fail(found)
    return found


def _send(sender: Connection, step: Step, model: nn.Module, batches: Sequence[PackedBatch]) -> None:
    try:
        sender.send(_seen(step, model, batches))
    except BaseException:
        sender.send(traceback.format_exc())


def _seen(step: Step, model: nn.Module, batches: Sequence[PackedBatch]) -> Seen:
    answers = _Answers()
    with answers, _ReadsByElement():
        step(list(batches), answers.backward)
    watch = _Watch(answers.found)
    with _no_driver(watch), FakeTensorMode():
        _move(model)
        fakes = [batch.map_tensors(lambda tensor: _like(tensor, HOST)) for batch in batches]
        with watch, torch.autocast("cuda", torch.bfloat16):
            step(fakes, watch.backward)
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.is_cuda}
    return Seen(watch.found, trained)


def _move(model: nn.Module) -> None:
    """Every parameter and buffer onto the fake device, tied ones tied."""
    moved: dict[int, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        held: dict[str, Any]
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in moved:
                    there = _like(tensor, CARD)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    # The old one is kept alive, or its id could become another's.
                    moved[id(tensor)] = tensor, nn.Parameter(there, tensor.requires_grad) if is_parameter else there
                held[name] = moved[id(tensor)][1]


@contextmanager
def _no_driver(watch: "_Watch") -> Iterator[None]:
    """What asks for a CUDA driver, which may not be there: autocast switches itself off without, events fail."""

    class Event:
        def __init__(self, **_: Any) -> None: ...

        def record(self, stream: Any = None) -> None: ...

        def synchronize(self) -> None:
            watch.note("event")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: None)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "synchronize", lambda device=None: watch.note("synchronize"))
        yield


class _ReadsByElement(TorchFunctionMode):
    """Tensor.tolist reads a real tensor's memory past the dispatcher, and a fake one's element by element."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return _to_list(args[0]) if func is Tensor.tolist else func(*args, **kwargs or {})


def _to_list(tensor: Tensor) -> Any:
    return [_to_list(part) for part in tensor] if tensor.dim() else tensor.item()


class _Seen(TorchDispatchMode):
    """Sees every operation, and knows where it is called."""

    def __init__(self) -> None:
        super().__init__()
        self._node = ""

    def where(self) -> str:
        return _where() or self._node

    def backward(self, loss: Tensor) -> None:
        for self._node in run_backward(loss):
            pass


class _Answers(_Seen):
    """What a run on real tensors reads, in order, by place."""

    def __init__(self) -> None:
        super().__init__()
        self.found: defaultdict[Wait, deque[Any]] = defaultdict(deque)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        if _reads(func, args, kwargs or {}):
            self.found[Wait(self.where(), _name(func))].append(result)
        return result


class _Watch(_Seen):
    """Notes what waits for the device. A read is answered with what the run on real tensors read at the same place."""

    def __init__(self, answers: dict[Wait, deque[Any]]) -> None:
        super().__init__()
        self.found: list[Wait] = []
        self._answers = answers

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _copies_and_waits(func, args, kwargs):
            self.note("copy")
        if not _reads(func, args, kwargs):
            return func(*args, **kwargs)
        device = next(leaf.device for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor))
        if device.type == "cuda":
            self.note(_name(func))
        if _name(func).startswith("index_put"):  # its output has its input's shape
            return func(*args, **kwargs)
        read = Wait(self.where(), _name(func))
        assert self._answers.get(read), f"{read}: not read on the CPU, so there is no answer"
        answer = self._answers[read].popleft()
        return tree_map(lambda value: _like(value, device) if isinstance(value, Tensor) else value, answer)

    def note(self, operation: str) -> None:
        self.found.append(Wait(self.where(), operation))


def _like(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def _reads(func: Any, args: tuple, kwargs: dict) -> bool:
    """Whether an operation needs a tensor's values on the host."""
    if torch.Tag.data_dependent_output in func.tags:
        return True
    if _name(func) in ("index", "index_put", "index_put_", "_index_put_impl_"):
        # A mask becomes indices, and their number has to be known.
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return torch.Tag.dynamic_output_shape in func.tags and kwargs.get("output_size") is None


def _copies_and_waits(func: Any, args: tuple, kwargs: dict) -> bool:
    if _name(func) == "_to_copy":
        devices = {args[0].device.type, torch.device(kwargs.get("device") or args[0].device).type}
    elif _name(func) == "copy_":
        devices, kwargs = {args[0].device.type, args[1].device.type}, {"non_blocking": any(args[2:]), **kwargs}
    else:
        return False
    return len(devices) == 2 and not kwargs.get("non_blocking", False)


def _name(func: Any) -> str:
    return func.overloadpacket.__name__


def _where() -> str | None:
    """The innermost code that is not PyTorch's, or None where that is a node of the graph."""
    frame = sys._getframe(1)
    while frame is not None:
        path, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        if path == _OURS[1]:
            return None
        # Until Python 3.12 a comprehension is a function of its own.
        is_function = name not in ("<listcomp>", "<dictcomp>", "<genexpr>")
        if is_function and path not in _OURS and not path.is_relative_to(_TORCH):
            packages = [folder.name for folder in path.parents if (folder / "__init__.py").is_file()]
            return "/".join([*reversed(packages), path.name]) + f" {name}"
        frame = frame.f_back
    return None
