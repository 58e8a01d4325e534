"""How settings are read and checked: YAML as written, values held to types, every field of TrainingArguments accounted
for.

yaml_text.py   YAML that keeps the text of every scalar, refuses duplicate keys and alias bombs
types.py       a value to the type of its field, in one line or not at all
peers.py       what TRL, LLaMA-Factory and ms-swift call their settings, and what that is here
arguments.py   which of transformers' arguments are refused, and which do nothing here
own.py         settings of our own that contradict each other, or do nothing beside another
values.py      values that no run can use
"""

from .arguments import ALWAYS_REFUSED, REFUSED, check_arguments, default_of, idle_arguments
from .own import ADAPTER, OBJECTIVE, check_adapter, check_objective, check_parameters, given, idle_settings, read_types
from .peers import unknown_key
from .types import (
    coerce,
    dtype_name,
    is_flag,
    is_list,
    read_argument,
    shortened,
    shown,
)
from .values import ANCHOR, BETA, PATHS, check_numbers, check_paths, check_range, check_shares
from .yaml_text import Written, plain, read_yaml

__all__ = [
    "ADAPTER",
    "ALWAYS_REFUSED",
    "ANCHOR",
    "BETA",
    "OBJECTIVE",
    "PATHS",
    "REFUSED",
    "Written",
    "check_adapter",
    "check_arguments",
    "check_numbers",
    "check_objective",
    "check_parameters",
    "check_paths",
    "check_range",
    "check_shares",
    "coerce",
    "default_of",
    "dtype_name",
    "given",
    "idle_arguments",
    "idle_settings",
    "is_flag",
    "is_list",
    "plain",
    "read_argument",
    "read_types",
    "read_yaml",
    "shortened",
    "shown",
    "unknown_key",
]
