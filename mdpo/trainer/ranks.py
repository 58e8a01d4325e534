"""What the processes of a run tell each other; each of these is called by all of them, or by none."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mdpo.config import MDPOConfig
from mdpo.errors import InputError, OutputError, TrainingError

from .signals import active
from .way_on import way_on

_T = TypeVar("_T")


def over_ranks(args: MDPOConfig, value: int, reduction: str) -> int:
    """The largest ("max") or smallest ("min") of the ranks' values."""
    if args.world_size == 1:
        return value
    tensor = torch.tensor(value, device=args.device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX if reduction == "max" else dist.ReduceOp.MIN)
    return int(tensor)


def from_all_ranks(args: MDPOConfig, entries: list) -> list:
    """The ranks' entries one after the other, the same list on every rank."""
    if args.world_size == 1:
        return entries
    gathered: list[Any] = [None] * args.world_size
    dist.all_gather_object(gathered, entries)
    return [entry for part in gathered for entry in part]


def together(args: MDPOConfig, action: Callable[[], _T]) -> _T:
    """Has it done on every rank, and raises on all of them where one has met an error, which one of them is to say.

    action: may raise InputError, OutputError or TrainingError, but not where other ranks wait for this one in it.
    """
    result, error = None, None
    try:
        result = action()
    except (InputError, OutputError, TrainingError) as met:
        error = met
    met_by = from_all_ranks(args, [] if error is None else [(args.process_index, type(error), str(error))])
    if not met_by:
        return result  # pyright: ignore[reportReturnType]
    first, kind, message = met_by[0]
    error = error or kind(message)
    error.said = first != args.process_index
    raise error


def raised_by_all(args: MDPOConfig, message: str) -> TrainingError:
    """An error that all ranks raise, and the first one says."""
    error = TrainingError(message)
    error.said = args.process_index != 0
    return error


def misses_a_rank(args: MDPOConfig, error: RuntimeError) -> bool:
    """Whether it is what a collective operation raises when another rank is gone, or comes of it."""
    if args.world_size == 1:
        return False
    if isinstance(error.__cause__, RuntimeError):  # of a checkpoint that was being written
        error = error.__cause__
    if isinstance(error, (OutputError, TrainingError)):
        return False
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def without_a_rank(args: MDPOConfig) -> TrainingError:
    """What is left where another rank is gone."""
    error = TrainingError(f"another process of the run is gone; {way_on(args)}")
    error.said = False
    return error


def meet(args: MDPOConfig) -> None:
    """From now on a signal that comes to one rank is told to those on its machine, whatever they wait for."""
    current = active()
    doors = from_all_ranks(args, [] if current is None else current.door)
    if current is not None:
        current.meet(doors)
