"""The rejected images of a list of rows: which negative, from which seed, drawing on which other rows."""

import functools
from collections.abc import Sequence

from PIL import Image

from .images import ImageFacts, open_image
from .negatives import Mixture, generator
from .problem import RowError
from .row import PreferenceRow


class RejectedImages:
    """Makes the rejected images of rows; the same ones for the same seed, row id and epoch.

    rows, facts: as ``check_images`` takes and returns them.

    Raises RowError where a row lacks what the negative needs: ``rejected_images`` for "own", another row's image for
    "random_image".
    """

    def __init__(
        self, rows: Sequence[PreferenceRow], facts: Sequence[tuple[ImageFacts, ...]], negative: Mixture, seed: int
    ) -> None:
        self.rows, self.facts, self.negative, self.seed = rows, facts, negative, seed
        # A negative that somebody adds may draw on either too; it meets the same errors when it does.
        if "own" in negative.names:
            for row in rows:
                _check_own(row)
        if "random_image" in negative.names:
            self._donors.check()

    @functools.cached_property
    def _donors(self) -> "_Donors":
        return _Donors(self.rows, self.facts)  # asks every row, which few negatives need

    def make(self, index: int, images: Sequence[Image.Image], epoch: int | None = None) -> list[Image.Image]:
        """One negative for each of ``images``, which are those of row ``index``. epoch None: the same in all epochs."""
        rng = generator(self.seed, self.rows[index].id, epoch)
        return [
            self.negative(image, rng, _Sources(self, index, at)) for at, image in enumerate(images)
        ]


class _Sources:
    """What the negative of one image may draw on, see ``negatives.Sources``."""

    def __init__(self, made: RejectedImages, index: int, position: int) -> None:
        self.made, self.rows, self.index, self.position = made, made.rows, index, position

    def other(self, number: int) -> Image.Image:
        row = self.rows[self.made._donors.choose(self.index, number)]
        return open_image(row.images[0], row.where)

    def own(self) -> Image.Image:
        row = self.rows[self.index]
        _check_own(row)
        return open_image(row.rejected_images[self.position], row.where, "rejected_images")


class _Donors:
    """Rows whose first image may stand in for another row's: never an image that the row has itself."""

    def __init__(self, rows: Sequence[PreferenceRow], facts: Sequence[tuple[ImageFacts, ...]]) -> None:
        self.rows = rows
        numbers: dict[object, int] = {}
        self._images = [tuple(numbers.setdefault(image.key, len(numbers)) for image in images) for images in facts]
        self._donors = [index for index, images in enumerate(self._images) if images]

    def check(self) -> None:
        """Raises RowError for a row that has no donor."""
        first = {self._images[index][0] for index in self._donors}
        for index, images in enumerate(self._images):
            if images and first <= set(images):
                raise self._error(index)

    def choose(self, index: int, number: int) -> int:
        """The row that ``number`` chooses, or the next one after it with another image."""
        for step in range(len(self._donors)):
            donor = self._donors[(number + step) % len(self._donors)]
            if self._images[donor][0] not in self._images[index]:
                return donor
        raise self._error(index)

    def _error(self, index: int) -> RowError:
        problem = "random_image needs a second row, with an image that this row does not have"
        return RowError.at(self.rows[index].where, "images", problem, "choose another negative")


def _check_own(row: PreferenceRow) -> None:
    if row.images and not row.rejected_images:
        remedy = "give one per image, or choose another negative"
        raise RowError.at(row.where, "rejected_images", "is missing, and the negative is own", remedy)
