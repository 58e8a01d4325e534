"""Records of any format, checked, in one canonical form."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .columns import is_empty, missing
from .conversations import check_messages
from .formats import PROMPT_INSIDE, to_canonical
from .image_sources import ImageRoot, image_root, image_source
from .images import ImageSource
from .limits import check_images, check_size
from .messages import Message, parse_response, row_text
from .part_images import take_images
from .problem import Dropped, RowError, shortened
from .row import PreferenceRow, PromptRow, Row
from .seen import FirstSeen
from .spans import parse_spans
from .tables import Record

__all__ = ["Checked", "PreferenceRow", "PromptRow", "Row", "check_rows", "image_root", "same_id"]

_MEDIA_TAGS = ("<video>", "<audio>")
_REMEMBERED = 2**15  # image paths


class Checked(NamedTuple):
    """A row that is sound. format: its name in FORMATS."""

    row: Any
    format: str


def check_rows(
    records: Iterable[Record],
    root: ImageRoot,
    kind: type[Row],
    ignore_columns: Sequence[str] = (),
    *,
    start: int = 0,
    unique: bool = True,
) -> Iterator[Checked | Dropped | RowError]:
    """Yields for every record its row, why it was dropped, or what is wrong with it.

    start: the first record's position, which is its id where it has none. unique: whether an id that comes again is an
    error; False where the caller finds that out.
    """
    seen = FirstSeen() if unique else None
    images = Images(root)
    for index, (where, record) in enumerate(records, start):
        if isinstance(record, kind):  # checked before, when it got its id
            yield Checked(record, "checked")
            continue
        try:
            checked = _check(record, index, where, images, kind, ignore_columns)
            if seen is not None and isinstance(checked, Checked):
                first = seen.add(checked.row.id, where)
                if first is not None:
                    raise same_id(checked.row, first)
            yield checked
        except RowError as error:
            yield error


def _check(
    record: Any, index: int, where: str, sources: "Images", kind: type[Row], ignore_columns: Sequence[str]
) -> Checked | Dropped:
    if isinstance(record, RowError):
        raise record
    if isinstance(record, Mapping):
        check_size(record, where)
    responses = ("chosen", "rejected") if kind is PreferenceRow else ()
    name, columns = to_canonical(record, where, ignore=ignore_columns, answers=bool(responses))
    if isinstance(columns, Dropped):
        return columns
    for column in ("prompt", *responses):
        if column not in columns:
            raise missing(column, record, ("prompt", *responses), where)
    if responses and not is_empty(columns.get("contrast")):
        responses = (*responses, "contrast")
    for column in ("prompt", *responses):
        check_messages(columns[column], where, column)
    question, values = take_images(columns["prompt"], columns["images"], where)
    images = sources.of(values, where, "images")
    fields: dict[str, Any] = {column: parse_response(columns[column], column, where) for column in responses}
    if kind is PreferenceRow:
        fields["rejected_images"] = _rejected_images(columns["rejected_images"], len(images), sources, where)
        fields |= _weights(columns, fields, name, where)
    fields |= row_text({**columns, "prompt": question}, len(images), where)
    _check_media_tags(fields["prompt"], where)
    return Checked(kind(id=_id(columns, index, where), where=where, images=images, **fields), name)


def _id(columns: Mapping, index: int, where: str) -> str:
    value = columns.get("id", index)
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise RowError.at(
            where, "id", f"is {shortened(value, 40)}; expected text or a whole number", "give each row its own"
        )
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        raise RowError.at(where, "id", "half a surrogate pair: no Unicode text", "fix the text") from error
    return str(value)


def same_id(row: PromptRow, first: str) -> RowError:
    """The error of a row whose id an earlier one has. first: where that one is."""
    problem = f"id {shortened(row.id)} is also that of {first}"
    return RowError.at(row.where, "id", problem, "ids name examples: give each row its own, or none")


def _rejected_images(values: list, images: int, sources: "Images", where: str) -> tuple[ImageSource, ...]:
    if values and (not images or len(values) % images):
        problem = f"{len(values)} for {images} images"
        raise RowError.at(where, "rejected_images", problem, "give one per image, the same number for each, or none")
    return sources.of(values, where, "rejected_images")


def _weights(columns: Mapping, fields: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """The spans of both answers."""
    weights = {}
    for answer in ("chosen", "rejected"):
        column = f"{answer}_weights"
        spans = None if is_empty(columns.get(column)) else columns[column]
        if spans is not None and name == PROMPT_INSIDE:
            problem = "counts the characters of an answer that begins with the prompt"
            raise RowError.at(where, column, problem, "give the prompt in a column prompt, and the answers without it")
        weights[column] = parse_spans(spans, fields[answer], where, column)
    return weights


def _check_media_tags(prompt: list[Message], where: str) -> None:
    """What the user shows under these tags is not read, so that the question would be about nothing."""
    for message in prompt:
        for part in message["content"] if message["role"] != "assistant" else ():
            tag = next((tag for tag in _MEDIA_TAGS if tag in part.get("text", "")), None)
            if tag is not None:
                problem = f"the prompt has {tag}, which stands for what is not read: images and text are"
                raise RowError.at(
                    where, "prompt", problem, "drop the row; where its letters are meant, spell it otherwise"
                )


class Images:
    """The sources of rows' images; a path that comes again is looked up once."""

    def __init__(self, root: ImageRoot) -> None:
        self.root = root
        self._known: dict[str, ImageSource] = {}

    def of(self, values: list, where: str, field: str) -> tuple[ImageSource, ...]:
        """Raises RowError as ``image_source``, and for more images than a row may have."""
        if not values:
            return ()
        check_images(values, where, field)
        return tuple([self._one(value, where, field) for value in values])

    def _one(self, value: Any, where: str, field: str) -> ImageSource:
        if not isinstance(value, str):
            return image_source(value, self.root, where, field)
        found = self._known.get(value)
        if found is None:
            found = image_source(value, self.root, where, field)
            if isinstance(found, Path):
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                self._known[value] = found
        return found
