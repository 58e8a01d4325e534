"""How long a step waits for its input: images read, cropped and processed in workers ahead of the step.

    python -m bench.scripts.input_wait [--read-ms 20] [--out FILE.json]

The real pipeline (PreferenceDataset, StepSampler, packing, DataLoader) on photo-like JPEGs of 336 pixels. The step is
a sleep of ``--step-ms``: what a GPU's step is to the CPU. By default it is as long as 32 pairs of LLaVA-1.5-7B at the
least: 55,370 packed tokens (bench.scripts.ranks) at 4 flops a token and parameter, the reference cached and nothing
recomputed, at 400 TFLOP/s. ``--read-ms`` is added to every image file that is opened: a slow disk. Prints one JSON
object; ``wait_share`` is the time blocked on the loader over the whole time, without the first step, which nothing
could prefetch.
"""

import os
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from bench.commit import require_commit
from bench.inputs.processor import smallest_processor
from bench.suite.record import environment, tell
from mdpo.data import DataOptions, PreferenceDataset, parse_rows
from mdpo.packing import MDPO_BRANCHES, PreferenceTokens
from mdpo.packing.families import Llava
from mdpo.trainer.steps import MicroBatches, StepSampler, collate

SIDE, PATCH, WORDS = 336, 14, 100  # CLIP ViT-L/14-336; words of a response
IMAGE = 2  # the placeholder's token id


def photos(folder: Path, count: int) -> list[dict]:
    """Rows with a JPEG each: smooth colours and some grain, so that it decodes like a photo."""
    generator = np.random.default_rng(0)
    rows = []
    for index in range(count):
        coarse = Image.fromarray(generator.integers(0, 255, (12, 12, 3), dtype=np.uint8)).resize((SIDE, SIDE))
        grain = generator.normal(0, 6, (SIDE, SIDE, 3))
        pixels = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.jpg", quality=90)
        answer = " ".join(["a"] * WORDS)
        rows.append({"image": f"{index}.jpg", "prompt": "a", "chosen": answer, "rejected": answer})
    return rows


class SlowDisk(PreferenceDataset):
    """Waits before an example's image is read."""

    read_seconds = 0.0

    def __getitem__(self, item: int | tuple[int, int | None]) -> PreferenceTokens:
        time.sleep(self.read_seconds)
        return super().__getitem__(item)


def measure(dataset: PreferenceDataset, *, workers: int, examples: int, step_seconds: float) -> dict[str, float]:
    """One epoch: milliseconds of a step, waiting and in all, and the share."""
    family = Llava(image_token_id=IMAGE, max_branch_tokens=None, patch_size=PATCH, extra_tokens=0)
    sampler = StepSampler(dataset.lengths, 16384, examples_per_step=examples, seed=0)
    loader = DataLoader(
        MicroBatches(dataset, family, MDPO_BRANCHES),
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
    )
    steps = iter(loader)
    next(steps)
    time.sleep(step_seconds)
    started, waited, count = time.perf_counter(), 0.0, 0
    while True:
        asked = time.perf_counter()
        if next(steps, None) is None:
            break
        waited += time.perf_counter() - asked
        count += 1
        time.sleep(step_seconds)
    total = time.perf_counter() - started
    return {
        "steps": count,
        "wait_ms": 1e3 * waited / count,
        "total_ms": 1e3 * total / count,
        "wait_share": waited / total,
    }


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--examples-per-step", type=int, default=32)
    parser.add_argument("--step-ms", type=float, default=3700, help="what the step itself takes")
    parser.add_argument("--read-ms", type=float, default=0, help="what a slow disk adds to every image")
    parser.add_argument("--out", type=Path, help="where the JSON goes as well")
    options = parser.parse_args()
    require_commit(parser)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = photos(Path(folder), options.steps * options.examples_per_step)
        dataset = SlowDisk(
            parse_rows(rows, folder), smallest_processor(SIDE, PATCH, image_token_id=IMAGE), DataOptions()
        )
        started = time.perf_counter()
        for index in range(options.examples_per_step):
            dataset[index]
        example = (time.perf_counter() - started) / options.examples_per_step
        dataset.read_seconds = options.read_ms / 1e3
        result = measure(
            dataset,
            workers=options.workers,
            examples=options.examples_per_step,
            step_seconds=options.step_ms / 1e3,
        )
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    settings |= {"load": os.getloadavg()[0], "cores": os.cpu_count(), "example_cpu_ms": 1e3 * example}
    tell(settings | result | {"environment": environment(torch.device("cpu"))}, options.out)


if __name__ == "__main__":
    main()
