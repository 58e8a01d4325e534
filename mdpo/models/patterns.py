"""Regular expressions over layer names, tried under a bound before anything else runs them.

An expression such as ``(.*a)*b`` takes longer than anybody lives, and Python cannot interrupt one that is running. So a
process of its own, which the operating system ends, goes through all names first.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mdpo.errors import InputError

from .layers import LANGUAGE_LINEAR

SECONDS = 5  # of computing, for all names; an ordinary expression takes milliseconds
_WALL_SECONDS = 120  # on a machine that is busy with other things
_LONGEST = 20_000  # characters of an expression

_PLAIN = re.compile(r"[\w.-]*")
# The ways in which peft puts an expression to a name: as it is, and inside its own.
_FORMS = ("{}", r"(.*\.)?({})$", r"(^|.*\.){}($|\..*)", r"(?:^|.*?\.){}\.(?P<idx>\d+)\.")
_PROGRAM = """
import json, re, sys
try:
    import resource
except ImportError:
    pass
else:
    resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]), int(sys.argv[1])))
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
patterns, names, forms = json.load(sys.stdin)
for at, pattern in enumerate(patterns):
    print(at, flush=True)
    for form in forms:
        try:
            expression = re.compile(form.replace("{}", pattern))
        except (re.error, RecursionError, OverflowError):
            continue
        for name in names:
            expression.match(name)
            expression.fullmatch(name)
print("done", flush=True)
"""


def check_patterns(patterns: Mapping[str, str], names: Sequence[str], remedy: str) -> None:
    """Raises InputError where an expression is none, or does not come to its end over the names.

    Args:
        patterns: the expressions by where they come from, for messages.
        names: of the model's modules.
        remedy: what to do about one that is refused.
    """
    odd = {where: text for where, text in patterns.items() if text != LANGUAGE_LINEAR and not _PLAIN.fullmatch(text)}
    for where, text in odd.items():
        if len(text) > _LONGEST:
            raise InputError(f"{where}: a regular expression of {len(text):,} characters; {remedy}")
        try:
            re.compile(text)
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(f"{where}: {text[:80]!r} is not a regular expression: {error}; {remedy}") from error
    if not odd:
        return
    longest = [*names, *(f"base_model.model.{name}.weight" for name in names)]
    question = json.dumps([list(odd.values()), longest, _FORMS])
    try:
        command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(SECONDS)]
        run = subprocess.run(command, input=question.encode(), capture_output=True, timeout=_WALL_SECONDS, check=False)
        told = run.stdout.split()
    except subprocess.TimeoutExpired as error:
        told = (error.stdout or b"").split()
    if told[-1:] == [b"done"]:
        return
    where, text = list(odd.items())[int(told[-1]) if told else 0]
    raise InputError(
        f"{where}: the regular expression {text[:80]!r} does not come to an end over the model's layers within "
        f"{SECONDS} s; {remedy}"
    )


def texts_of(values: Any) -> Iterable[str]:
    """The texts in a setting that is one text, a list of them or a mapping by them."""
    if isinstance(values, str):
        return [values]
    if isinstance(values, (list, tuple, set, dict)):
        return [value for value in values if isinstance(value, str)]
    return []
