"""YAML that remembers what was written.

YAML 1.1 reads ``no`` as false, ``2024-01-01`` as a date and ``1e-4`` as text. Which of them a setting means is known
only once its type is known, so a scalar keeps its text beside its value until then.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from mdpo.errors import InputError

# Enough for any configuration; a few hundred aliases, each of which repeats the one before, fill a machine's memory.
MAX_ALIASES = 16
MAX_CHARACTERS = 2**18
MAX_DEPTH = 100
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+")


@dataclass(frozen=True, slots=True)
class Written:
    """An unquoted scalar that YAML doesn't read as text. value: what it reads; text: what was written."""

    value: Any
    text: str


def read_yaml(text: str, where: str) -> Any:
    """The value of a YAML text: dicts, lists, strings, and ``Written`` for every other scalar.

    where: the file or option, for messages. Raises InputError, one line, for text that is not YAML, a key that stands
    twice, a value that contains itself, and more than ``MAX_ALIASES`` aliases, ``MAX_CHARACTERS`` characters or
    ``MAX_DEPTH`` levels.
    """
    if len(text) > MAX_CHARACTERS:
        raise InputError(
            f"{where} has {len(text):,} characters of YAML; at most {MAX_CHARACTERS:,} are read: is it a settings file?"
        )
    try:
        loader = yaml.SafeLoader(text)
        _check_bounds(text, where)
        node = loader.get_single_node()
        return None if node is None else _Builder(loader, where).build(node)
    except InputError:
        raise
    except (yaml.YAMLError, OverflowError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:400]
        raise InputError(f"{where} is not YAML: {reason}") from error


def _check_bounds(text: str, where: str) -> None:
    """Raises InputError for too many aliases, or values nested too deeply, before anything is built of them."""
    aliases = depth = 0
    # Event by event, since the time that PyYAML takes for one grows with the depth.
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise InputError(f"{where} is not YAML: it is nested too deeply (more than {MAX_DEPTH} levels)")
    if aliases > MAX_ALIASES:
        raise InputError(
            f"{where}: {aliases} YAML aliases (*name); at most {MAX_ALIASES} are read: write the values out"
        )


def plain(value: Any) -> Any:
    """The value with every ``Written`` in it replaced by what YAML reads."""
    if isinstance(value, Written):
        return value.value
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value


class _Builder:
    def __init__(self, loader: yaml.SafeLoader, where: str) -> None:
        self.loader, self.where = loader, where
        self._open: set[int] = set()  # nodes that are being built

    def build(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self._open:
            raise InputError(f"{self.where}: a value contains itself, by an alias; write it out")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
                return [self.build(entry) for entry in node.value]
            if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
                return self._mapping(node)
        finally:
            self._open.discard(id(node))
        raise InputError(f"{self.where}: tag {node.tag} is not read; write plain values")

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            value = self.loader.construct_object(node, deep=True)
        except ValueError:  # written like a date or a number that there is none of, such as 2024-13-45
            return node.value
        if not isinstance(value, str):
            return Written(value, node.value)
        if node.style is None and _NUMBER.fullmatch(value):
            return Written(float(value), value)
        return value

    def _mapping(self, node: yaml.MappingNode) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is None:
                raise InputError(f"{self.where}: a key is a list or a mapping; keys are words")
            if name in seen:
                raise InputError(f"{self.where}: key {name!r} appears twice; keep one of them")
            seen.add(name)
        self.loader.flatten_mapping(node)  # <<: *name
        return {key.value: self.build(value) for key, value in node.value}
