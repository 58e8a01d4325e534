"""What the processes of a run tell each other; each of these is called by all of them, or by none."""

from typing import Any

import torch
import torch.distributed as dist

from mdpo.config import MDPOConfig


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
