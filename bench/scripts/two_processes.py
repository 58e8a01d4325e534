"""What a second process costs in talking to the first: ``python -m bench.scripts.two_processes [--out FILE.json]``

Two processes of one DDP run (torchrun, gloo) against two runs of one process each, side by side, that share nothing and
take half of the pairs each: the same trainer, the same pairs, the same contention for caches and memory, one thread
a process. What the first has less of packed tokens a second is communication and waiting for each other. Beside it
stand what waiting the planner's shares alone explain (the fullest rank over the mean), and an all-reduce of the
adapter's gradients by itself. Rounds of both kinds take turns.
"""

# A trainer's attributes are Optional to a type checker.
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from bench.commit import ROOT, require_commit
from bench.inputs.models import CPU_60M, TINY, Shape, adapter, build_base
from bench.inputs.preference_rows import TokenPairs, preference_rows
from bench.inputs.processor import processor_for
from bench.suite.record import environment
from mdpo import MDPOConfig, MDPOTrainer
from mdpo.packing import plan

SHAPES = {shape.name: shape for shape in (CPU_60M, TINY)}
IMAGE_TOKENS, SHRINK, TOKEN_BUDGET, SEED = 64, 4, 2048, 0
ALL_REDUCES = 7


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.ends.append(time.perf_counter())


def work(shape: Shape, steps: int, pairs: int, rank: int | None, out: Path) -> None:
    """One process's training. rank: whose half of the pairs to take alone; None in a DDP run, which deals them itself.

    Writes seconds and packed tokens of each step but the first, which warms up.
    """
    torch.set_num_threads(1)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    examples = preference_rows(shape, steps * pairs, image_tokens=IMAGE_TOKENS, shrink=SHRINK)
    if rank is not None:
        dealt = plan(
            [e.packed_length for e in examples], TOKEN_BUDGET, examples_per_step=pairs, rank=rank, world_size=2
        )
        examples = [examples[index] for step in dealt for batch in step for index in batch]
        pairs //= 2
    model = build_base(shape, IMAGE_TOKENS, torch.device("cpu"))
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = MDPOConfig(
            output_dir=folder,
            examples_per_step=pairs,
            token_budget=TOKEN_BUDGET,
            max_steps=steps,
            seed=SEED,
            data_seed=SEED,
            use_cpu=True,
            ddp_backend="gloo" if world_size > 1 else None,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = MDPOTrainer(
            model=model,
            args=args,
            train_dataset=TokenPairs(examples),
            processing_class=processor_for(model),
            peft_config=adapter(),
            callbacks=[clock],
        )
        trainer.train()
    shares = plan(
        [e.packed_length for e in examples],
        TOKEN_BUDGET,
        examples_per_step=pairs,
        seed=SEED,
        rank=args.process_index,
        world_size=world_size,
    )
    loads = [sum(examples[index].packed_length for batch in step for index in batch) for step in shares]
    gradient = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    result = {
        "seconds": [end - begin for begin, end in zip(clock.ends[:-1], clock.ends[1:], strict=True)],
        "tokens": loads[1 : len(clock.ends)],
        "all_reduce_seconds": _all_reduce_seconds(gradient) if world_size > 1 else 0.0,
        "gradient_bytes": 4 * gradient,
    }
    (out / f"{args.process_index if rank is None else rank}.json").write_text(json.dumps(result), encoding="utf-8")
    if world_size > 1:
        # torchrun ends every process for one that aborts, and gloo may abort the interpreter's shutdown: leave
        # together, with everything written, and without that shutdown.
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()
        os._exit(0)


def _all_reduce_seconds(numel: int) -> float:
    buffer, seconds = torch.zeros(numel), []
    for _ in range(ALL_REDUCES):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(buffer)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def launch(options: argparse.Namespace, *, ddp: bool) -> list[dict]:
    """One round: what each of the two processes wrote."""
    script = [
        "-m",
        "bench.scripts.two_processes",
        "--shape",
        options.shape,
        "--steps",
        str(options.steps),
        "--pairs",
        str(options.pairs),
    ]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    with tempfile.TemporaryDirectory() as folder:
        if ddp:
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
            commands = [[*torchrun, *script, "--work", folder]]
        else:
            commands = [[*script, "--work", folder, "--rank", str(rank)] for rank in range(2)]
        processes = [
            subprocess.Popen(
                [sys.executable, *command], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for command in commands
        ]
        for process in processes:
            _, errors = process.communicate()
            if process.returncode:
                raise RuntimeError(f"a process ended with {process.returncode}:\n{errors[-2000:]}")
        return [json.loads(Path(folder, f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def tokens_per_second(processes: list[dict]) -> float:
    """Of both together."""
    return sum(sum(process["tokens"]) / sum(process["seconds"]) for process in processes)


def measure(options: argparse.Namespace) -> dict:
    """The record: rounds of both kinds, and what they come to."""
    together, apart = [], []
    for round_ in range(options.rounds):
        print(f"round {round_ + 1} of {options.rounds}", flush=True)
        together.append(launch(options, ddp=True))
        apart.append(launch(options, ddp=False))
    shares = [1 - tokens_per_second(one) / tokens_per_second(other) for one, other in zip(together, apart, strict=True)]
    pairs_of_loads = [list(zip(*(process["tokens"] for process in one), strict=True)) for one in together]
    fullest = [sum(max(loads) for loads in one) / sum(sum(loads) / 2 for loads in one) for one in pairs_of_loads]
    step = median(second for one in together for process in one for second in process["seconds"])
    reduce_ = median(process["all_reduce_seconds"] for one in together for process in one)
    return {
        "shape": options.shape,
        "image_tokens": IMAGE_TOKENS,
        "pairs_a_step": options.pairs,
        "steps": options.steps,
        "lora_r": 64,
        "rounds": options.rounds,
        "environment": environment(torch.device("cpu")),
        "load": os.getloadavg()[0],
        "tokens_per_second_ddp": [tokens_per_second(one) for one in together],
        "tokens_per_second_apart": [tokens_per_second(one) for one in apart],
        "communication_and_waiting_share": median(shares),
        "by_round": shares,
        "fullest_rank_over_mean": median(fullest),
        "step_seconds": step,
        "all_reduce_seconds": reduce_,
        "all_reduce_share": reduce_ / step,
        "gradient_bytes": together[0][0]["gradient_bytes"],
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default=CPU_60M.name)
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of a round; the first is not counted")
    parser.add_argument("--pairs", type=int, default=16, help="of a step, both processes together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="where the record goes")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # a process of a round, and its folder
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work is not None:
        work(SHAPES[options.shape], options.steps, options.pairs, options.rank, options.work)
        return
    require_commit(parser)
    record = measure(options)
    print(
        f"packed tokens a second: {median(record['tokens_per_second_ddp']):.0f} as one DDP run, "
        f"{median(record['tokens_per_second_apart']):.0f} as two runs apart\n"
        f"communication and waiting: {record['communication_and_waiting_share']:.1%} of a step "
        f"({', '.join(f'{share:.1%}' for share in record['by_round'])} by round)\n"
        f"the fullest rank has {record['fullest_rank_over_mean'] - 1:.1%} more tokens than the mean; an all-reduce of "
        f"{record['gradient_bytes'] / 1e6:.1f} MB alone takes {record['all_reduce_share']:.1%} of a step of "
        f"{record['step_seconds']:.2f} s"
    )
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
