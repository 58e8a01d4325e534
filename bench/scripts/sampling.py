"""Tokens a second of seeded sampling, beside ``generate(do_sample=True)`` on the same inputs.

    python -m bench.scripts.sampling [--rounds 15] [--out bench/scripts/results/sampling.json]

`mdpo.answers.sample` draws each answer by random numbers of its own, inside transformers' `generate`, by a logits
processor; plain sampling draws by `torch.multinomial`. Two models on the CPU, one thread: the digits model of the demo,
and a tiny LLaVA with the vocabulary of LLaVA-1.5, where choosing a token is most of a step. Both sides read the
pictures and draw answers of one fixed length, turn by turn; the medians are compared. Time is the processor's, since
another program may share it. Prints one JSON object; `speed` is plain sampling's time over ours.
"""

import os
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, ProcessorMixin

from bench.commit import require_commit
from bench.suite.record import environment, tell
from mdpo.answers.draw import Sampling, draw
from mdpo.data import PromptRow, parse_rows
from mdpo.evaluation.generate import Writer
from mdpo.models import load, load_processor
from tests import tiny

QUESTIONS, ANSWERS, TEMPERATURE = 4, 4, 0.9  # a batch of 16
DIGITS = Path(__file__).parents[1] / "digits" / "model"


def questions(folder: Path, side: int) -> list[PromptRow]:
    """Questions about pictures of noise."""
    generator = np.random.default_rng(0)
    records = []
    for index in range(QUESTIONS):
        Image.fromarray(generator.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        records.append({"image": f"{index}.png", "prompt": "List the digits."})
    return list(parse_rows(records, folder, kind=PromptRow))


def tiny_llava(vocabulary: int) -> LlavaForConditionalGeneration:
    """tests.tiny's, with so many tokens."""
    config: Any = tiny.llava().config
    config.text_config.vocab_size = vocabulary
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config).eval()


def measure(model: Any, processor: ProcessorMixin, rows: list[PromptRow], tokens: int, rounds: int) -> dict[str, float]:
    """Milliseconds of the processor for a batch on either side, and tokens a second."""
    model.generation_config.suppress_tokens = [model.generation_config.eos_token_id]  # no answer ends earlier
    writer, items = Writer(model, processor), [(row, number) for row in rows for number in range(ANSWERS)]
    sampling = Sampling(temperature=TEMPERATURE, top_p=1.0, seed=42, max_new_tokens=tokens)

    def ours() -> int:
        return sum(answer.tokens for answer in draw(writer, items, sampling, len(items)))

    @torch.no_grad()
    def plain() -> int:
        inputs = writer.inputs([row for row, _ in items])
        ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=True, temperature=TEMPERATURE, top_k=0)
        return ids[:, inputs["input_ids"].shape[1] :].numel()

    sides: dict[str, Callable[[], int]] = {"ours": ours, "plain": plain}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            began = time.process_time()
            drawn = side()
            if number:  # the first round warms up
                times[name].append(time.process_time() - began)
            if drawn != QUESTIONS * ANSWERS * tokens:
                raise SystemExit(f"{name} drew {drawn} tokens")
    medians = {name: median(found) for name, found in times.items()}
    return {
        **{f"{name}_ms": 1e3 * seconds for name, seconds in medians.items()},
        **{f"{name}_tokens_per_s": QUESTIONS * ANSWERS * tokens / seconds for name, seconds in medians.items()},
        "speed": medians["plain"] / medians["ours"],
    }


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--out", type=Path, help="where the JSON goes as well")
    options = parser.parse_args()
    require_commit(parser)
    torch.set_num_threads(1)
    record: dict[str, Any] = {"rounds": options.rounds, "tokens": options.tokens, "batch": QUESTIONS * ANSWERS}
    with tempfile.TemporaryDirectory() as folder:
        rows = questions(Path(folder), 48)
        record["digits model"] = measure(load(DIGITS), load_processor(DIGITS), rows, options.tokens, options.rounds)
        record["tiny LLaVA, 32,000 tokens"] = measure(
            tiny_llava(32000), tiny.processor(), rows, options.tokens, options.rounds
        )
    record |= {"load": os.getloadavg()[0], "cores": os.cpu_count(), "environment": environment(torch.device("cpu"))}
    tell(record, options.out)


if __name__ == "__main__":
    main()
