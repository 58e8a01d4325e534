"""A folder in which every command of ``mdpo`` has what it needs, and those commands."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mdpo import cli
from mdpo.evaluation import language
from tests import tiny

CONFIG = """\
model_name_or_path: model
train_data: train.jsonl
output_dir: out
lora_r: 4
lora_alpha: 8
learning_rate: 1.0e-3
examples_per_step: 4
token_budget: 400
max_steps: 1
logging_steps: 1
save_strategy: "no"
use_cpu: true
disable_tqdm: true
report_to: none
"""
_COCO = "--instances coco/instances.json --captions coco/captions.json --synonyms coco/synonyms.txt"
_JUDGE = (
    "--judge gpt-4 --script judge/script.py --base-url http://127.0.0.1:1 --attempts 1 --timeout 0.2 --cache "
    "judge/cache.jsonl"
)


@dataclass(frozen=True)
class Command:
    """A command line that works, and the files of the scene that it reads."""

    words: str
    reads: tuple[str, ...]
    seconds: float = 60.0


_MODEL = tuple(
    f"model/{name}"
    for name in (
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    )
)
_ADAPTER = ("run/adapter_config.json", "run/adapter_model.safetensors")
_CHECKPOINT = tuple(
    f"run/checkpoint-2/{name}"
    for name in (
        "trainer_state.json",
        "mdpo_settings.json",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "adapter_config.json",
        "adapter_model.safetensors",
        "training_args.bin",
    )
)
COMMANDS = {
    "train": Command("train run.yaml", ("train.jsonl",)),
    "plan": Command("plan run.yaml --memory 24GiB", ("train.jsonl",)),
    "merge": Command("merge run merged --base model", _ADAPTER),
    "score": Command("score model train.jsonl --output scores.jsonl --token-budget 400", ("train.jsonl",)),
    "convert bunny": Command("convert bunny model converted", ()),
    "convert llava": Command("convert llava model converted", ()),
    "data check": Command("data check train.jsonl --model model", ("train.jsonl",)),
    "data preview": Command("data preview train.jsonl --output preview.png --rows 2", ("train.jsonl",)),
    "data sample": Command("data sample train.jsonl --output sample.jsonl --count 3", ("train.jsonl",)),
    "generate": Command("generate model train.jsonl --output answers2.jsonl --max-new-tokens 2", ("train.jsonl",)),
    "evaluate amber": Command("evaluate amber amber/responses.json --data amber --output amber.json", (
        "amber/responses.json", "amber/annotations.json", "amber/relation.json", "amber/safe_words.txt")),
    "evaluate object-halbench": Command(f"evaluate object-halbench coco/captioned.jsonl {_COCO} --output coco.json", (
        "coco/captioned.jsonl", "coco/instances.json", "coco/captions.json", "coco/synonyms.txt")),
    "evaluate object-halbench judged": Command(
        f"evaluate object-halbench coco/captioned.jsonl {_COCO} {_JUDGE} --dry-run",
        ("judge/script.py", "judge/cache.jsonl")),
    "evaluate mmhal": Command(f"evaluate mmhal judge/mmhal.json {_JUDGE}", (
        "judge/mmhal.json", "judge/script.py", "judge/cache.jsonl")),
    "evaluate human sheet": Command(
        "evaluate human sheet train.jsonl human/first.jsonl human/second.jsonl --output human/sheet.html",
        ("train.jsonl", "human/first.jsonl", "human/second.jsonl")),
    "evaluate human tally": Command("evaluate human tally human/key.json human/rater.json --output human.json", (
        "human/key.json", "human/rater.json")),
    "report": Command("report run run2 --output report.html", (
        "run/trainer_state.json", "run2/trainer_state.json", "run/amber.json", "run2/amber.json")),
}  # fmt: skip
# Folders of models, adapters and checkpoints, and what reads them.
FOLDERS = {
    "model, score": Command("score model train.jsonl --output scores.jsonl --token-budget 400", _MODEL),
    "model, train": Command("train run.yaml", _MODEL),
    "model, generate": Command("generate model train.jsonl --output answers2.jsonl --max-new-tokens 2", _MODEL),
    "model, data check": Command("data check train.jsonl --model model", _MODEL),
    "adapter, merge": Command("merge run merged --base model", _ADAPTER),
    "adapter, score": Command("score model train.jsonl --adapter run --output scores.jsonl", _ADAPTER),
    "adapter, generate": Command(
        "generate model train.jsonl --adapter run --output answers2.jsonl --max-new-tokens 2", _ADAPTER
    ),
    "adapter, train": Command("train run.yaml --adapter_name_or_path run", _ADAPTER),
    "checkpoint, train": Command("train resume.yaml --resume_from_checkpoint true", _CHECKPOINT),
    "checkpoint by name, train": Command("train resume.yaml --resume_from_checkpoint run/checkpoint-2", _CHECKPOINT),
}


def build(folder: Path) -> None:
    """Fills ``folder``; runs in a child of its own."""
    tiny.world(folder, count=8)
    os.chdir(folder)
    for name in ("amber", "coco", "judge", "human", "folder"):
        Path(name).mkdir()
    Path("empty").touch()
    Path("binary").write_bytes(bytes(range(256)) * 8)
    os.mkfifo("fifo")
    Path("run.yaml").write_text(CONFIG)
    trained = CONFIG.replace('"no"', "steps").replace("max_steps: 1", "max_steps: 4") + "save_steps: 2\n"
    Path("resume.yaml").write_text(trained.replace("output_dir: out", "output_dir: run"))
    _write(
        "amber/annotations.json",
        [
            {"id": 1, "type": "generative", "truth": ["dog", "grass"], "hallu": ["cat"]},
            {"id": 2, "type": "discriminative-relation", "truth": "yes"},
        ],
    )
    _write("amber/relation.json", {"dog": ["puppy"], "grass": [], "cat": []})
    Path("amber/safe_words.txt").write_text("light\nshoe\n")
    _write("amber/responses.json", [{"id": 1, "response": "dog cat"}])
    _write(
        "coco/instances.json",
        {
            "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
            "annotations": [{"image_id": 4, "category_id": 1}],
        },
    )
    _write("coco/captions.json", {"annotations": [{"image_id": 5, "caption": "a kitten"}]})
    Path("coco/synonyms.txt").write_text("dog, puppy\ncat, kitten\n")
    _lines(
        "coco/captioned.jsonl",
        [{"image_id": 4, "prompt": "What?", "text": "a dog"}, {"image_id": 5, "prompt": "?", "text": "cat"}],
    )
    Path("judge/script.py").write_text("template = '{}{}{}{}'\nprompt_template = '{question} {answer}'\n")
    Path("judge/cache.jsonl").touch()
    _write(
        "judge/mmhal.json", [{"image_content": ["Cat"], "question": "How?", "gt_answer": "So.", "model_answer": "a"}]
    )
    rows = [json.loads(line) for line in Path("train.jsonl").read_text().splitlines()]
    _lines("human/first.jsonl", [{"id": row["id"], "response": row["chosen"]} for row in rows])
    _lines("human/second.jsonl", [{"id": row["id"], "response": row["rejected"]} for row in rows])
    _results()


def _results() -> None:
    """What commands leave for other commands to read."""
    stand_in()
    _succeed("train resume.yaml")
    _succeed("evaluate amber amber/responses.json --data amber --output run/amber.json")
    _succeed("evaluate human sheet train.jsonl human/first.jsonl human/second.jsonl --output human/made.html")
    (key,) = Path("human").glob("*.key.json")
    key.rename("human/key.json")
    content = json.loads(Path("human/key.json").read_text())
    choices = dict.fromkeys(content["swapped"], "left")
    _write("human/rater.json", {"schema": "mdpo-human-answers-1", "sheet": content["sheet"], "answers": choices})
    Path("run2").mkdir()
    for name in ("trainer_state.json", "amber.json"):
        (Path("run2") / name).write_bytes((Path("run") / name).read_bytes())


def stand_in() -> None:
    """In a child: words are their own nouns and lemmas, where NLTK and spaCy are not installed."""
    language.load_nouns = lambda: str.split
    language.load_similarity = lambda: lambda noun, word: float(noun == word)
    language.load_lemmas = lambda variant: lambda text: text.lower().split()
    language.load_tagger = lambda: lambda text: [(word, "NN") for word in text.split()]
    os.environ |= {"OPENAI_API_KEY": "sk-fuzz", "NO_PROXY": "127.0.0.1"}
    torch.set_num_threads(1)


def _succeed(words: str) -> None:
    code = cli.main(words.split())
    if code != 0:
        raise RuntimeError(f"mdpo {words} ended with {code}")


def _write(name: str, content: Any) -> None:
    Path(name).write_text(json.dumps(content))


def _lines(name: str, rows: list[dict]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
