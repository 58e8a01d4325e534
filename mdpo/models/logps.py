"""One forward of a packed row, and the log-prob of every response in it."""

from collections.abc import Iterable

import torch
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from mdpo.errors import InputError
from mdpo.packing import PackedBatch, family_of
from mdpo_kernels import linear_token_logps
from mdpo_kernels import sequence_logps as sum_logps

from .attention import use_packed_attention

# Shapes: B examples, T packed tokens, N scored tokens, M image tokens, H hidden size, V vocabulary


def sequence_logps(model: nn.Module, packed: PackedBatch, *, image_features: Tensor | None = None) -> Tensor:
    """Summed log-probs of the responses: (3, B) float32, rows chosen, rejected, image_rejected.

    model: a supported Hugging Face model, bare or PEFT. Nothing has to be set on it before.
    packed: on the model's device.
    image_features: (M, H) from ``encode_images``, to share them between policy and reference.

    A branch that an example does not have is NaN. Raises InputError for a family that cannot be packed.
    """
    family_of(model)
    base = unwrap(model)
    use_packed_attention(base)
    embeddings = base.get_input_embeddings()(packed.input_ids)
    if packed.images:
        features = encode_images(model, packed) if image_features is None else image_features
        # The rows are known since packing: index_copy needs no mask, and its backward no synchronisation.
        features = features.to(embeddings.dtype)
        embeddings = embeddings[0].index_copy(0, packed.image_rows, features)[None]
    hidden = base.model(
        inputs_embeds=embeddings,
        position_ids=packed.position_ids,
        # transformers returns a 4-D mask as it is instead of building a (T, T) one; the segments say it all.
        attention_mask=embeddings.new_ones(1, 1, 1, 1),
        segments=packed.segments,
        use_cache=False,
        return_dict=True,
    ).last_hidden_state[0]
    # A prefix's last row is scored twice. Its gradient has two addends, whose sum does not depend on their order.
    scored = hidden.index_select(0, packed.scored_rows)
    weight, bias = head_parameters(base)
    logps = sum_logps(linear_token_logps(scored, weight, packed.targets, bias=bias), packed.cu_seqlens)
    absent = packed.cu_seqlens.diff() == 0
    return logps.masked_fill(absent, torch.nan).view(3, -1)


def encode_images(model: nn.Module, packed: PackedBatch) -> Tensor:
    """The features of the row's placeholders, (M, H): each distinct image is encoded once.

    Without gradient where tower and projector are frozen. Raises InputError where the tower makes another number of
    features than the row has placeholders.
    """
    base = unwrap(model)
    trained = any(parameter.requires_grad for parameter in vision_parameters(base))
    with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
        outputs = base.model.get_image_features(**packed.images, return_dict=True)
    distinct = outputs.pooler_output
    features = torch.cat([distinct[index] for index in packed.image_index])
    if len(features) != len(packed.image_rows):
        raise InputError(
            f"examples {', '.join(packed.ids)}: the vision tower makes {len(features)} image features for "
            f"{len(packed.image_rows)} placeholders; the prompts were expanded for another image size"
        )
    return features


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside a PEFT model, or the model itself. Adapter layers sit inside it and stay."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def vision_parameters(base: PreTrainedModel) -> Iterable[nn.Parameter]:
    """Everything in front of the language model: tower and projector, adapters on them included."""
    return (p for name, p in base.model.named_parameters() if not name.startswith("language_model."))


def head_parameters(base: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """Weight (V, H) and bias (V,) or None of lm_head, an adapter on it folded in.

    Raises ValueError for an adapter that is no plain LoRA.
    """
    head = base.get_output_embeddings()
    if isinstance(head, ModulesToSaveWrapper):
        head = head.original_module if head.disable_adapters else head.modules_to_save[head.active_adapter]
    if not isinstance(head, LoraLayer):
        return head.weight, head.bias
    layer = head.get_base_layer()
    weight = layer.weight
    if not head.disable_adapters:
        for adapter in head.active_adapters:
            if adapter not in head.lora_A:
                raise ValueError(f"the adapter {adapter!r} on lm_head is not a plain LoRA; use target_modules without it")
            # The log-probs need the sum; its gradient runs on into A and B. One (V, H) temporary each pass.
            weight = weight + head.get_delta_weight(adapter).to(weight.dtype)
    return weight, layer.bias
