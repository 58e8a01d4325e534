"""Pictures as a judge gets them.

Each is opened as in training (RGB, upright), made smaller where its longer side has more than 1,024 pixels, and sent as
JPEG of quality 95. So what an endpoint sees depends on the pixels alone, a 60-megapixel photo costs no more than a
snapshot, and where and when it was taken, which cameras write into the file, is not given away.

Tokens are estimated by OpenAI's rule for GPT-4o: 85, and 170 for each square of 512 pixels that it takes once its
shorter side has at most 768. Other endpoints count otherwise.
"""

import base64
import io
import math
from collections.abc import Sequence
from functools import partial

from PIL import Image

from mdpo.data import PromptRow
from mdpo.data.images import ImageSource, Use, check_images, content_digest, open_image
from mdpo.evaluation.judge import Picture

LONGEST_SIDE = 1024
_QUALITY = 95
_HOW = f"jpeg{_QUALITY}-{LONGEST_SIDE}"


def pictures(rows: Sequence[PromptRow]) -> list[list[Picture]]:
    """Each row's pictures. Raises RowError for one that is damaged or missing, before anything is sent."""
    facts = check_images(rows)
    known: dict[object, Picture] = {}
    found = []
    for row, own in zip(rows, facts, strict=True):
        found.append([])
        for image, fact in zip(row.images, own, strict=True):
            if fact.key not in known:
                name = f"{_HOW}-{content_digest(Use(image, row.where, 'images'))}"
                known[fact.key] = Picture(name, tokens(fact.width, fact.height), partial(data_uri, image, row.where))
            found[-1].append(known[fact.key])
    return found


def tokens(width: int, height: int) -> int:
    """What a picture of so many pixels is thought to cost."""
    scale = min(1.0, LONGEST_SIDE / max(width, height))
    scale *= min(1.0, 768 / (scale * min(width, height)))
    return 85 + 170 * math.prod(math.ceil(max(1, round(scale * side)) / 512) for side in (width, height))


def data_uri(image: ImageSource, where: str) -> str:
    """The picture as it is sent. Raises RowError as ``open_image``."""
    opened = open_image(image, where)
    opened.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    opened.save(encoded, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
