"""What the planner reaches and costs: `python -m bench.scripts.packing_planner [--examples 10000]`, on a CPU.

For each budget, over the steps of an epoch of examples with realistic lengths: the share of steps with
⌈tokens / budget⌉ micro-batches, how full micro-batches are, how uneven within a step (fullest − emptiest over their
mean), and the processor time.
"""

import argparse
import platform
import time

import numpy as np

from bench.inputs.lengths import PROMPTS, realistic_lengths
from mdpo.packing import plan

BUDGETS = (4_000, 6_000, 8_000, 12_000, 16_000, 24_000, 32_000)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=10_000, help="examples of the epoch")
    parser.add_argument("--examples-per-step", type=int, default=32)
    parser.add_argument(
        "--world-size", type=int, default=1, help="rank 0 of so many; shares are of rank 0's own tokens"
    )
    args = parser.parse_args()
    print(f"{args.examples} examples, {args.examples_per_step} a step; {platform.platform()}, numpy {np.__version__}")
    print(f"{'prompts':>17} {'mean length':>12} {'budget':>7} {'fewest':>7} {'full':>6} {'uneven':>7} {'seconds':>8}")
    for prompts in PROMPTS:
        lengths = realistic_lengths(args.examples, prompts)
        for budget in BUDGETS:
            start = time.process_time()
            steps = plan(lengths, budget, examples_per_step=args.examples_per_step, world_size=args.world_size)
            seconds = time.process_time() - start
            loads = [[sum(lengths[example] for example in batch) for batch in step] for step in steps]
            fewest = np.mean([len(step) == -(-sum(step) // budget) for step in loads])
            full = sum(map(sum, loads)) / (budget * sum(map(len, loads)))
            uneven = np.mean([(max(step) - min(step)) * len(step) / sum(step) for step in loads])
            row = f"{prompts:>17} {np.mean(lengths):12.0f} {budget:7d} {fewest:7.1%} {full:6.1%} {uneven:7.2%}"
            print(f"{row} {seconds:8.3f}")


if __name__ == "__main__":
    main()
