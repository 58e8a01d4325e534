"""One forward of a micro-batch, and the log-prob of every response in it: of a packed row here, of sequences in
``separate``.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from mdpo.errors import InputError
from mdpo.packing import MDPO_BRANCHES, Batch, Forks, PackedBatch, Separate, SeparateBatch, family_of
from mdpo_kernels import sequence_logps as sum_logps

from .attention import use_packed_attention
from .head import head_logps, logits_of
from .linear_attention import fork_states
from .separate import separate_token_logps
from .tower import tower_inputs

# Shapes: B examples, K branches, T packed tokens, N scored tokens, M image tokens, H hidden size, V vocabulary


class ImageFeatures(NamedTuple):
    """What the text model gets of a row's images.

    embeddings: (M, H), in place of the placeholders' embeddings. deepstack: (M, H) each, added to the placeholders'
    hidden states behind the first text layers, one by one (Qwen3-VL); empty for other families.
    """

    embeddings: Tensor
    deepstack: tuple[Tensor, ...]

    def of(self, image_tokens: Tensor | None) -> "ImageFeatures":
        """Those of some image tokens, (m,) int64; None: of all."""
        if image_tokens is None:
            return self
        return ImageFeatures(
            self.embeddings.index_select(0, image_tokens),
            tuple(level.index_select(0, image_tokens) for level in self.deepstack),
        )


def sequence_logps(model: nn.Module, batch: Batch, *, image_features: ImageFeatures | None = None) -> Tensor:
    """``branch_logps`` of mDPO's three branches.

    Args:
        model, batch, image_features: as for ``branch_logps``.

    Returns:
        (3, B) float32, rows chosen, rejected, image_rejected.

    Raises:
        InputError: as ``branch_logps``, and for a batch of other branches.
    """
    if batch.branches != MDPO_BRANCHES:
        raise InputError(
            f"the batch has the branches {', '.join(batch.branches)}; take branch_logps, which gives (K, B)"
        )
    return branch_logps(model, batch, image_features=image_features)


def branch_logps(model: nn.Module, batch: Batch, *, image_features: ImageFeatures | None = None) -> Tensor:
    """Log-probs of the responses, summed over their tokens by ``batch.weights``.

    Args:
        model: a Hugging Face model, bare or PEFT. Nothing has to be set on it before.
        batch: from ``pack`` for this model, on its device.
        image_features: from ``encode_images``, to share them between policy and reference; of a packed row alone.

    Returns:
        (K, B) float32, rows as ``batch.branches``; NaN for a branch that an example does not have.

    Raises:
        InputError: a family or a kind of adapter whose log-probs cannot be had.
    """
    token_logps = response_token_logps(model, batch, image_features=image_features)
    logps = sum_logps(token_logps, batch.cu_seqlens, batch.weights).view(len(batch.branches), -1)
    return logps.masked_fill(~batch.present, torch.nan)


def response_token_logps(model: nn.Module, batch: Batch, *, image_features: ImageFeatures | None = None) -> Tensor:
    """The log-prob of every scored token: (N,) float32, in the order of ``batch.targets``. As ``branch_logps``."""
    check_adapter_kinds(model)
    if isinstance(batch, SeparateBatch):
        return separate_token_logps(unwrap(model), batch)
    assert isinstance(batch, PackedBatch)
    return _packed_token_logps(model, batch, image_features)


def _packed_token_logps(model: nn.Module, packed: PackedBatch, image_features: ImageFeatures | None) -> Tensor:
    base = unwrap(model)
    _check_is_packed(model)
    use_packed_attention(base)
    embeddings = base.get_input_embeddings()(packed.input_ids)
    deepstack = {}
    if packed.images:
        features = encode_images(model, packed) if image_features is None else image_features
        # The rows are known since packing: index_copy needs no mask, and its backward no synchronisation.
        embeddings = embeddings[0].index_copy(0, packed.image_positions, features.embeddings.to(embeddings.dtype))[None]
        deepstack = _deepstack(packed, features)
    # The text model itself: what stands around it has put the image features in place, and counts positions of its own.
    hidden = base.get_decoder()(
        inputs_embeds=embeddings,
        position_ids=packed.position_ids,
        # transformers returns a 4-D mask as it is instead of building a (T, T) one; the segments say it all.
        attention_mask=embeddings.new_ones(1, 1, 1, 1),
        segments=packed.segments,
        use_cache=False,
        return_dict=True,
        **deepstack,
        **_layer_embeddings(base, packed),
        **_forks(base, packed),
    ).last_hidden_state[0]
    # A prefix's last row is scored twice. Its gradient has two addends, whose sum does not depend on their order.
    scored = hidden.index_select(0, packed.scored_positions)
    head = cast(nn.Module, base.get_output_embeddings())
    return head_logps(head, scored, packed.targets, logits_of(base.config))


def _check_is_packed(model: nn.Module) -> None:
    """A row that was laid out for another model may be one that this one mixes up."""
    family = family_of(model)
    if isinstance(family, Separate):
        raise InputError(
            f"the batch is a packed row, which this model does not take ({family.reason}); pack it for this model"
        )


def encode_images(model: nn.Module, packed: PackedBatch, *, trains: bool | None = None) -> ImageFeatures:
    """The features of the row's placeholders: each distinct image is encoded once.

    Args:
        model: a Hugging Face model of a family with a packed row, bare or PEFT.
        packed: from ``pack`` for this model, on its device.
        trains: whether something of tower or projector trains; features have a gradient only then. None to look, which
            takes a walk through the whole model.

    Raises:
        InputError: the tower makes another number of features than the row has placeholders.
    """
    base = unwrap(model)
    differentiated = torch.is_grad_enabled() and trains is not False
    if differentiated and trains is None:
        differentiated = any(parameter.requires_grad for parameter in vision_parameters(base))
    with torch.set_grad_enabled(differentiated):
        outputs = base.model.get_image_features(**tower_inputs(base, packed.images), return_dict=True)
    distinct = outputs.pooler_output  # one (m, H) per image, in a sequence or a tensor
    features = _of_the_row(distinct, packed)
    if len(features) != len(packed.image_positions):
        raise InputError(
            f"examples {', '.join(packed.ids)}: the vision tower makes {len(features)} image features for "
            f"{len(packed.image_positions)} placeholders; the prompts were expanded for another image size"
        )
    lengths = [len(image) for image in distinct]
    # transformers 5.17 leaves these whole, later versions split them by image.
    levels = (
        level.split(lengths) if isinstance(level, Tensor) else level
        for level in getattr(outputs, "deepstack_features", None) or ()
    )
    return ImageFeatures(features, tuple(_of_the_row(level, packed) for level in levels))


def _of_the_row(distinct: Sequence[Tensor] | Tensor, packed: PackedBatch) -> Tensor:
    return torch.cat([distinct[index] for index in packed.image_index])


def _deepstack(packed: PackedBatch, features: ImageFeatures) -> dict[str, Tensor | list[Tensor]]:
    """The text model's keywords for features that enter behind its layers."""
    if not features.deepstack:
        return {}
    mask = torch.zeros_like(packed.input_ids, dtype=torch.bool)
    mask[0].index_fill_(0, packed.image_positions, True)
    return {"visual_pos_masks": mask, "deepstack_visual_embeds": list(features.deepstack)}


def _layer_embeddings(base: PreTrainedModel, packed: PackedBatch) -> dict[str, Tensor]:
    """The text model's keyword for embeddings of every layer's own, which it makes of token ids (Gemma 4).

    An image's placeholders count as padding there, as in the model's own forward.
    """
    text: Any = base.get_decoder()
    if not getattr(text, "hidden_size_per_layer_input", 0):
        return {}
    ids = packed.input_ids[0].index_fill(0, packed.image_positions, text.config.pad_token_id)
    return {"per_layer_inputs": text.get_per_layer_inputs(ids[None], None)}


def _forks(base: PreTrainedModel, packed: PackedBatch) -> dict[str, Forks]:
    """The text model's keyword for states that are carried from token to token (Qwen3.5)."""
    if packed.forks is None:
        return {}
    fork_states(base.get_decoder())
    return {"forks": packed.forks}


def check_adapter_kinds(model: nn.Module) -> None:
    """Raises InputError for adapters that live outside the layers, where they would be passed by."""
    if not isinstance(model, PeftModel):
        return
    separate = isinstance(family_of(model), Separate)
    for name in model.active_adapters:
        config = model.peft_config[name]
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if kind == "POLY":
            raise InputError(f"the adapter {name!r} is of kind POLY, whose forward wants task ids; use LoRA")
        if config.is_prompt_learning or config.is_adaption_prompt:
            way = (
                "peft does so in a forward of its own, which branches with images do not go through"
                if separate
                else ("a packed row has no place for them")
            )
            raise InputError(
                f"the adapter {name!r} is of kind {kind}, which puts tokens of its own in front of a sequence or "
                f"into its attention; {way}: use LoRA, or another adapter of the layers"
            )
        if getattr(config, "alora_invocation_tokens", None):
            where = "outside of peft's own forward" if separate else "in a packed row"
            raise InputError(
                f"the adapter {name!r} is an aLoRA, which acts behind tokens that it looks for in each sequence: "
                f"it would do nothing {where}, and cannot be merged; use LoRA, without alora_invocation_tokens"
            )


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """A PEFT model with its adapter off for as long as the context lasts; a bare model as it is.

    peft's ``disable_adapter`` makes every parameter of the active adapters trainable when it ends. Here what was frozen
    stays so.
    """
    if not isinstance(model, PeftModel):
        yield
        return
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, trained in before:
            parameter.requires_grad_(trained)


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside a PEFT model, or the model itself. Adapter layers sit inside it and stay."""
    return cast(PreTrainedModel, getattr(model, "get_base_model", lambda: model)())


def vision_parameters(base: PreTrainedModel) -> Iterable[nn.Parameter]:
    """Everything in front of the text model: tower and projector, adapters on them included."""
    text = {id(parameter) for parameter in base.get_decoder().parameters()}
    return (parameter for parameter in base.model.parameters() if id(parameter) not in text)
