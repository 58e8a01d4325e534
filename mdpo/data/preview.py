"""A contact sheet: a row of pictures per data row, its image and what each negative makes of it."""

from collections.abc import Sequence
from itertools import islice

from PIL import Image, ImageDraw, ImageFont, ImageOps

from mdpo.errors import InputError

from .images import check_images, open_image
from .negatives import NEGATIVES, parse_negative
from .rejected_images import RejectedImages
from .rows import PreferenceRow

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
    makers = [RejectedImages(rows, facts, parse_negative(spec), seed) for spec in negatives]
    lines = []
    for index, row in enumerate(rows[:count]):
        images = [open_image(image, row.where) for image in row.images]
        lines.append([images[0], *(maker.make(index, images)[0] for maker in makers)])
    return _sheet(["image", *negatives], lines)


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
