"""What stands in front of the language model, kept from training."""

from torch import nn
from transformers import PreTrainedModel

# How the names of towers' parameters begin, below the model: LLaVA's, Qwen-VL's, Idefics', LightOnOCR's, Video-LLaVA's.
_TOWERS = (".vision_tower.", ".visual.", ".vision_model.", ".vision_encoder.", ".image_tower.", ".video_tower.")


def freeze_vision(model: PreTrainedModel, *, tower: bool = True, projector: bool = True) -> None:
    """Takes ``requires_grad`` from what stands in front of the language model, in place.

    Args:
        model: bare, of any family.
        tower: whether the vision tower is frozen; Qwen-VL's merger is part of it.
        projector: whether everything between tower and language model is, whatever the family calls it.
    """
    language: list[nn.Module | None] = [model.get_decoder(), model.get_output_embeddings()]
    kept = {id(parameter) for module in language if module is not None for parameter in module.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in kept:
            continue
        if tower if any(part in f".{name}" for part in _TOWERS) else projector:
            parameter.requires_grad_(False)
