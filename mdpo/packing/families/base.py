"""What packing asks of a model family, and what several families answer alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mdpo.packing.branches import cost_of

# Shapes: P prompt tokens, D position axes (1, or 3 for time, height and width)

# Held against separate forwards in the tests. The attention of each layer is plain and causal, or has a window, of
# which the layer tells the attention function.
_TEXT_MODELS = ("llama", "mistral", "phi", "qwen2", "qwen3")


class Family(Protocol):
    """How one model family turns images into tokens and tokens into positions.

    An *image* is here the smallest thing that the tower encodes by itself: a tile where a family cuts pictures into
    tiles that don't see each other.
    """

    @property
    def image_token_id(self) -> int:
        """The placeholder's id in the prompt."""
        ...

    @property
    def max_branch_tokens(self) -> int | None:
        """The longest branch that packing can do exactly, or None without a limit."""
        ...

    @property
    def image_inputs(self) -> tuple[str, ...]:
        """What an example's images must hold. Whatever else the processor returned is left out."""
        ...

    @property
    def host_inputs(self) -> tuple[str, ...]:
        """Those of an example's images that are sizes, which the model reads on the host."""
        ...

    @property
    def carries_state(self) -> bool:
        """Whether some layers carry a state from token to token, so that a row has to say where it forks."""
        ...

    def image_lengths(self, images: Mapping[str, Tensor]) -> list[int]:
        """The number of placeholder tokens each image takes."""
        ...

    def split_images(self, images: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """One dict per image, so that images that several examples share are encoded once.

        Concatenated key by key, any choice of them is what the model's ``get_image_features`` takes.
        """
        ...

    def positions(self, prompt_ids: Sequence[int], images: Mapping[str, Tensor] | None) -> Tensor:
        """Position ids of a prompt, (D, P) int64. A response continues at their maximum plus one on every axis."""
        ...


@dataclass(frozen=True, slots=True)
class Separate:
    """A model whose branches are read one by one, each through its own forward.

    reason: why no packed row is made of them. response_type: what ``token_type_ids`` say of a response's tokens, where
    they tell those from the prompt's; None where they mark image tokens, by 1.
    """

    image_token_id: int
    reason: str
    response_type: int | None = None

    @property
    def max_branch_tokens(self) -> None:
        """The model honours its own window."""
        return None

    def line(self, branches: Sequence[str]) -> str:
        """What reading these branches so costs, in one line."""
        separate, packed = (cost_of(branches, packed=packed) for packed in (False, True))
        instead = "" if separate == packed else f" instead of {packed}"
        return f"separate: {separate} tokens{instead}, because {self.reason}"


class Untried(Exception):
    """A part of a known family that no test has seen in a packed row. Its text is the reason of a ``Separate``."""


def check_text_model(config) -> None:
    """Raises Untried for a family's text model that no test has seen in a packed row."""
    text = config.text_config.model_type
    if text not in _TEXT_MODELS:
        raise Untried(
            f"a {config.model_type!r} model around the text model {text!r} has not been tried in a packed row"
        )


# Rotary positions whose frequencies depend on the longest sequence of a batch, or of all batches before it.
_ROPE_BY_LENGTH = ("dynamic", "longrope")


def max_branch_tokens(config) -> int | None:
    """The longest branch that a packed row computes exactly, or None without a limit.

    A row's branches share one table of rotary frequencies: exact as long as no branch outgrows the length from which
    the frequencies change. (A sliding window is no limit: the attention counts it in each branch.)
    """
    text = config.text_config
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if (rope.get("rope_type") or rope.get("type")) not in _ROPE_BY_LENGTH:
        return None
    return rope.get("original_max_position_embeddings") or text.max_position_embeddings
