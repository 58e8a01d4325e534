"""The rejected images of a list of rows: which negative, from which seed, drawing on which other rows."""

import functools
import logging
from collections.abc import Sequence, Set

from PIL import Image

from mdpo.errors import InputError

from .images import ImageFacts, open_image
from .nearest import Neighbours
from .negatives import NEEDS_MODEL, Mixture, generator
from .problem import RowError, other_pictures_missing
from .row import PreferenceRow

logger = logging.getLogger(__name__)


class RejectedImages:
    """Makes the rejected images of rows; the same ones for the same seed, row id and epoch.

    rows, facts: as ``check_images`` takes and returns them. count: negatives of every image.

    Raises RowError where a row lacks what the negative needs: ``count`` ``rejected_images`` per image for "own",
    another row's image for "random_image"; InputError where several negatives would be the same picture. How many rows
    bring more ``rejected_images`` than are read is logged.
    """

    def __init__(
        self,
        rows: Sequence[PreferenceRow],
        facts: Sequence[tuple[ImageFacts, ...]],
        negative: Mixture,
        seed: int,
        count: int = 1,
    ) -> None:
        self.rows, self.facts, self.negative, self.seed, self.count = rows, facts, negative, seed, count
        self.neighbours: Neighbours | None = None  # for "nearest_image", once a model has been asked
        negative.check_several(count)
        # A negative that somebody adds may draw on either too; it meets the same errors when it does.
        if "own" in negative.names:
            more = sum(_brings_more(row, count) for row in rows)
            if more:
                logger.warning(
                    "%d of %d rows bring more rejected_images than the objective reads: the first %d of each image "
                    "are used",
                    more,
                    len(rows),
                    count,
                )
        if NEEDS_MODEL not in negative.names:
            self._check_donors()

    def take_neighbours(self, neighbours: Neighbours) -> None:
        """Before the first one is made, where the negative needs the model. Raises RowError as the constructor."""
        self.neighbours = neighbours
        self._check_donors()

    def _check_donors(self) -> None:
        if "random_image" in self.negative.names:
            self._donors.check(self.count)

    @functools.cached_property
    def _donors(self) -> "_Donors":
        """Asks every row, which few negatives need. Pictures have the neighbours' numbers, where there are some: a
        mixture takes from both."""
        if self.neighbours is not None:
            return _Donors(self.rows, [self.neighbours.pictures(index) for index in range(len(self.rows))])
        numbers: dict[object, int] = {}
        return _Donors(
            self.rows,
            [tuple(numbers.setdefault(image.key, len(numbers)) for image in images) for images in self.facts],
        )

    def make(self, index: int, images: Sequence[Image.Image], epoch: int | None = None) -> list[list[Image.Image]]:
        """``count`` times one negative for each of ``images``, which are those of row ``index``.

        epoch: None for the same ones in all epochs.
        """
        row = self.rows[index]
        sources = [_Sources(self, index, at, row) for at in range(len(images))]
        made = []
        for which in range(1, self.count + 1):
            rng = generator(self.seed, row.id, epoch, which)
            made.append(
                [self.negative(image, rng, source.turn(which)) for image, source in zip(images, sources, strict=True)]
            )
        return made


class _Sources:
    """What the negatives of one image may draw on, see ``negatives.Sources``."""

    def __init__(self, made: RejectedImages, index: int, position: int, row: PreferenceRow) -> None:
        self.made, self.index, self.position, self.row = made, index, position, row
        self.which = 1
        self._taken: set[int] = set()  # pictures of other rows, which differ from one negative to the next

    def turn(self, which: int) -> "_Sources":
        self.which = which
        return self

    def other(self, number: int) -> Image.Image:
        donors = self.made._donors
        donor = donors.choose(self.index, number, self._taken)
        self._taken.add(donors.picture(donor))
        row = self.made.rows[donor]
        return open_image(row.images[0], row.where)

    def nearest(self) -> Image.Image:
        neighbours = self.made.neighbours
        if neighbours is None:
            raise InputError(
                f"negative: {NEEDS_MODEL} needs the model to tell which images look alike, and none was "
                "asked; choose another negative here, or train with it"
            )
        picture = neighbours.choose(self.index, self.position, self._taken)
        self._taken.add(picture)
        return open_image(neighbours.rows.source(neighbours.number(picture)), self.row.where)

    def own(self) -> Image.Image:
        _brings_more(self.row, self.made.count)
        at = (self.which - 1) * len(self.row.images) + self.position
        return open_image(self.row.rejected_images[at], self.row.where, "rejected_images")


class _Donors:
    """Rows whose first image may stand in for another row's: never an image that the row has itself.

    images: which pictures each row's images are, by number.
    """

    def __init__(self, rows: Sequence[PreferenceRow], images: Sequence[tuple[int, ...]]) -> None:
        self.rows, self._images = rows, images
        self._donors = [index for index, pictures in enumerate(images) if pictures]

    def check(self, count: int) -> None:
        """Raises RowError for a row that has fewer than ``count`` other pictures to choose from."""
        first = {self._images[index][0] for index in self._donors}
        for index, images in enumerate(self._images):
            if images and len(first) - len(first.intersection(images)) < count:
                raise other_pictures_missing(self.rows[index].where, "random_image", count)

    def picture(self, donor: int) -> int:
        """Which picture the row's first image is: the same number for the same one."""
        return self._images[donor][0]

    def choose(self, index: int, number: int, taken: Set[int]) -> int:
        """The row that ``number`` chooses, or the next one after it with another image.

        taken: pictures to pass over.
        """
        for step in range(len(self._donors)):
            donor = self._donors[(number + step) % len(self._donors)]
            if self._images[donor][0] not in self._images[index] and self._images[donor][0] not in taken:
                return donor
        raise other_pictures_missing(self.rows[index].where, "random_image", len(taken) + 1)


def _brings_more(row: PreferenceRow, count: int) -> bool:
    """Whether the row brings more than ``count`` rejected images of each image.

    Raises RowError where it brings fewer.
    """
    if not row.images:
        return False
    if not row.rejected_images:
        remedy = "give one per image, or choose another negative" if count == 1 else f"give {count} per image"
        raise RowError.at(row.where, "rejected_images", "is missing, and the negative is own", remedy)
    brought = len(row.rejected_images) // len(row.images)
    if brought < count:
        problem = f"{brought} per image, and the objective reads {count}"
        raise RowError.at(row.where, "rejected_images", problem, "give more, or choose another objective or negative")
    return brought > count
