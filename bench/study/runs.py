"""One run of the study: a setting and a seed, trained by ``mdpo train`` and scored. Every run is kept on disk.

A run's file is named by a digest of everything that it depends on besides the code, so what is there is not run again,
and a study that was stopped goes on. Runs are independent of each other and of their order.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
import transformers

from bench.digits.demo import CONFIG, TOKEN_BUDGET, answers, chosen_logps, train
from bench.digits.metrics import hallucinated, score
from bench.digits.results import missed
from bench.digits.tune import MODEL
from bench.digits.world import STYLE_PROBABILITY, read_jsonl, write_preferences, write_test
from bench.study.questions import TYPES, correct, tune_questions, write_questions
from mdpo.config import load_config, parse_overrides
from mdpo.data import DataOptions, PreferenceDataset, read_rows
from mdpo.models import load, load_processor, sequence_logps
from mdpo.models.reference_cache import ReferenceCache, fingerprint
from mdpo.outputs import write_text
from mdpo.packing import pack, plan

World = Literal["captions", "questions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a run is beside its seed. overrides: of configs/digits.yaml; None for the tuned model as it is."""

    overrides: tuple[str, ...] | None = ()
    pairs: int = 1500
    world: World = "captions"
    partner_probability: float | None = None
    """Of the scenes in the preference pairs; None: that of the world."""
    style_probability: float = STYLE_PROBABILITY
    """How often the style token tells chosen from rejected: the strength of the shortcut."""
    other_crop: bool = False
    """The reference sees another crop than the policy, as in the authors' code."""

    @property
    def trains(self) -> bool:
        return self.overrides is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """scenes: to test on. tuning_steps: of the questions' model, which is made here."""

    setting: Setting
    seed: int
    scenes: int = 1000
    tuning_steps: int = 2000

    def baseline(self) -> "Run":
        """The tuned model on the same test scenes, which this run is compared with."""
        setting = Setting(overrides=None, pairs=0, world=self.setting.world)
        return Run(setting=setting, seed=self.seed, scenes=self.scenes, tuning_steps=self.tuning_steps)

    def path(self, out: Path) -> Path:
        return out / "runs" / f"{self._digest()}.json"

    def _digest(self) -> str:
        settings = asdict(self)
        if self.setting.world == "captions":
            del settings["tuning_steps"]
        versions = [torch.__version__, transformers.__version__, CONFIG.read_text(encoding="utf-8")]
        return blake2b(json.dumps([settings, versions], sort_keys=True).encode(), digest_size=10).hexdigest()


def question_model(out: Path, steps: int) -> Path:
    """The questions' tuned model, made where it is not there yet."""
    folder = out / f"questions-{steps}"
    if not (folder / "tokenizer.json").is_file():  # written last
        torch.set_num_threads(1)
        with (out / "questions.log").open("w", encoding="utf-8") as log, redirect_stderr(log):
            tune_questions(folder, steps=steps)
    return folder


def execute(run: Run, out: Path) -> None:
    """Train if the setting does, score, and keep the result; the log of it all lies beside it."""
    path = run.path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # as many runs at once as there are cores
    started = perf_counter()
    with path.with_suffix(".log").open("w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        result = _trained(run, out, path.with_suffix("")) if run.setting.trains else _tuned(run, out)
    result |= asdict(run) | {"seconds": round(perf_counter() - started, 1)}
    write_text(path, json.dumps(result) + "\n")


def read_result(run: Run, out: Path) -> dict[str, Any] | None:
    """The kept result, or None."""
    path = run.path(out)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _start(run: Run, out: Path) -> Path:
    """The tuned model that the run starts from."""
    return MODEL if run.setting.world == "captions" else question_model(out, run.tuning_steps)


def _test_folder(run: Run, out: Path) -> Path:
    return out / "tests" / f"{run.setting.world}-{run.seed}-{run.scenes}"


def _tuned(run: Run, out: Path) -> dict[str, Any]:
    """Draw the test scenes and have the tuned model answer; what it says is kept for the runs to come."""
    folder = _test_folder(run, out)
    if run.setting.world == "captions":
        test = write_test(folder, seed=run.seed, count=run.scenes)
    else:
        test = write_questions(folder, split="test", seed=run.seed, count=run.scenes)
    model = _start(run, out)
    given = answers(model, test)
    logps = chosen_logps(model, test).tolist()
    (folder / "tuned.json").write_text(json.dumps({"answers": given, "logps": logps}), encoding="utf-8")
    return {"scores": _scores(run, read_jsonl(test), given, given), "history": []}


def _trained(run: Run, out: Path, folder: Path) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)  # what a run that was stopped has left
    preferences = _preferences(run, folder / "data")
    start = _start(run, out)
    arguments = ["--model_name_or_path", str(start), "--train_data", str(preferences), "--seed", str(run.seed)]
    arguments += run.setting.overrides or ()
    if run.setting.other_crop:
        cache = _cache_of_other_crops(start, preferences, run.seed, folder / "cache")
        # The check at the start refuses such a reference, which is what is studied here.
        arguments += ["--reference_cache_dir", str(cache), "--check_start", "false"]
    train(folder / "model", arguments)

    test_folder = _test_folder(run, out)
    tuned = json.loads((test_folder / "tuned.json").read_text(encoding="utf-8"))
    test = test_folder / "test.jsonl"
    scores = _scores(run, read_jsonl(test), answers(folder / "model", test), tuned["answers"])
    scores["log_ratio"] = (chosen_logps(folder / "model", test) - torch.tensor(tuned["logps"])).mean().item()
    state = json.loads((folder / "model" / "trainer_state.json").read_text(encoding="utf-8"))
    _, settings = load_config(CONFIG, parse_overrides(["--output_dir", str(folder), *arguments]))
    shutil.rmtree(folder)
    return {"scores": scores, "history": _history(state["log_history"], settings.beta)}


def _preferences(run: Run, folder: Path) -> Path:
    setting = run.setting
    if setting.world == "questions":
        return write_questions(folder, split="preference", seed=run.seed, count=setting.pairs)
    return write_preferences(
        folder,
        seed=run.seed,
        count=setting.pairs,
        partner_probability=setting.partner_probability,
        style_probability=setting.style_probability,
    )


@torch.no_grad()
def _cache_of_other_crops(start: Path, preferences: Path, seed: int, folder: Path) -> Path:
    """A reference cache as the authors' code would fill it: log-probs of the examples, each on another crop."""
    model, processor = load(start).eval(), load_processor(start)
    rows = list(read_rows(preferences))
    seen, other = (PreferenceDataset(rows, processor, DataOptions(seed=each)) for each in (seed, seed + 1_000_000))
    cache = ReferenceCache(folder, fingerprint(model))
    (step,) = plan(seen.lengths, TOKEN_BUDGET, examples_per_step=len(seen))
    for indices in step:
        names = pack([seen[index] for index in indices], model)
        logps = sequence_logps(model, pack([other[index] for index in indices], model))
        cache.keep(cache.new_records(names, logps))
    return folder


def _scores(run: Run, rows: Sequence[Mapping], given: Sequence[str], tuned: Sequence[str]) -> dict[str, float]:
    if run.setting.world == "captions":
        digits = [row["metadata"]["digits"] for row in rows]
        return asdict(score(given, digits)) | {"win_rate": _win_rate(given, tuned, digits)}
    right = [correct(row["type"], answer, row["answer"]) for row, answer in zip(rows, given, strict=True)]
    scores = {"accuracy": 100 * sum(right) / len(right)}
    for name in TYPES:
        of_type = [hit for hit, row in zip(right, rows, strict=True) if row["type"] == name]
        scores[name] = 100 * sum(of_type) / len(of_type)
    return scores


def _win_rate(given: Sequence[str], tuned: Sequence[str], digits: Sequence[Sequence[int]]) -> float:
    """Share of scenes with fewer mistakes (made up or left out) than the tuned model makes; a tie is half a win."""

    def mistakes(text: str, truth: Sequence[int]) -> int:
        return len(set(hallucinated(text, truth))) + len(missed(text, truth))

    wins = 0.0
    for ours, theirs, truth in zip(given, tuned, digits, strict=True):
        left, right = mistakes(ours, truth), mistakes(theirs, truth)
        wins += 1.0 if left < right else 0.5 if left == right else 0.0
    return 100 * wins / len(given)


def _history(log: Sequence[Mapping[str, float]], beta: float) -> list[dict[str, float]]:
    """log π/ρ of the training pairs' branches, at each logged step."""
    names = {"chosen": "rewards/chosen", "rejected": "rewards/rejected", "imageless_chosen": "rewards/imageless_chosen"}
    return [
        {"step": row["step"]} | {name: round(row[key] / beta, 4) for name, key in names.items() if key in row}
        for row in log
        if "rewards/chosen" in row
    ]
