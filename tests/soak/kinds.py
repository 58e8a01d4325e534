"""What is disturbed: kinds of runs over one tiny model, and the undisturbed run of each."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests import tiny

from .forks import HANGS, Member, alone
from .launcher import Run

BASE = """\
model_name_or_path: {model}
train_data: {data}
output_dir: {out}
lora_r: 4
lora_alpha: 8
learning_rate: 1.0e-3
examples_per_step: 4
token_budget: 400
num_train_epochs: 2
logging_steps: 1
use_cpu: true
disable_tqdm: true
report_to: none
"""
_EVALUATED = "eval_fraction: 0.25\neval_strategy: steps\n"
_BEST = "eval_steps: 1\nload_best_model_at_end: true\nmetric_for_best_model: eval_loss\n"
# Those with data workers say so by name, as do those of another family than LLaVA.
KINDS = {
    "lora": "save_steps: 1\n",
    "lora, workers, every 3": "save_steps: 3\ndataloader_num_workers: 2\n",
    "lora, dropout, workers": "save_steps: 1\ndataloader_num_workers: 2\nlora_dropout: 0.1\n",
    "lora, no reference cache": "save_steps: 2\ncache_reference: false\n",
    "lora, negatives per epoch, workers": "save_steps: 2\nnegative_per_epoch: true\ndataloader_num_workers: 2\n",
    "lora, evaluated, last one": _EVALUATED + "eval_steps: 2\nsave_steps: 1\nsave_total_limit: 1\n",
    "lora, best, last two": _EVALUATED + _BEST + "save_steps: 1\nsave_total_limit: 2\n",
    "lora, saved at stops alone": 'save_strategy: "no"\n',
    "full": "use_lora: false\nsave_steps: 1\n",
    "full, workers, last one": "use_lora: false\nsave_steps: 1\ndataloader_num_workers: 2\nsave_total_limit: 1\n",
    "full, best, last two": "use_lora: false\n" + _EVALUATED + _BEST + "save_steps: 1\nsave_total_limit: 2\n",
    "full, tower and projector": (
        "use_lora: false\nfreeze_vision_tower: false\nfreeze_multi_modal_projector: false\nsave_steps: 3\n"
    ),
    "lora, llava_next": "save_steps: 2\n",
    "full, bunny, workers": "use_lora: false\nsave_steps: 2\ndataloader_num_workers: 2\nsave_total_limit: 1\n",
    "full, llava_next, tower and projector": (
        "use_lora: false\nfreeze_vision_tower: false\nfreeze_multi_modal_projector: false\nsave_steps: 1\n"
    ),
}
ROWS = 16


@dataclass
class Undisturbed:
    """What a run is when nothing happens. files: what it leaves, see ``shape_of``."""

    folder: Path
    seconds: float
    steps: int
    events: list[int]  # one number a process
    files: set[str] = field(default_factory=set)


class Runs:
    """Starts runs of any kind below ``folder``; keeps the undisturbed one of each kind and number of processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._undisturbed: dict[tuple[str, int], Undisturbed] = {}
        for family in tiny.WORLDS:
            if not (self.world(family) / "train.jsonl").exists():
                alone(lambda family=family: _build(self.world(family), family))

    def world(self, family: str) -> Path:
        return self.folder / "world" / family

    def config(self, kind: str, processes: int, out: Path, place: Path) -> Path:
        """Writes the settings of a run whose output is ``out`` into the folder ``place``; returns their file."""
        world = self.world(max((family for family in tiny.WORLDS if family in kind), key=len, default="llava"))
        text = BASE.format(model=world / "model", data=world / "train.jsonl", out=out)
        path = place / f"{out.name}.yaml"
        place.mkdir(parents=True, exist_ok=True)
        path.write_text(text + KINDS[kind] + ("ddp_backend: gloo\n" if processes > 1 else ""))
        return path

    def start(
        self,
        config: Path,
        out: Path,
        processes: int,
        words: Sequence[str] = (),
        *,
        hold_at: int = 0,
        holds: int = 0,
        die_in_write: bool = False,
    ) -> Run:
        """hold_at, holds: the file event, and the process, to hold; see ``events``."""
        arguments = ["train", str(config), *words]
        return Run(
            [
                Member(arguments, out, hold_at=hold_at if rank == holds else 0, die_in_write=die_in_write)
                for rank in range(processes)
            ]
        )

    def undisturbed(self, kind: str, processes: int) -> Undisturbed:
        if (kind, processes) not in self._undisturbed:
            name = "".join(letter if letter.isalnum() else "-" for letter in f"{kind}-{processes}")
            out = self.folder / "undisturbed" / name
            if out.exists():  # of an earlier soak in the same folder
                raise FileExistsError(f"{out} is there already; give a new folder")
            began = time.monotonic()
            run = self.start(self.config(kind, processes, out, out.parent), out, processes)
            ended = run.wait(2 * HANGS)
            run.close()
            if not ended or run.code != 0:
                raise RuntimeError(f"the undisturbed run of {kind!r} over {processes} failed:\n{run.text[-3000:]}")
            self._undisturbed[kind, processes] = Undisturbed(
                folder=out,
                seconds=time.monotonic() - began,
                steps=run.members[0].steps,
                events=[member.events for member in run.members],
                files=shape_of(out),
            )
        return self._undisturbed[kind, processes]


def shape_of(out: Path) -> set[str]:
    """The files below a finished run's folder, checkpoints without their steps."""
    names = set()
    for path in out.rglob("*"):
        parts = ["checkpoint-N" if part.startswith("checkpoint-") else part for part in path.relative_to(out).parts]
        names.add("/".join(parts))
    return names


def _build(folder: Path, family: str) -> None:
    tiny.world(folder, ROWS, family)
