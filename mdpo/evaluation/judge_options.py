"""The judge that a command asks."""

import argparse

from .judge import Judge, JudgeOptions


def open_judge(options: argparse.Namespace) -> Judge:
    """The judge of the options of ``mdpo.commands.answers.add_judge_options``.

    Raises InputError for values that cannot be used.
    """
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
