"""How a step spreads over ranks: tokens, evenness and bytes, from the planner itself. ``python -m bench.scripts.ranks``

A simulation, not a measurement: lengths are drawn as in ``bench.inputs.lengths``, bytes are counted from the
model's shape. Seconds are left out, since they would need a GPU's and a network's real rates.
"""

import argparse

from bench.inputs.lengths import realistic_lengths
from bench.inputs.models import LLAVA_7B
from mdpo.packing import plan

TOKEN_BUDGET = 16384
EXAMPLES = 4096
RANK = 64  # of the LoRA


def lora_parameters(hidden: int, intermediate: int, layers: int, rank: int = RANK) -> int:
    """Of a Llama with an adapter on q, k, v, o, gate, up and down; no grouped keys."""
    attention, mlp = 4 * 2 * hidden, 3 * (hidden + intermediate)
    return layers * rank * (attention + mlp)


def body_parameters(hidden: int, intermediate: int, layers: int) -> int:
    return layers * (4 * hidden * hidden + 3 * hidden * intermediate)


def row(world_size: int, examples_per_step: int, lengths: list[int]) -> list[str]:
    """Tokens of the fullest rank over the mean, micro-batches per rank, and GB that each rank sends a step."""
    ranks = [
        plan(lengths, TOKEN_BUDGET, examples_per_step=examples_per_step, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    evenness, micro_batches, tokens = [], [], []
    for step in zip(*ranks, strict=True):
        loads = [sum(lengths[index] for micro_batch in part for index in micro_batch) for part in step]
        evenness.append(max(loads) * world_size / sum(loads))
        micro_batches.append(max(len(part) for part in step))
        tokens.append(sum(loads) / world_size)
    text = LLAVA_7B.text
    shape = (text.hidden_size, text.intermediate_size, text.num_hidden_layers)
    share = 2 * (world_size - 1) / world_size  # ring all-reduce: each rank sends this many times the buffer
    ddp = share * lora_parameters(*shape) * 4 / 1e9
    # FSDP2 gathers the frozen bf16 body in every forward and backward of every micro-batch.
    mean_micro_batches = sum(micro_batches) / len(micro_batches)
    fsdp = share / 2 * body_parameters(*shape) * 2 * 2 * mean_micro_batches / 1e9
    mean = sum(tokens) / len(tokens)
    return [
        str(world_size),
        str(examples_per_step),
        f"{mean:,.0f}",
        f"{mean_micro_batches:.1f}",
        f"{sum(evenness) / len(evenness):.3f}",
        f"{ddp:.2f}",
        f"{fsdp:.0f}",
    ]


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(prog="bench.scripts.ranks", description=__doc__).parse_args(arguments)
    lengths = realistic_lengths(EXAMPLES)
    header = ["GPUs", "pairs a step", "tokens a rank", "micro-batches", "fullest / mean", "DDP GB", "FSDP2 GB"]
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    for world_size, examples_per_step in ((1, 32), (8, 32), (8, 256), (64, 256), (64, 2048)):
        print(f"| {' | '.join(row(world_size, examples_per_step, lengths))} |", flush=True)


if __name__ == "__main__":
    main()
