"""The command line: ``mdpo train | plan | score | generate | evaluate | convert | merge | data | report``."""

from mdpo.stops import ctrl_c_ends, is_main_process, resumed_command, what_is_kept

if __name__ == "__main__":
    ctrl_c_ends()

import argparse
import atexit
import errno
import gc
import json
import logging
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
from peft import LoraConfig, PeftModel

from mdpo.config import MDPOConfig, RunConfig, load_config, parse_overrides, settings_help, takes_value
from mdpo.data import DataOptions, PreferenceDataset, Rows, data_files, read_rows
from mdpo.data import commands as data_commands
from mdpo.data.text_options import add_text_options, text_options
from mdpo.errors import InputError, OutputError, TrainingError
from mdpo.evaluation import commands as evaluation_commands
from mdpo.evaluation import row_logps, score
from mdpo.evaluation.score import check_first_rows
from mdpo.evaluation.trained_text import say_other_text
from mdpo.memory import AUTO, free_memory, memory_of
from mdpo.memory.allocator import use_expandable_segments
from mdpo.memory.automatic import automatic
from mdpo.memory.commands import planned_settings, run_plan
from mdpo.models import (
    LANGUAGE_LINEAR,
    ReferenceCache,
    check_lora_targets,
    convert_bunny,
    convert_llava,
    fingerprint,
    load,
    load_processor,
    lora_expression,
)
from mdpo.models.adapters import adapter_config, load_adapter
from mdpo.models.base_digest import weights_digest
from mdpo.models.merge import run_merge
from mdpo.models.model_card import write_run_record
from mdpo.output_checks import Output, check_not_input, check_output_folder, check_outputs
from mdpo.outputs import write_text
from mdpo.reports import commands as report_commands
from mdpo.run_lock import RunLock
from mdpo.settings import ADAPTER, BETA, check_range, dtype_name, idle_settings, is_text, shown_text
from mdpo.shown import Formatter, redacted, say, shown
from mdpo.trainer import MDPOTrainer, check_run
from mdpo.trainer.folder import begin, hold_folder
from mdpo.trainer.machine import compiler_fault_anywhere
from mdpo.trainer.preflight import check_rows, check_settings
from mdpo.trainer.ranks import meet, misses_a_rank, over_ranks, together, without_a_rank
from mdpo.trainer.resume import checkpoint_to_resume, saved_settings
from mdpo.trainer.run_settings import chosen_by
from mdpo.trainer.signals import Stopped, active, name_of, signals

_WRITTEN = ("output", "picture", "cache", "destination", "reference")  # options that name results
_LAUNCHERS_TURN = 5.0  # seconds in which a launcher notices that a process has failed, and ends the others
_log = logging.getLogger("mdpo.cli")  # not __name__, which is __main__ under python -m


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code. Bad input ends in one line on stderr and code 2,
    a run that cannot go on in one line and code 1, a signal in one line and 128 + its number."""
    atexit.register(gc.freeze)  # the collection at a process's end frees nothing, and takes seconds with torch loaded
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with signals():
            return _run(words)
    except (InputError, OutputError, TrainingError) as error:
        if not _is_said(error):
            print(f"error: {shown_text(redacted(str(error)), 2000)}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"error: {shown_text(str(error.filename), 80)} is too long for the name of a file; give another", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # in the moment before the handlers are set, or after they are put back
        return 128 + signal.SIGINT


def _run(words: list[str]) -> int:
    options = argparse.Namespace(words=words)
    try:
        _parse(words, options)
        _log_to_terminal()
        for package in ("mdpo", "mdpo_kernels"):
            logging.getLogger(package).setLevel(logging.INFO)
        if options.run in (train, run_plan):
            _check_config_first(options.config, words)
        if hasattr(options, "dtype"):
            options.dtype = dtype_name(options.dtype)
        _check_outputs(options)
        return options.run(options) or 0
    except KeyboardInterrupt as error:
        return _left(error.number if isinstance(error, Stopped) else signal.SIGINT, options)
    except Exception:
        handlers = active()
        if handlers is None or handlers.received is None or (handlers.holding and is_main_process()):
            raise
        # A library written in C may answer an exception of Python's that it does not expect, as that of a signal, by one
        # of its own. And a process that its launcher ends may fail before it has ended what it holds.
        return _left(handlers.received, options)


def _left(number: int, options: argparse.Namespace) -> int:
    if is_main_process():
        print(f"stopped by {name_of(number)}{shown(what_is_kept(options))}", file=sys.stderr, flush=True)
    return 128 + number


def _parse(words: list[str], options: argparse.Namespace) -> None:
    """Puts what the words say into ``options``; leaves the program, as argparse does, where they say nothing."""
    parser = _parser()
    for word in words:
        if not is_text(word):
            parser.error(f"argument {shown_text(repr(word), 80)} holds a character that is no text (NUL, or bytes that are not UTF-8)")
        if word.endswith("=--"):  # which argparse takes for no value at all
            parser.error(f"argument {word.removesuffix('=--')}: '--' is no value")
    _, options.overrides = parser.parse_known_args(_with_dashes(words), options)
    if options.overrides and options.run not in (train, run_plan):
        parser.error(f"unrecognized arguments: {' '.join(options.overrides)}")


def _is_said(error: InputError | OutputError | TrainingError) -> bool:
    """Whether another process of the run says so. Who is still there when the main process has failed, and its launcher
    has ended the others for it, has met something of its own."""
    if error.said is not None or is_main_process():
        return bool(error.said)
    try:
        with signals():
            time.sleep(_LAUNCHERS_TURN)
    except KeyboardInterrupt:
        return True
    return False


def _log_to_terminal() -> None:
    """Logs go to stderr spelled out, also those of other libraries, which quote file names and configs of strangers."""
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(Formatter("%(message)s"))
        root.addHandler(handler)
        root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    transformers.logging.disable_default_handler()
    transformers.logging.enable_propagation()


def _with_dashes(arguments: Sequence[str]) -> list[str]:
    """Options by the names that the parser has: --token_budget is --token-budget. What they are set to stays."""
    named = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        named.append(f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else argument)
    return named


def _check_config_first(config: Path, words: Sequence[str]) -> None:
    """Raises InputError where what would be read as the config file is the value of an option before it."""
    for option, word in pairwise(words):
        if not option.startswith("--") and Path(word) == config:
            return
        if Path(word) != config or "=" in option or "--memory".startswith(option):
            continue
        if takes_value(option) or not config.exists():
            raise InputError(f"config: {word} is the value of {option}; the config file comes first, then --key value")


def _check_outputs(options: argparse.Namespace) -> None:
    """Whether a command's results can be written where they are asked for, and destroy nothing, before it begins."""
    inputs = {name: _paths(value) for name, value in vars(options).items() if name not in _WRITTEN and _paths(value)}
    if "data" in inputs and hasattr(options, "image_dir"):  # rows; AMBER's --data is a folder of its own
        inputs["data"] += data_files(options.data)
    if hasattr(options, "results"):
        check_outputs(options.results(options), inputs)
    for name, called in (("destination", "destination"), ("reference", "--reference")):
        folder = getattr(options, name, None)
        if folder is not None:
            check_output_folder(folder, called)
            check_not_input(called, folder, {name: paths[0] for name, paths in inputs.items()})


def _paths(value: Any) -> list[Path]:
    """The paths that an option gives."""
    return [path for path in (value if isinstance(value, list) else [value]) if isinstance(path, Path)]


class _Parser(argparse.ArgumentParser):
    """argparse repeats what it was given: here in one line, shortened and without what moves a terminal's cursor."""

    def error(self, message: str) -> NoReturn:
        super().error(shown_text(message, 400))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mdpo",
        description=sys.modules["mdpo"].__doc__,
        epilog="Results are written whole or not at all, and never over something else: a report, picture or result of the "
        "same command is replaced, answers are added to, any other file that is there is refused.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "train",
        help="train from a YAML file; any key can be overridden: --key value",
        epilog=settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("config", type=Path)
    command.add_argument(
        "--memory",
        help="of the GPU, as in 24GiB, or auto, what is free on it: train with the plan that mdpo plan makes for it; without "
        "it, on a GPU, with the plan for what is free that keeps precision and optimizer",
    )
    command.set_defaults(run=train)

    command = commands.add_parser("plan", help="what takes memory, and the settings that fit; keys as in train")
    command.add_argument("config", type=Path)
    command.add_argument(
        "--memory", help="of the GPU, as in 24GiB, or auto, what is free on it; without it, what mdpo train chooses here"
    )
    command.set_defaults(run=run_plan, lora_pattern=LANGUAGE_LINEAR)

    command = commands.add_parser("merge", help="an adapter into its base model's weights, with a model card")
    command.add_argument("adapter", type=Path)
    command.add_argument("destination", type=Path)
    command.add_argument("--base", type=Path, help="folder of the base model; the one the adapter names without it")
    command.set_defaults(run=run_merge)

    command = commands.add_parser("score", help="log-probs and rewards of every row of a preference file")
    _model_and_data(command)
    command.add_argument("--beta", type=float, default=0.1)
    command.add_argument("--negative", default="crop_0_20", help="how the rejected image is made")
    command.add_argument("--seed", type=int, default=42, help="of the rejected images")
    command.add_argument("--token-budget", type=int, default=16384, help="packed tokens of a micro-batch")
    command.add_argument("--reference", type=Path, help="also fill the reference cache at this folder, for training")
    command.add_argument(
        "--no-check-start", action="store_true", help="do not compare the first rows with the model's own forward"
    )
    add_text_options(command)
    command.set_defaults(run=run_score, results=lambda options: [Output("--output", options.output)])

    command = commands.add_parser("convert", help="bring an official checkpoint into transformers' layout")
    command.add_argument("layout", choices=["bunny", "llava"])
    command.add_argument("source", type=Path)
    command.add_argument("destination", type=Path)
    command.add_argument("--vision-tower", type=Path, help="llava: folder of the CLIP model, where the source has none")
    command.set_defaults(run=run_convert)
    data_commands.add_commands(commands, load_processor)
    evaluation_commands.add_commands(commands)
    report_commands.add_commands(commands)
    return parser


def _model_and_data(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", type=Path, help="folder of the base model and its processor")
    command.add_argument("data", type=Path, help="file, folder or hub dataset, as for mdpo data")
    command.add_argument("--adapter", type=Path, help="folder of a PEFT adapter")
    data_commands.add_row_options(command)
    command.add_argument("--output", type=Path, required=True, help=".jsonl, a line per row")
    command.add_argument("--dtype", default="auto", help="auto, bfloat16 or float32")


def train(options: argparse.Namespace) -> int:
    use_expandable_segments()
    overrides = parse_overrides(options.overrides)
    run, args = load_config(options.config, overrides)
    lora_expression(run.lora_target_modules)
    check_run(args, ("",) if run.eval_data is not None or run.eval_fraction else ())
    if options.memory is not None:
        memory = memory_of(options.memory, lambda: _free_on_each(args))
        overrides |= planned_settings(run, args, memory, LANGUAGE_LINEAR, cuda=_on_gpu(args))
        run, args = load_config(options.config, overrides)
    check_settings(args)
    for line in idle_settings(run, ADAPTER) if args.process_index == 0 else ():
        _log.warning(line)
    inputs = {name: getattr(run, name) for name in ("model_name_or_path", "adapter_name_or_path", "train_data", "eval_data")}
    try:
        meet(args)
        with together(args, partial(hold_folder, args, args)) or nullcontext() as lock:
            together(args, partial(begin, args, _resume_from(args.resume_from_checkpoint), inputs))
            return _train(run, args, lock, options, overrides)
    except RuntimeError as error:
        if misses_a_rank(args, error):
            raise without_a_rank(args) from error
        raise


def _train(
    run: RunConfig, args: MDPOConfig, lock: RunLock | None, options: argparse.Namespace, overrides: dict[str, Any]
) -> int:
    """The run, in a folder that is its own; returns the exit code.

    lock: on the folder, on the main process. options: the command. overrides: of its config file.
    """
    resume = together(args, lambda: checkpoint_to_resume(args, _resume_from(args.resume_from_checkpoint)))
    rows, eval_rows = together(args, lambda: _training_rows(run, args))
    processor = together(args, lambda: load_processor(run.model_name_or_path))
    data: Rows | PreferenceDataset = rows
    if _on_gpu(args) and options.memory is None:
        data = together(args, lambda: PreferenceDataset(rows, processor, DataOptions.of(args)))
        overrides |= _chosen(run, args, data.lengths.tolist(), resume)
        run, args = load_config(options.config, overrides)
    model = together(args, lambda: _model(run))
    trainer = MDPOTrainer(
        model=model,
        args=args,
        train_dataset=data,
        eval_dataset=eval_rows,
        processing_class=processor,
        peft_config=_lora(run) if run.use_lora and run.adapter_name_or_path is None else None,
    )
    main_process = trainer.is_world_process_zero()
    trainer.run_folder.take_over(lock)
    record = partial(
        write_run_record,
        str(args.output_dir),
        asdict(run),
        base_weights=weights_digest(run.model_name_or_path),
        text=DataOptions.of(args).text.values(),
    )
    trainer.run_folder.at_first_step(record)
    trainer.train(resume_from_checkpoint=resume)
    stop = trainer.stop_on_signal
    if not stop.stopped:
        together(args, trainer.save_model)
        together(args, trainer.save_state)
    if main_process:
        say(_stopped(trainer, options.words) if stop.stopped else f"saved to {args.output_dir}")
    # A process that is gone while another still writes takes it along: torchrun ends all of them for one.
    trainer.accelerator.wait_for_everyone()
    current = active()
    if current is not None:
        current.over = True
    trainer.accelerator.end_training()
    return 128 + (stop.received or 0) if stop.stopped else 0


def _chosen(run: RunConfig, args: MDPOConfig, lengths: Sequence[int], resume: str | None) -> dict[str, Any]:
    """What is chosen for a run on the GPU, said in one line. lengths: of the data. resume: the checkpoint to go on from."""
    memory = memory_of(AUTO, lambda: _free_on_each(args))
    fault = compiler_fault_anywhere(args)
    recorded = together(args, lambda: None if resume is None else chosen_by(saved_settings(Path(resume))))
    chosen = together(
        args,
        lambda: automatic(
            run, args, lengths, memory, LANGUAGE_LINEAR, processes=args.world_size, compiler_fault=fault, recorded=recorded
        ),
    )
    if args.process_index == 0:
        _log.info(chosen.line)
    return chosen.settings


def _on_gpu(args: MDPOConfig) -> bool:
    return args.device.type == "cuda"


def _free_on_each(args: MDPOConfig) -> int:
    """Bytes that are free on every card of the run."""
    return over_ranks(args, free_memory(args.device), "min")


def _model(run: RunConfig) -> transformers.PreTrainedModel | PeftModel:
    model = load(run.model_name_or_path, dtype=run.dtype, load_in_4bit=run.load_in_4bit)
    if not run.use_lora:
        _freeze(model, run)
    elif run.adapter_name_or_path is None:
        check_lora_targets(model, run.lora_target_modules)
    if run.adapter_name_or_path is not None:
        _check_lora_settings(run)
        model = load_adapter(model, run.adapter_name_or_path, base=run.model_name_or_path, trainable=True)
    return model


def _stopped(trainer: MDPOTrainer, words: Sequence[str]) -> str:
    """What became of a run that was stopped, and what to do with it."""
    args, line = trainer.args, f"stopped by {name_of(trainer.stop_on_signal.received or 0)}"
    if not trainer.has_trained:
        return f"{line} before the first step; nothing was trained"
    line = f"{line} after step {trainer.state.global_step}"
    if args.save_only_model or args.deepspeed_plugin is not None:
        reason = "save_only_model leaves" if args.save_only_model else "DeepSpeed's checkpoints leave"
        return f"{line}; its weights are in the newest checkpoint of {args.output_dir}, but {reason} nothing to resume from"
    launcher = ", under the same launcher," if args.world_size > 1 else ""
    return f"{line}; go on{launcher} with: {resumed_command(words)}"


def _resume_from(value: str | bool | None) -> str | bool | None:
    """``true`` is the newest checkpoint, also where it was written as text."""
    return {"true": True, "false": None}.get(str(value).lower(), value)


def _training_rows(run: RunConfig, args: MDPOConfig) -> tuple[Rows, Rows | None]:
    read = partial(
        read_rows, image_dir=run.image_dir, allow_outside=run.allow_outside, ignore_columns=args.ignore_columns
    )
    rows = read(run.train_data)
    if run.eval_data is not None:
        return rows, read(run.eval_data)
    held_out = round(len(rows) * run.eval_fraction)
    if not held_out and not run.eval_fraction:
        return rows, None
    if not 0 < held_out < len(rows):
        raise InputError(
            f"eval_fraction: {run.eval_fraction} of {len(rows)} rows is {held_out}, which leaves nothing to "
            f"{'train' if held_out else 'evaluate'} on; choose another share"
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed)).numpy()
    return rows.select(order[held_out:]), rows.select(order[:held_out])


def _check_lora_settings(run: RunConfig) -> None:
    """Raises InputError where a setting asks for another LoRA than the adapter that the run goes on from."""
    config = adapter_config(str(run.adapter_name_or_path))
    defaults = {f.name: f.default for f in fields(RunConfig)}
    for name in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"):
        key = "r" if name == "lora_r" else name if name in config else name.removeprefix("lora_")
        asked, has = getattr(run, name), config.get(key)
        if asked != defaults[name] and asked != has:
            raise InputError(f"{name}: {asked!r}, but the adapter at {run.adapter_name_or_path} has {has!r}; leave it out")


def _lora(run: RunConfig) -> LoraConfig:
    return LoraConfig(
        r=run.lora_r,
        lora_alpha=run.lora_alpha,
        lora_dropout=run.lora_dropout,
        target_modules=lora_expression(run.lora_target_modules),
        task_type="CAUSAL_LM",
    )


def _freeze(model: transformers.PreTrainedModel, run: RunConfig) -> None:
    for name, parameter in model.named_parameters():
        tower = any(part in name for part in (".vision_tower.", ".visual.", ".vision_model."))
        projector = any(part in name for part in (".multi_modal_projector.", ".connector.", ".image_newline"))
        if tower and run.freeze_vision_tower or projector and run.freeze_multi_modal_projector:
            parameter.requires_grad_(False)


def run_score(options: argparse.Namespace) -> None:
    check_range("--beta", options.beta, "(0, inf)")
    check_range("--beta", options.beta, BETA)
    if options.seed < 0:
        raise InputError(f"--seed {options.seed}: expected a number from 0 on")
    rows = read_rows(
        options.data, options.image_dir, allow_outside=options.allow_outside, ignore_columns=options.ignore_columns
    )
    images = rows.first_with_images() is not None
    if not images:
        _log.warning("no row of %s has an image: image_rejected is null in every record", options.data)
    data = DataOptions(
        image_rejected=images, negative=options.negative, seed=options.seed, text=text_options(options)
    )
    processor = load_processor(options.model)
    base = load(options.model, dtype=options.dtype)
    torch.nn.Module.to(base, "cuda" if torch.cuda.is_available() else "cpu")
    dataset = PreferenceDataset(rows, processor, data)
    check_rows(base, processor, dataset)
    cache = ReferenceCache(options.reference, fingerprint(base)) if options.reference is not None else None
    if not options.no_check_start:
        _log.info(check_first_rows(base, dataset))
    # Before the adapter goes on: some kinds leave another model behind when they are switched off.
    reference = row_logps(base, dataset, token_budget=options.token_budget, cache=cache)
    model: torch.nn.Module = base
    if options.adapter is not None:
        model = load_adapter(base, options.adapter, base=options.model)
        say_other_text(options.adapter, data.text)
        if not options.no_check_start:
            _log.info(check_first_rows(model, dataset))
    records = score(model, dataset, reference=reference, token_budget=options.token_budget, beta=options.beta)
    _write(options.output, records)
    if cache is not None:
        print(cache.line)


def run_convert(options: argparse.Namespace) -> None:
    if options.layout == "bunny":
        if options.vision_tower is not None:
            raise InputError("--vision-tower: a Bunny checkpoint brings its own; leave it out")
        folder = convert_bunny(options.source, options.destination)
    else:
        folder = convert_llava(options.source, options.destination, vision_tower=options.vision_tower)
    say(f"wrote {folder}")


def _write(path: Path, records: Iterable[dict]) -> None:
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    say(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
