"""A contact sheet: a row of pictures per data row, its image and what each negative makes of it."""

import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

from mdpo.errors import InputError
from mdpo.outputs import whole_file

from .images import check_images, open_image
from .negatives import NEEDS_MODEL, NEGATIVES, parse_negative
from .rejected_images import RejectedImages
from .rows import PreferenceRow

logger = logging.getLogger(__name__)

_CELL, _GAP, _LABEL = 224, 8, 22  # pixels


def contact_sheet(rows: Sequence[PreferenceRow], count: int, negatives: Sequence[str], seed: int) -> Image.Image:
    """The first image of the first ``count`` rows that have one, beside its negatives.

    negatives: names or mixtures; none means all that these rows allow. seed: of the negatives, as in training.

    Raises InputError where no row has an image or a negative can't be made.
    """
    # Rows beyond those shown lend random_image theirs.
    rows = list(islice((row for row in rows if row.images), max(4 * count, 16)))
    if not rows:
        raise InputError("no row has an image, so there is nothing to preview")
    facts = check_images(rows)
    if not negatives:
        several = len({images[0].key for images in facts}) > 1
        own = all(row.rejected_images for row in rows)
        left_out = {"own": not own, "random_image": not several}
        negatives = [name for name in NEGATIVES if not left_out.get(name)]
    shown = [spec for spec in negatives if NEEDS_MODEL not in parse_negative(spec).names]
    if len(shown) < len(negatives):
        logger.warning("%s needs the model to tell which images look alike; it is not shown", NEEDS_MODEL)
    makers = [RejectedImages(rows, facts, parse_negative(spec), seed) for spec in shown]
    lines = []
    for index, row in enumerate(rows[:count]):
        images = [open_image(image, row.where) for image in row.images]
        lines.append([images[0], *(maker.make(index, images)[0][0] for maker in makers)])
    return _sheet(["image", *shown], lines)


def check_picture_name(path: Path) -> None:
    """Raises InputError where a picture cannot be of the kind that its name asks for."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise InputError(
            f"--output {path}: {path.suffix or 'no suffix'} is not the name of an image file; give one such as "
            "preview.png"
        )


def write_picture(sheet: Image.Image, path: Path) -> None:
    """Raises InputError as ``check_picture_name``, and OutputError where ``path`` cannot be written."""
    check_picture_name(path)
    text = PngInfo()
    text.add_text("Software", "mdpo data preview")
    try:
        with whole_file(path) as part:
            sheet.save(part, format=Image.registered_extensions()[path.suffix.lower()], pnginfo=text)
    except (OSError, ValueError) as error:  # a kind of picture that has no place for colours
        raise InputError(f"--output {path}: {error}; give a name such as preview.png") from error


def _sheet(labels: Sequence[str], lines: Sequence[Sequence[Image.Image]]) -> Image.Image:
    step = _CELL + _GAP
    sheet = Image.new("RGB", (_GAP + step * len(labels), _LABEL + step * len(lines)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for column, label in enumerate(labels):
        draw.text((_GAP + step * column, 3), label, fill="black", font=font)
    for line, images in enumerate(lines):
        for column, image in enumerate(images):
            sheet.paste(ImageOps.contain(image, (_CELL, _CELL)), (_GAP + step * column, _LABEL + step * line))
    return sheet
