"""Adapters as they are after some training, which at their start would hide half of what can go wrong."""

import torch
from peft import LoraConfig, get_peft_model


def with_lora(model):
    targets = r".*(language|text)_model.*\.(q_proj|v_proj|dense|down_proj|fc2)"
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=targets)
    torch.manual_seed(2)
    peft = get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:  # zero at the start, which would hide half the gradients
                parameter.normal_(std=0.1)
    return peft


LANGUAGE = r".*language_model.*\.(q_proj|v_proj|down_proj)"


def nudge(model, scale: float = 0.1) -> None:
    """What training does to whatever trains."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
