"""The page of sample answers: one file, no script, nothing fetched. A row for each prompt, a column for each step."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image

from mdpo.data import PreferenceRow
from mdpo.data.images import open_image
from mdpo.shown import html_text

_SIDE = 224  # pixels
_LONGEST = 2000  # characters of a text
_STYLE = (
    "body{font:15px/1.4 system-ui,sans-serif;margin:1.5rem}table{border-collapse:collapse}th,td{border:1px solid #ccc;"
    "padding:.5rem;vertical-align:top;text-align:left;max-width:26rem;white-space:pre-wrap;overflow-wrap:anywhere}"
)


class Sample(NamedTuple):
    """An answer after a step. row: the row's id. chosen: what the data prefers."""

    step: int
    row: str
    prompt: str
    chosen: str
    answer: str


def picture(row: PreferenceRow) -> Image.Image | None:
    """The row's first picture, made small; None for a row without one. Raises RowError where it cannot be read."""
    if not row.images:
        return None
    image = open_image(row.images[0], row.where)
    image.thumbnail((_SIDE, _SIDE))
    return image


def page(samples: Sequence[Sample], pictures: Mapping[str, Image.Image | None]) -> str:
    """The whole document. pictures: of the rows that are shown, by their ids, in the order of the page."""
    steps = sorted({sample.step for sample in samples})
    found = {(sample.row, sample.step): sample for sample in samples}
    rows = []
    for row, image in pictures.items():
        of_row = [found.get((row, step)) for step in steps]
        last = next(sample for sample in reversed(of_row) if sample is not None)
        answers = "".join(_cell("" if sample is None else sample.answer) for sample in of_row)
        rows.append(f"<tr><td>{_image(image)}</td>{_cell(last.prompt)}{_cell(last.chosen)}{answers}</tr>\n")
    heads = "".join(
        f"<th>{html_text(head)}</th>" for head in ("picture", "prompt", "chosen", *(f"step {n}" for n in steps))
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src '
        f"'unsafe-inline'\">\n<title>sample answers</title><style>{_STYLE}</style></head>\n"
        f"<body><table>\n<tr>{heads}</tr>\n{''.join(rows)}</table></body></html>\n"
    )


def _cell(text: str) -> str:
    return f"<td>{html_text(text if len(text) <= _LONGEST else text[:_LONGEST] + ' …')}</td>"


def _image(image: Image.Image | None) -> str:
    if image is None:
        return ""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
