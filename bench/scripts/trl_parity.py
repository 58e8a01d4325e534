"""The same training as TRL's, step by step: ``python -m bench.scripts.trl_parity [--steps 8] [--out FILE.json]``

mDPO without its two own terms is DPO (``conditional: false``, ``anchors: []``). So DPOTrainer and MDPOTrainer are given
the same tiny random model, the same pairs in the same order and the same optimizer, in float32 on a CPU, LoRA and full
fine-tuning, and have to say the same loss, gradient norm and rewards at each step and end at the same weights. TRL pads
[chosen; rejected] and encodes each image twice; ours packs a shared prompt and encodes it once.

Both get token ids and processed images, TRL as collated batches, which its trainer takes without a patch. Text is left
out on purpose: TRL drops LLaVA-1.5's BOS and scores a blank in place of its ``</s>``, and the newline behind Qwen's
``<|im_end|>``. So is the processor: those of the Qwen families, SmolVLM and InternVL need torchvision.

Prints a row for each model and way of training; exits with 1 where a loss is further apart than LOSS_BOUND.
"""

# A trainer's attributes are Optional to a type checker, and transformers types its arguments as all they could be.
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false, reportCallIssue=false

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel, Trainer, set_seed
from transformers.models.llava.processing_llava import LlavaProcessor

from bench.commit import require_commit
from bench.inputs.preference_rows import TokenPairs
from bench.suite.record import environment
from mdpo import MDPOConfig, MDPOTrainer
from mdpo.models import LANGUAGE_LINEAR
from mdpo.packing import Family, PreferenceTokens, family_of, plan
from tests import tiny

LOSS_BOUND = 1e-6
MODELS = {
    "llava-llama": tiny.llava,
    "bunny-phi": tiny.bunny,
    "llava-next-mistral": tiny.llava_next,
    "qwen2-vl": tiny.qwen2_vl,
    "qwen2.5-vl": tiny.qwen2_5_vl,
    "qwen3-vl": tiny.qwen3_vl,
    "idefics3": tiny.idefics3,
    "smolvlm": tiny.smolvlm,
    "internvl": tiny.internvl,
}
WAYS = ("LoRA", "full")
EXAMPLES, PAIRS = 16, 4  # of an epoch, of a step
LOGGED = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
SEED = 0
IMAGE = 3  # the placeholder's id in every tiny model
ROW = {"images": [], "prompt": "", "chosen": "", "rejected": ""}  # TRL looks at a row to see that there are images


@dataclass(frozen=True)
class Run:
    """A training as it went: by name what was logged at each step, and the weights that were trained, before
    and after.
    """

    logged: dict[str, list[float]]
    before: dict[str, Tensor]
    after: dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """How far two runs are apart at the most, over all steps. gradient_norm is relative, weights over those trained.

    moved: how far training took the weights. first_loss, last_loss: TRL's.
    """

    model: str
    way: str
    steps: int
    loss: float
    gradient_norm: float
    rewards: float
    logps: float
    weights: float
    moved: float
    first_loss: float
    last_loss: float


def examples_of(model: PreTrainedModel, count: int) -> list[PreferenceTokens]:
    """Pairs of several lengths around pictures of two sizes; every fifth is text alone."""
    generator = torch.Generator().manual_seed(1)
    family = cast(Family, family_of(model))

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(20, 380, (length,), generator=generator).tolist()

    rows = []
    for index in range(count):
        images = None if index % 5 == 4 else picture(model, ((4, 6), (8, 4))[index % 2], generator)
        placeholders = [] if images is None else [IMAGE] * sum(family.image_lengths(images))
        prompt = [*ids(1, 4), *placeholders, *ids(2, 9)]
        rows.append(PreferenceTokens(str(index), prompt, [*ids(1, 12), 1], [*ids(1, 12), 1], images))
    return rows


def picture(model: PreTrainedModel, grid: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
    """Noise as the family's image processor returns a picture."""
    kind, (height, width) = model.config.model_type, grid
    if kind.startswith("qwen"):
        values = torch.randn(height * width, 3 * 2 * 4 * 4, generator=generator)
        return {"pixel_values": values, "image_grid_thw": torch.tensor([[1, height, width]])}
    if kind == "llava_next":
        values = torch.randn(1, 5, 3, tiny.SIDE, tiny.SIDE, generator=generator)
        return {"pixel_values": values, "image_sizes": torch.tensor([[11 * height, 11 * width]])}
    tiles = 1 if kind == "llava" else height * width // 8
    values = torch.randn(tiles, 3, tiny.SIDE, tiny.SIDE, generator=generator)
    if kind in ("idefics3", "smolvlm"):
        return {"pixel_values": values[None], "pixel_attention_mask": torch.ones_like(values[None, :, 0]).long()}
    return {"pixel_values": values}


def collate(examples: Sequence[PreferenceTokens], model: PreTrainedModel) -> dict[str, Tensor]:
    """[chosen; rejected], padded on the right, as TRL's own collator for images lays them out."""
    rows = [(e, answer) for answer in ("chosen_ids", "rejected_ids") for e in examples]
    width = max(len(e.prompt_ids) + len(getattr(e, answer)) for e, answer in rows)
    ids = torch.full((len(rows), width), 2)
    attention, completion = torch.zeros_like(ids), torch.zeros_like(ids)
    for index, (example, answer) in enumerate(rows):
        prompt, response = example.prompt_ids, getattr(example, answer)
        length = len(prompt) + len(response)
        ids[index, :length] = torch.tensor([*prompt, *response])
        attention[index, :length] = 1
        completion[index, len(prompt) : length] = 1
    batch = {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}
    if model.config.model_type.startswith("qwen"):
        batch["mm_token_type_ids"] = (ids == IMAGE).long()
    pictures = [example.images for example, _ in rows]
    if model.config.model_type in ("idefics3", "smolvlm"):
        return batch | _stacked(pictures)
    for name in {name for images in pictures if images for name in images}:
        batch[name] = torch.cat([images[name] for images in pictures if images])
    return batch


def _stacked(pictures: Sequence[Any]) -> dict[str, Tensor]:
    """One row of tiles a sequence; the model takes a tile of zeros for padding."""
    most = max(images["pixel_values"].shape[1] for images in pictures if images)
    found = {
        "pixel_values": torch.zeros(len(pictures), most, 3, tiny.SIDE, tiny.SIDE),
        "pixel_attention_mask": torch.zeros(len(pictures), most, tiny.SIDE, tiny.SIDE, dtype=torch.int64),
    }
    for index, images in enumerate(pictures):
        for name, tensor in (images or {}).items():
            found[name][index, : tensor.shape[1]] = tensor[0]
    return found


def settings(folder: str, way: str, steps: int) -> dict[str, Any]:
    """Of transformers.TrainingArguments and DPO, equal for both. bf16 is TRL's default, also on a CPU."""
    return {
        "output_dir": folder, "beta": 0.1, "max_length": None, "max_steps": steps,
        "learning_rate": 5e-3 if way == "LoRA" else 2e-4, "lr_scheduler_type": "cosine", "warmup_steps": 0,
        "weight_decay": 0.01, "max_grad_norm": 1.0, "optim": "adamw_torch", "gradient_checkpointing": False,
        "use_cpu": True, "bf16": False, "seed": SEED, "report_to": "none", "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True,
    }  # fmt: skip


def adapter(way: str) -> LoraConfig | None:
    return LoraConfig(r=4, lora_alpha=8, target_modules=LANGUAGE_LINEAR) if way == "LoRA" else None


def token_budget(examples: Sequence[PreferenceTokens]) -> int:
    """Ours takes a step in several micro-batches, TRL in one batch."""
    return 2 * max(example.packed_length for example in examples)


def run_ours(model: PreTrainedModel, examples: list[PreferenceTokens], way: str, steps: int) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        trainer = MDPOTrainer(
            model=model,
            args=MDPOConfig(
                conditional=False,
                anchors=[],
                examples_per_step=PAIRS,
                token_budget=token_budget(examples),
                **settings(folder, way, steps),
            ),
            train_dataset=TokenPairs(examples),
            processing_class=_processor(),
            peft_config=adapter(way),
        )
        return _train(trainer)


def run_trl(model: PreTrainedModel, examples: list[PreferenceTokens], way: str, steps: int) -> Run:
    """ImportError without trl."""
    from trl import DPOConfig  # pyright: ignore[reportMissingImports]  (an optional peer)

    from bench.suite.implementations.trl_step import CollatedDPOTrainer

    with tempfile.TemporaryDirectory() as folder:
        set_seed(SEED)  # the adapter draws its weights before the trainer seeds
        trainer = CollatedDPOTrainer(
            model=model,
            ref_model=copy.deepcopy(model) if way == "full" else None,
            args=DPOConfig(
                per_device_train_batch_size=PAIRS, dataloader_pin_memory=False, **settings(folder, way, steps)
            ),
            train_dataset=Dataset.from_list([ROW]),
            processing_class=_processor(),
            peft_config=adapter(way),
        )
        trainer.batches = [collate(pairs, model) for pairs in _pairs_by_step(examples, steps)]
        return _train(trainer)


def _pairs_by_step(examples: list[PreferenceTokens], steps: int) -> list[list[PreferenceTokens]]:
    """The pairs of each step in the order of our planner, which deals them anew in each epoch."""
    lengths, budget = [example.packed_length for example in examples], token_budget(examples)
    epochs = [
        plan(lengths, budget, examples_per_step=PAIRS, seed=SEED, epoch=epoch)
        for epoch in range(-(-steps * PAIRS // EXAMPLES))
    ]
    dealt = [step for epoch in epochs for step in epoch][:steps]
    return [[examples[index] for micro_batch in step for index in micro_batch] for step in dealt]


def _processor() -> LlavaProcessor:
    """A trainer cannot be built without one; the rows are processed already."""
    return tiny.processor()


def _train(trainer: Trainer) -> Run:
    def trained() -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}

    before = trained()
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return Run({name: [line[name] for line in lines] for name in LOGGED}, before, trained())


def compare(name: str, way: str, steps: int) -> Row:
    """Trains both ways. RuntimeError where the two do not start from the same weights, or take other numbers
    of steps.
    """
    examples = examples_of(MODELS[name](), EXAMPLES)
    theirs, ours = run_trl(MODELS[name](), examples, way, steps), run_ours(MODELS[name](), examples, way, steps)
    if theirs.before.keys() != ours.before.keys() or _apart(theirs.before, ours.before):
        raise RuntimeError(f"{name}, {way}: TRL and mDPO start from different weights")
    if len(theirs.logged["loss"]) != steps or len(ours.logged["loss"]) != steps:
        raise RuntimeError(
            f"{name}, {way}: {len(theirs.logged['loss'])} and {len(ours.logged['loss'])} steps, not {steps}"
        )
    difference = {
        key: [abs(a - b) for a, b in zip(theirs.logged[key], ours.logged[key], strict=True)] for key in LOGGED
    }
    norms = zip(difference["grad_norm"], theirs.logged["grad_norm"], strict=True)
    return Row(
        model=name,
        way=way,
        steps=steps,
        loss=max(difference["loss"]),
        gradient_norm=max(apart / norm for apart, norm in norms),
        rewards=max(difference["rewards/chosen"] + difference["rewards/rejected"]),
        logps=max(difference["logps/chosen"] + difference["logps/rejected"]),
        weights=_apart(theirs.after, ours.after),
        moved=_apart(theirs.before, theirs.after),
        first_loss=theirs.logged["loss"][0],
        last_loss=theirs.logged["loss"][-1],
    )


def _apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scripts.trl_parity", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=8, help=f"optimizer steps of {PAIRS} pairs")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="models (default: all)")
    parser.add_argument("--out", type=Path, help="JSON file for the record")
    options = parser.parse_args(arguments)
    if options.out is not None:
        require_commit(parser)
    try:
        import trl  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
    except ImportError as error:
        sys.exit(f'TRL cannot be imported ({error}); pip install -e ".[peers]"')
    header = ("loss", "gradient norm", "rewards", "logps", "weights", "moved")
    print(f"{'model':<20}{'way':<6}" + "".join(f"{name:>15}" for name in header) + f"{'TRL, from to':>20}")
    rows = []
    for name in options.models:
        for way in WAYS:
            row = compare(name, way, options.steps)
            rows.append(row)
            numbers = (row.loss, row.gradient_norm, row.rewards, row.logps, row.weights, row.moved)
            losses = f"{row.first_loss:.4f} {row.last_loss:.4f}"
            print(f"{name:<20}{way:<6}" + "".join(f"{x:>15.1e}" for x in numbers) + f"{losses:>20}", flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "what": "largest difference between TRL's DPOTrainer and MDPOTrainer over all steps, float32",
            "pairs": EXAMPLES,
            "pairs_a_step": PAIRS,
            "loss_bound": LOSS_BOUND,
            "environment": environment(torch.device("cpu")),
            "rows": [asdict(row) for row in rows],
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    worst = max(rows, key=lambda row: row.loss)
    if not worst.loss <= LOSS_BOUND:
        sys.exit(f"{worst.model}, {worst.way}: losses are {worst.loss:.1e} apart; expected at most {LOSS_BOUND:.0e}")


if __name__ == "__main__":
    main()
