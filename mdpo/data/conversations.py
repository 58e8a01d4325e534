"""Conversations that hold prompt and answers together: whole columns taken apart into prompt, chosen and rejected."""

import re
from collections.abc import Collection, Mapping
from os.path import commonprefix
from typing import Any

from .columns import IMAGE_COLUMNS, is_empty
from .problem import RowError, shortened

Columns = dict[str, Any]
Turn = dict[str, Any]

_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}
# What a chat template may read of a message besides; any other key of a turn changes it in a way that nobody reads.
_MESSAGE_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "thinking"})
_ANSWER_KEYS = frozenset({"role", "content"})


def shared_conversation(columns: Columns, where: str, column: str, whole_rejected: str) -> Columns:
    """The canonical columns of a row whose ``column`` is the conversation that both answers end.

    An answer that ends the conversation is the chosen one, where the row has no ``chosen``. The rejected one is
    ``rejected``, ``rejected_response``, or the end of ``whole_rejected``, the same conversation ended otherwise.

    Raises RowError where a turn can't be read, two columns give one answer, or the conversations differ earlier.
    """
    turns = _turns(columns, where, column)
    canonical = {name: columns[name] for name in ("chosen", "rejected") if name in columns}
    for name in ("chosen", "rejected"):
        if isinstance(canonical.get(name), Mapping):
            canonical[name] = [_turn(canonical[name], where, name)]
    if "chosen" not in canonical and turns and turns[-1]["role"] == "assistant":
        canonical["chosen"] = [turns.pop()]
    canonical["prompt"] = turns
    given = [name for name in ("rejected", "rejected_response", whole_rejected) if name in columns]
    if len(given) > 1:
        raise RowError.at(where, given[1], f"columns {' and '.join(given)} all give the rejected answer", "keep one")
    if given == ["rejected_response"]:
        canonical["rejected"] = columns["rejected_response"]
    elif given == [whole_rejected]:
        others = _turns(columns, where, whole_rejected)
        if not others or others[-1]["role"] != "assistant" or others[:-1] != turns:
            problem = f"is not {column} with another answer at its end"
            raise RowError.at(where, whole_rejected, problem, "the two answers need one prompt, before their last turn")
        canonical["rejected"] = others[-1:]
        _check_same_images(columns, where, whole_rejected)
    return canonical


def implicit_prompt(columns: Columns, where: str) -> Columns:
    """TRL's preference format without a prompt: chosen and rejected are whole conversations that share their start.

    Raises RowError where they differ before their last message.
    """
    chosen, rejected = (_messages(columns.get(name)) for name in ("chosen", "rejected"))
    if chosen is None or len(chosen) < 2:
        return columns
    if rejected is not None and rejected[:-1] != chosen[:-1]:
        problem = "chosen and rejected are conversations that differ before their last message"
        raise RowError.at(where, "rejected", problem, "the two answers need one prompt: give it as prompt")
    answers = {"chosen": chosen[-1:]} | ({} if rejected is None else {"rejected": rejected[-1:]})
    return columns | {"prompt": chosen[:-1]} | answers


def shared_start(chosen: str, rejected: str) -> Columns | None:
    """TRL's plain texts without a prompt: what both answers start with, up to the end of a word, is the prompt.

    The blank between prompt and answers goes: the chat template writes its own. None where they share no word, or an
    answer would be left empty.
    """
    shared = commonprefix([chosen, rejected])  # noqa: RUF071  (of texts)
    if any(text[len(shared) :] and not text[len(shared)].isspace() for text in (chosen, rejected)):
        shared = re.sub(r"\S*\Z", "", shared)  # it may end inside a word
    columns = {
        "prompt": shared.rstrip(),
        "chosen": chosen[len(shared) :].lstrip(),
        "rejected": rejected[len(shared) :].lstrip(),
    }
    return columns if all(columns.values()) else None


def check_messages(messages: Any, where: str, field: str) -> None:
    """Raises RowError where a message of ``field`` (prompt, chosen or rejected) has a key that nothing reads."""
    for message in messages if isinstance(messages, (list, tuple)) else [messages]:
        if isinstance(message, Mapping):
            _check_keys(message, _MESSAGE_KEYS if field == "prompt" else _ANSWER_KEYS, where, field)


def rows_of(value: Any) -> Any:
    """A list of dicts that ``datasets`` turned into a dict of lists, turned back; anything else as it is."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(column, list) for column in value.values()):
        return value
    if len({len(column) for column in value.values()}) != 1:
        return value
    return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]


def _turns(columns: Columns, where: str, column: str) -> list[Turn]:
    turns = rows_of(columns[column])
    if not isinstance(turns, list):
        problem = f"is a {type(turns).__name__}; expected a list of turns"
        raise RowError.at(where, column, problem, 'give [{"from": "human", "value": ...}]')
    return [_turn(turn, where, column) for turn in turns]


def _turn(turn: Any, where: str, field: str) -> Turn:
    """A turn as a message. ShareGPT's keys are from and value, OpenAI's role and content."""
    if isinstance(turn, Mapping):
        turn = {key: value for key, value in turn.items() if value is not None}
        if "from" not in turn and isinstance(turn.get("role"), str) and "content" in turn:
            _check_keys(turn, _MESSAGE_KEYS, where, field)
            return turn | {"role": _ROLES.get(turn["role"], turn["role"])}
        role, content = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if isinstance(role, str) and role in _ROLES and isinstance(content, str):
            _check_keys(turn, {"from", "value", "role", "content"}, where, field)
            return {"role": _ROLES[role], "content": content}
    raise RowError.at(where, field, f"a turn needs from ({', '.join(_ROLES)}) and value", f"found {shortened(turn)}")


def _check_keys(message: Mapping, known: Collection[str], where: str, field: str) -> None:
    for key, value in message.items():
        if key not in known and not is_empty(value):
            problem = f"a message has {shortened(str(key), 40)}, which is not read"
            raise RowError.at(where, field, problem, "leave it out, or write what it says into the content")


def _messages(value: Any) -> list | None:
    value = rows_of(value)
    return list(value) if isinstance(value, (list, tuple)) else None


def _check_same_images(columns: Columns, where: str, whole_rejected: str) -> None:
    """ms-swift lists the images of the rejected conversation again, as ``rejected_images``: these are no negatives."""
    images = columns.pop("rejected_images", None)
    own = next((columns[name] for name in IMAGE_COLUMNS if not is_empty(columns.get(name))), None)
    if not is_empty(images) and images != own:
        problem = f"beside {whole_rejected} it gives the rejected answer other images than the chosen one"
        raise RowError.at(where, "rejected_images", problem, "give the answer as rejected_response: both see images")
