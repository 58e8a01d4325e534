"""What of the rows is used, and how."""

import math
from dataclasses import dataclass
from typing import Any

from mdpo.errors import InputError
from mdpo.packing.branches import MDPO_BRANCHES, branch_of, negatives_of

from .negatives import Mixture
from .text_options import TextOptions


@dataclass(frozen=True, slots=True)
class DataOptions:
    """What of the rows is used, and how.

    branches: the responses and pictures that the objective reads, by the names of ``mdpo.packing.branches``.
    drop_images: train without any image, and so without every branch that reads another picture than ``image``.
    negative: a name in NEGATIVES, or a mixture such as "crop_0_20:0.5+black:0.5". seed: of the negatives.
    max_length: tokens of prompt and response; longer responses are cut.
    text: how rows become text.
    changed_weight: how much the words count in which the two answers differ, see ``spans.changed_spans``; None: as the
        others. Rows with weights of their own keep them.
    """

    branches: tuple[str, ...] = MDPO_BRANCHES
    drop_images: bool = False
    negative: str = "crop_0_20"
    seed: int = 42
    max_length: int | None = None
    text: TextOptions = TextOptions()
    changed_weight: float | None = None

    def __post_init__(self) -> None:
        if self.changed_weight is not None and not 0 < self.changed_weight < math.inf:
            raise InputError(f"changed_weight is {self.changed_weight}; expected a finite number above 0, such as 5")
        if not self.branches:
            raise InputError("branches is empty; expected one or more, such as chosen and rejected")
        if not self.read:
            raise InputError(
                f"drop_images: true leaves nothing of an objective that reads {', '.join(self.branches)}; choose "
                "another objective, or drop_images: false"
            )

    @classmethod
    def of(cls, settings: Any, objective: Any) -> "DataOptions":
        """From a run's settings, an ``MDPOConfig``, and its objective, an ``mdpo.objectives.Objective``."""
        return cls(
            branches=objective.read,
            drop_images=settings.drop_images,
            negative=settings.negative,
            seed=settings.seed,
            max_length=settings.max_length,
            text=TextOptions.of(settings),
            changed_weight=settings.changed_weight,
        )

    @property
    def read(self) -> tuple[str, ...]:
        """The branches that are read."""
        return tuple(name for name in self.branches if not self.drop_images or not branch_of(name).needs_image)

    @property
    def beside_image(self) -> tuple[str, ...]:
        """Those of them that only a row with images has."""
        return tuple(name for name in self.read if branch_of(name).needs_image)

    @property
    def contrast(self) -> tuple[str, ...]:
        """Those that read the answer to the rejected picture."""
        return tuple(name for name in self.read if branch_of(name).response == "contrast")

    @property
    def reads_contrast(self) -> bool:
        return bool(self.contrast)

    @property
    def reads_imageless(self) -> bool:
        return any(branch_of(name).picture == "none" for name in self.read)

    @property
    def terms_beside_image(self) -> str:
        """What an example without images goes without, for messages."""
        if set(self.read) <= set(MDPO_BRANCHES):
            return "the image preference"
        return f"the terms that read {', '.join(self.beside_image)}"

    @property
    def negatives(self) -> int:
        """Rejected pictures of each image that are read."""
        return negatives_of(self.read)


def check_contrast(options: DataOptions, negative: Mixture) -> None:
    """Raises InputError where the answer that is right for the row's rejected picture would be read with
    another one.
    """
    reading = next((name for name in options.contrast if branch_of(name).negative), None)
    if reading is not None and negative.names != ("own",):
        raise InputError(
            f"negative: {options.negative} makes the rejected image, and the objective reads {reading}, the "
            "answer that is right for the row's own one; set negative: own"
        )
