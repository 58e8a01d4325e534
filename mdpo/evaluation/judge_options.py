"""The options of commands that ask a judge."""

import argparse
from pathlib import Path

from .judge import Judge, JudgeOptions


def add_judge_options(command: argparse.ArgumentParser, *, required: bool) -> "argparse._ArgumentGroup":
    """Returns the group, for a command's own options. required: the command does nothing without a judge."""
    group = command.add_argument_group(
        "judge", "any OpenAI-compatible endpoint; replies are cached and never paid twice"
    )
    group.add_argument("--judge", metavar="MODEL", required=required, help="the model that judges")
    group.add_argument("--base-url", help="of the endpoint; OpenAI's without it")
    group.add_argument("--key-variable", default="OPENAI_API_KEY", help="environment variable that holds the key")
    group.add_argument("--cache", type=Path, default=Path("judge-cache.jsonl"), help="append-only file of replies")
    group.add_argument("--concurrency", type=int, default=8)
    group.add_argument("--attempts", type=int, default=6, help="per request")
    group.add_argument("--timeout", type=float, default=120.0, help="seconds without a reply")
    group.add_argument("--dry-run", action="store_true", help="say how much would be sent, and send nothing")
    return group


def open_judge(options: argparse.Namespace) -> Judge:
    """The judge of ``add_judge_options``. Raises InputError for values that cannot be used."""
    return Judge(
        JudgeOptions(
            model=options.judge,
            cache=options.cache,
            base_url=options.base_url,
            key_variable=options.key_variable,
            concurrency=options.concurrency,
            attempts=options.attempts,
            timeout_s=options.timeout,
        )
    )
