"""The planner: which examples make an optimizer step, and which of them share a micro-batch.

    order of an epoch    a function of seed and epoch alone
    step k               examples order[k·E : (k+1)·E], E = examples_per_step, whatever the number of ranks
    micro-batches        the step's examples in as few bins of token_budget packed tokens as they fit in, filled evenly
    ranks                equally many of the step's bins each, about equally many tokens

Even bins serve everything at once: a tight number of them becomes feasible, the peak of memory is low, ranks finish
together. Longest-first is the start, exchanges between bins repair it, best-fit-decreasing is the answer where they
fail. All arithmetic is on integers, so a plan is the same everywhere.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import blake2b
from operator import index
from typing import SupportsIndex

import numpy as np

from mdpo.errors import InputError

__all__ = ["plan", "plan_steps"]

Bins = list[list[int]]  # a bin holds positions within the step (0 … its number of examples − 1)

SLACK = 200  # a bin at most 1/200 fuller than the mean is left alone: evening it out costs more than it could save


def plan(
    lengths: Iterable[SupportsIndex],
    token_budget: int,
    *,
    examples_per_step: int,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    padded: bool = False,
) -> list[list[list[int]]]:
    """Plan one epoch for one rank: a list of optimizer steps, each a list of micro-batches, each of example indices.

    Every example appears exactly once an epoch. A step is `examples_per_step` examples over all ranks; the last step of
    an epoch is what remains, smaller rather than dropped, so the trainer divides by the step's own number of examples.
    The examples of step k (the union over ranks) do not depend on `world_size`: a run may resume on another number of
    processes, and its gradients stay what they were.

    Every rank has every step, and in it as many micro-batches as every other rank: the fewest its share of the tokens
    was found to fit in. Only a step with fewer examples than that takes leaves some ranks one short (with `[]` if it
    has fewer examples than there are ranks). Micro-batches come fullest first: what runs out of memory does so at once.

    Args:
        lengths: packed tokens of each example (of mDPO's three branches 2P + 3R, with a prompt of P and responses of
        R), all positive.
        token_budget: packed tokens a micro-batch may hold.
        examples_per_step: examples of an optimizer step, over all ranks.
        seed, epoch: what the order is derived from (by blake2b: stable across processes, machines and versions).
        rank, world_size: the process this plan is for, counted from 0, and the number of processes.
        padded: whether each example of a micro-batch takes as many tokens as its longest, as sequences that are filled
        up do.

    Raises:
        InputError: an example is longer than `token_budget`, or an argument is not in its range; the message names it.
    """
    return list(
        plan_steps(
            lengths,
            token_budget,
            examples_per_step=examples_per_step,
            seed=seed,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
            padded=padded,
        )
    )


def plan_steps(
    lengths: Iterable[SupportsIndex],
    token_budget: int,
    *,
    examples_per_step: int,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    padded: bool = False,
) -> Iterator[list[list[int]]]:
    """The steps of ``plan``, each made when it is asked for. Raises as ``plan`` does, at once."""
    token_budget = _integer("token_budget", token_budget, at_least=1)
    examples_per_step = _integer("examples_per_step", examples_per_step, at_least=1)
    world_size = _integer("world_size", world_size, at_least=1)
    rank = _integer("rank", rank, at_least=0)
    if rank >= world_size:
        raise InputError(f"rank is {rank}; expected less than world_size={world_size} (ranks are counted from 0)")
    sizes = _checked_lengths(lengths, token_budget)
    drawn = (_integer("seed", seed), _integer("epoch", epoch))
    return _steps(sizes, drawn, token_budget, examples_per_step, rank, world_size, padded)


def _steps(
    sizes: np.ndarray,
    drawn: tuple[int, int],
    token_budget: int,
    examples_per_step: int,
    rank: int,
    world_size: int,
    padded: bool,
) -> Iterator[list[list[int]]]:
    pack = _pack_padded if padded else _pack
    order = _epoch_order(len(sizes), *drawn)
    for start in range(0, len(order), examples_per_step):
        examples = order[start : start + examples_per_step].tolist()
        step_sizes = sizes[examples].tolist()
        bins = pack(step_sizes, token_budget, world_size)
        loads = [_load([step_sizes[item] for item in members], padded) for members in bins]
        mine = _deal(loads, bins, world_size)[rank]
        yield [[examples[item] for item in members] for members in mine]


def _integer(name: str, value: SupportsIndex, at_least: int | None = None) -> int:
    with suppress(TypeError):
        if at_least is None or index(value) >= at_least:
            return index(value)
    raise InputError(f"{name} is {value!r}; expected an integer" + ("" if at_least is None else f" >= {at_least}"))


def _checked_lengths(lengths: Iterable[SupportsIndex], token_budget: int) -> np.ndarray:
    if not (isinstance(lengths, np.ndarray) and np.issubdtype(lengths.dtype, np.integer)):
        lengths = [_integer(f"lengths[{example}]", length, at_least=1) for example, length in enumerate(lengths)]
    sizes = np.asarray(lengths, dtype=np.int64)
    if (sizes < 1).any():
        example = int(np.flatnonzero(sizes < 1)[0])
        _integer(f"lengths[{example}]", int(sizes[example]), at_least=1)
    too_long = np.flatnonzero(sizes > token_budget)
    if len(too_long):
        first, longest = int(too_long[0]), int(too_long[sizes[too_long].argmax()])
        raise InputError(
            f"example {first} has {sizes[first]} packed tokens, more than token_budget={token_budget}; "
            f"{len(too_long)} of {len(sizes)} examples do, the longest is example {longest} with {sizes[longest]}: "
            f"raise token_budget to at least {sizes[longest]}, or shorten or leave out what is longer"
        )
    return sizes


def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    # A hash an example, because no numpy or standard-library shuffle promises the same order in its next version.
    digests = bytearray(16 * num_examples)
    for example in range(num_examples):
        key = f"plan {seed} {epoch} {example}".encode()
        digests[16 * example : 16 * example + 16] = blake2b(key, digest_size=16).digest()
    halves = np.frombuffer(digests, dtype=">u8").reshape(num_examples, 2)
    return np.lexsort((halves[:, 1], halves[:, 0]))  # as the bytes compare


def _pack(sizes: list[int], token_budget: int, world_size: int) -> Bins:
    """Find the fewest even bins: equally many for every rank (`rounds` each) where the examples suffice for that."""
    packed = _best_fit_decreasing(sizes, token_budget)
    # No two examples of more than half the budget share a bin.
    lower_bound = max(-(-sum(sizes) // token_budget), sum(2 * size > token_budget for size in sizes))
    low, high = -(-lower_bound // world_size), -(-len(packed) // world_size)
    # Should even bins be over the budget up to the last attempt (seldom, and not seen with bins to spare), this stands.
    while len(packed) < min(len(sizes), high * world_size):
        packed.append([max(packed, key=len).pop()])
    # Bisection and not a walk: under a small budget most numbers of bins below best-fit-decreasing's are hopeless.
    while low <= high:
        rounds = (low + high) // 2
        num_bins = min(len(sizes), rounds * world_size)
        attempt = _even_out(sizes, _longest_first(sizes, num_bins), token_budget)
        if all(sum(sizes[item] for item in members) <= token_budget for members in attempt):
            packed, high = attempt, rounds - 1
        else:
            low = rounds + 1
    return _even_out(sizes, packed, token_budget)


def _load(sizes: list[int], padded: bool) -> int:
    return len(sizes) * max(sizes) if padded else sum(sizes)


def _pack_padded(sizes: list[int], token_budget: int, world_size: int) -> Bins:
    """Runs of the sorted examples, as long as the budget allows: no fewer bins hold them, since every bin has a
    longest. Then the fullest bins are halved until every rank has equally many, where the examples suffice for that."""
    bins: Bins = []
    for item in _decreasing(sizes):
        if bins and (len(bins[-1]) + 1) * sizes[bins[-1][0]] <= token_budget:
            bins[-1].append(item)
        else:
            bins.append([item])
    while len(bins) % world_size and len(bins) < len(sizes):
        divisible = [members for members in bins if len(members) > 1]
        fullest = max(divisible, key=lambda members: _load([sizes[item] for item in members], padded=True))
        half = len(fullest) // 2
        bins.append(fullest[half:])
        del fullest[half:]
    return bins


def _decreasing(sizes: list[int]) -> list[int]:
    return sorted(range(len(sizes)), key=lambda item: -sizes[item])


def _best_fit_decreasing(sizes: list[int], token_budget: int) -> Bins:
    bins: Bins = []
    room: list[tuple[int, int]] = []  # (tokens left, bin), sorted
    for item in _decreasing(sizes):
        fit = bisect_left(room, (sizes[item], 0))
        if fit == len(room):
            left, chosen = token_budget, len(bins)
            bins.append([])
        else:
            left, chosen = room.pop(fit)
        bins[chosen].append(item)
        insort(room, (left - sizes[item], chosen))
    return bins


def _longest_first(sizes: list[int], num_bins: int) -> Bins:
    """Put each item, the longest first, where there is least so far: no bin stays empty if there are items enough."""
    bins: Bins = [[] for _ in range(num_bins)]
    loads = [(0, chosen) for chosen in range(num_bins)]
    for item in _decreasing(sizes):
        load, chosen = loads[0]
        bins[chosen].append(item)
        heapq.heapreplace(loads, (load + sizes[item], chosen))
    return bins


def _even_out(sizes: list[int], bins: Bins, token_budget: int) -> Bins:
    """Move or exchange items of the fuller bins while that lowers the fuller of the two bins concerned."""
    num_items, num_bins = len(sizes), len(bins)
    # Behind the items stands one of no tokens in each bin: exchanging an item for it is moving the item.
    size = np.array(sizes + [0] * num_bins)
    bin_of = np.concatenate([np.zeros(num_items, dtype=np.int64), np.arange(num_bins)])
    for chosen, members in enumerate(bins):
        bin_of[members] = chosen
    load = np.array([sum(sizes[item] for item in members) for members in bins])
    mean = sum(sizes) // num_bins
    enough = min(token_budget, mean + mean // SLACK)
    changed = True
    while changed:  # the loads, sorted, fall with every exchange, so this ends
        changed = False
        for fuller in np.argsort(-load, kind="stable"):
            while load[fuller] > enough:
                own = np.flatnonzero(bin_of[:num_items] == fuller)
                transfer = size[own, None] - size
                # Within one bin this is never below its load, so such a pair is never taken.
                result = np.maximum(load[fuller] - transfer, load[bin_of] + transfer)
                item, other = divmod(int(result.argmin()), num_items + num_bins)
                if result[item, other] >= load[fuller]:
                    break
                emptier = bin_of[other]
                load[[fuller, emptier]] += transfer[item, other] * np.array([-1, 1])
                bin_of[own[item]] = emptier
                if other < num_items:
                    bin_of[other] = fuller
                changed = True
    return [np.flatnonzero(bin_of[:num_items] == chosen).tolist() for chosen in range(num_bins)]


def _deal(load: list[int], bins: Bins, world_size: int) -> list[Bins]:
    """Give out the bins, fullest first, each to the rank with the fewest tokens among those with the fewest bins."""
    ranks: list[Bins] = [[] for _ in range(world_size)]
    waiting = [(0, 0, rank) for rank in range(world_size)]  # (bins, tokens, rank)
    for chosen in _decreasing(load):
        count, tokens, rank = waiting[0]
        ranks[rank].append(bins[chosen])
        heapq.heapreplace(waiting, (count + 1, tokens + load[chosen], rank))
    return ranks
