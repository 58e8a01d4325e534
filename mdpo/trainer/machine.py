"""What the machines of a run can do: the same answer on every rank, so that all of them choose alike."""

from mdpo.config import MDPOConfig
from mdpo.models.compiler import compiler_fault

from .ranks import from_all_ranks


def compiler_fault_anywhere(args: MDPOConfig) -> str | None:
    """As ``compiler_fault``, of the first rank that has one."""
    fault = compiler_fault(args.device)
    faults = from_all_ranks(args, [] if fault is None else [fault])
    return faults[0] if faults else None
