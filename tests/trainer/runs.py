"""Runs of MDPOTrainer on a tiny model, with images or on text alone, and what they leave."""

from pathlib import Path

import torch
import yaml
from peft import LoraConfig

from mdpo import MDPOConfig, MDPOTrainer
from mdpo.data import read_rows
from mdpo.models import load, load_processor
from tests import tiny


def lora() -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, target_modules=r".*language_model.*\.(q_proj|v_proj|down_proj)")


def trainer(world, output_dir, *, peft=True, rows=None, eval_rows=None, **settings) -> MDPOTrainer:
    model_dir, data = world
    defaults = {
        "learning_rate": 1e-3,
        "examples_per_step": 4,
        "token_budget": 200,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "save_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    return MDPOTrainer(
        model=load(model_dir),
        args=MDPOConfig(output_dir=str(output_dir), **{**defaults, **settings}),
        train_dataset=read_rows(data) if rows is None else rows,
        eval_dataset=eval_rows,
        processing_class=load_processor(model_dir),
        peft_config=lora() if peft else None,
    )


# Without images, because the weights are what is tried here, and one processor serves every family so.
ROWS = [
    {"id": f"row{index}", "prompt": "what is this?", "chosen": f"a {one} cat", "rejected": f"the {other} dog on grass"}
    for index, (one, other) in enumerate([("red", "blue"), ("big", "small"), ("one", "two"), ("small", "red")])
]


def start(output: Path, *, eval_rows: list[dict] | None = None, **settings) -> MDPOTrainer:
    defaults = {
        "learning_rate": 1e-2,
        "examples_per_step": 2,
        "max_steps": 3,
        "save_steps": 1,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "conditional": False,
        "anchors": [],
        "check_start": False,
    }
    args = MDPOConfig(output_dir=str(output), **{**defaults, **settings})
    return MDPOTrainer(tiny.llava(), args, ROWS, eval_rows, processing_class=tiny.processor(), peft_config=lora())


def config(world, folder, **changes):
    settings = {
        "model_name_or_path": str(world[0]), "train_data": str(world[1]), "output_dir": str(folder / "out"),
        "examples_per_step": 4, "num_train_epochs": 2, "lora_r": 2, "lora_dropout": 0.1, "use_cpu": True,
        "learning_rate": 1e-3, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 1,
        "check_start": False, **changes,
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
