"""One row as the model will see it: its token ids, decoded."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .encode import EncodedRow, Encoder
from .image_tokens import ImageTokens
from .problem import spelled_out


class Shown(NamedTuple):
    """A row's decoded text. prompts: by name, with images as ``<image>×N``.

    answers: by name, text and what follows it.
    """

    where: str
    prompts: list[tuple[str, str]]
    answers: list[tuple[str, str, str]]

    def lines(self) -> Iterator[str]:
        yield f"{self.where}, as the model will see it (line breaks are written \\n; «» marks what is scored):"
        for name, text in self.prompts:
            yield f"  {name:9} {text}"
        for name, text, end in self.answers:
            yield f"  {name:9} «{text}» {end}"


def show(
    encoder: Encoder,
    image_tokens: ImageTokens,
    encoded: EncodedRow,
    sizes: Sequence[tuple[int, int]],
    room: int | None,
    where: str,
) -> Shown:
    """Decodes a row's ids.

    Args:
        encoder: The one that made ``encoded``.
        image_tokens: Of the same processor.
        encoded: The row's ids.
        sizes: Height and width of its images, in pixels.
        room: The tokens that max_length leaves an answer; None without a limit.
        where: File and row.
    """
    prompts = [("prompt", image_tokens.expand(encoded.prompt_ids, sizes).tolist())]
    prompts += [("imageless", encoded.imageless_prompt_ids)] if encoded.imageless_prompt_ids else []
    answers = []
    for name, ids in (
        ("chosen", encoded.chosen_ids),
        ("rejected", encoded.rejected_ids),
        ("contrast", encoded.contrast_ids),
    ):
        if not ids:
            continue
        kept = list(ids[:room])
        whole = len(kept) == len(ids)
        text = _behind(encoder, encoded.prompt_ids, kept[:-1] if whole else kept)
        end = _decode(encoder, kept[-1:]) if whole else f"cut by max_length, {len(kept)} of {len(ids)} tokens are left"
        answers.append((name, spelled_out(text), spelled_out(end)))
    return Shown(where, [(name, spelled_out(_collapsed(encoder, ids))) for name, ids in prompts], answers)


def _decode(encoder: Encoder, ids: Sequence[int]) -> str:
    return encoder.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _behind(encoder: Encoder, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    """The answer's text behind the prompt: decoded by itself, some tokenizers drop the blank at its start."""
    before, both = _decode(encoder, prompt_ids), _decode(encoder, [*prompt_ids, *ids])
    return both[len(before) :] if both.startswith(before) else _decode(encoder, ids)


def _collapsed(encoder: Encoder, ids: Sequence[int]) -> str:
    """The prompt's text, a run of the image token written once with its length."""
    pieces: list[str] = []
    start = 0
    while start < len(ids):
        end = start
        is_image = ids[start] == encoder.image_token_id
        while end < len(ids) and (ids[end] == encoder.image_token_id) == is_image:
            end += 1
        text = _decode(encoder, ids[start : start + 1] if is_image else ids[start:end])
        pieces.append(f"{text}×{end - start}" if is_image else text)
        start = end
    return "".join(pieces)
