"""What a model reads of an example: a prompt with one of its pictures, and the responses that are read with it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from .branches import Branch
from .tokens import PreferenceTokens

Images = Mapping[str, Tensor] | None


class Response(NamedTuple):
    """ids: its tokens. weights: of each of them in the log-prob; None: 1 each."""

    branch: Branch
    ids: Sequence[int]
    weights: Sequence[float] | None


class Reading(NamedTuple):
    """images: what the processor returned for the picture, None without one. source: the example's field that holds
    them.
    """

    prompt_ids: Sequence[int]
    images: Images
    source: str
    responses: list[Response]


def readings(example: PreferenceTokens, pictures: Mapping[str, Sequence[Branch]], image_token_id: int) -> list[Reading]:
    """The example's readings, in the order of ``pictures``; without those that it lacks the picture or the answers for.

    pictures: from ``pictures_of``.
    """
    found = []
    for branches in pictures.values():
        prompt = _prompt(example, branches[0], image_token_id)
        responses = [response for branch in branches if (response := _response(example, branch)) is not None]
        if prompt is not None and responses:
            found.append(Reading(*prompt, responses))
    return found


def _prompt(example: PreferenceTokens, branch: Branch, image_token_id: int) -> tuple[Sequence[int], Images, str] | None:
    if branch.picture == "image":
        return example.prompt_ids, example.images, "images"
    if branch.picture == "none":
        if example.images is None:  # no picture to leave out
            return None
        ids = example.imageless_prompt_ids
        return (
            [token for token in example.prompt_ids if token != image_token_id] if ids is None else ids,
            None,
            "images",
        )
    if branch.negative > len(example.negatives):
        return None
    several = len(example.negatives) > 1
    source = f"rejected_images[{branch.negative - 1}]" if several else "rejected_images"
    return example.prompt_ids, example.negatives[branch.negative - 1], source


def _response(example: PreferenceTokens, branch: Branch) -> Response | None:
    if branch.response == "chosen":
        return Response(branch, example.chosen_ids, example.chosen_weights)
    if branch.response == "rejected":
        return Response(branch, example.rejected_ids, example.rejected_weights)
    if example.contrast_ids is None or example.images is None:  # right for another picture than none
        return None
    return Response(branch, example.contrast_ids, None)
