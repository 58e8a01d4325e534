"""``mdpo train | plan | merge | convert``."""

import argparse
from pathlib import Path
from typing import Any

from mdpo.own_settings import OWN, default_text

from .choices import LAUNCHERS, OBJECTIVES
from .later import Later


def add_train(commands: "argparse._SubParsersAction[Any]") -> None:
    command = commands.add_parser(
        "train",
        help="train a model on preference data",
        epilog=f"{settings_help()}\n{objectives_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _run_source(command, "train")
    command.add_argument(
        "--memory",
        metavar="SIZE",
        help="GPU memory to plan for, such as 24GiB, or auto for what is free; the plan may then choose 4-bit weights "
        "and smaller optimizers (default: on a GPU, a plan for what is free that changes neither)",
    )
    command.add_argument(
        "--accelerate", choices=LAUNCHERS, help="profile of accelerate launch: one process for each visible GPU"
    )
    command.set_defaults(run=Later("mdpo.training:train"))


def add_plan(commands: "argparse._SubParsersAction[Any]") -> None:
    command = commands.add_parser("plan", help="show what takes memory in training, and the settings that fit")
    command.epilog = "The settings are those of mdpo train: mdpo train --help lists them."
    _run_source(command, "plan")
    command.add_argument(
        "--memory",
        metavar="SIZE",
        help="GPU memory to plan for, such as 24GiB, or auto for what is free (default: what mdpo train chooses here)",
    )
    command.set_defaults(run=Later("mdpo.memory.commands:run_plan"))


def _run_source(command: argparse.ArgumentParser, name: str) -> None:
    """What ``RunSource.of`` reads: DATA is left among the words that are no option's, since whether it is there depends
    on the first."""
    command.usage = f"mdpo {name} MODEL DATA [--key value ...]\n       mdpo {name} CONFIG.yaml [--key value ...]"
    command.add_argument(
        "config",
        type=Path,
        metavar="MODEL DATA",
        help="model and preference rows, each a file, a folder or owner/name on the hub; "
        "or one YAML file with these and other settings",
    )


def add_merge(commands: "argparse._SubParsersAction[Any]") -> None:
    command = commands.add_parser("merge", help="merge an adapter into its base model's weights, with a model card")
    command.add_argument("adapter", type=Path, help="PEFT adapter: folder, or owner/name[@revision] on the hub")
    command.add_argument("destination", type=Path, help="new folder for the merged model")
    command.add_argument(
        "--base",
        type=Path,
        help="base model: folder, or owner/name on the hub (default: the one that the adapter names)",
    )
    command.set_defaults(run=Later("mdpo.models.commands:run_merge"))


def add_convert(commands: "argparse._SubParsersAction[Any]") -> None:
    command = commands.add_parser("convert", help="convert an official checkpoint to transformers' layout")
    command.add_argument("layout", choices=["bunny", "llava"], help="layout of the source: bunny or llava")
    command.add_argument("source", type=Path, help="official checkpoint: folder, or owner/name on the hub")
    command.add_argument("destination", type=Path, help="new folder for the converted model")
    command.add_argument(
        "--vision-tower",
        type=Path,
        help="CLIP model of a llava source that has none: folder, or owner/name on the hub",
    )
    command.set_defaults(run=Later("mdpo.models.commands:run_convert"))


def settings_help() -> str:
    """Our own settings as argparse shows options: name, help and default."""
    shown = argparse.ArgumentParser(add_help=False, usage=argparse.SUPPRESS)
    group = shown.add_argument_group(
        "settings",
        "as --key value or in the YAML file; those of transformers.TrainingArguments too (one that would not do what "
        "it says is refused by name)",
    )
    for field in OWN:
        text = field.metadata["help"].replace("%", "%%")
        default = default_text(field)
        end = "(required)" if default == "required" else f"(default: {default})"
        group.add_argument(f"--{field.name}", metavar="", help=f"{text} {end}")
    return shown.format_help().lstrip()


def objectives_help() -> str:
    """The preset objectives, as ``mdpo/README.md`` has them with their branches."""
    lines = [f"  {'preset':<8}{'packed':>8}{'unshared':>10}  a row needs beside two answers"]
    lines += [f"  {name:<8}{packed:>8,}{unshared:>10,}  {needs}" for name, packed, unshared, needs in OBJECTIVES]
    table = "\n".join(lines)
    return (
        "objectives (--objective PRESET), with the tokens of a pair whose prompt has 650\n"
        f"tokens (50 without its image) and whose answers have 100:\n{table}\n"
        "  unshared: with a prompt for every branch. contrast: the answer that is right\n"
        "  for the rejected image. An objective may also be a list of terms."
    )
