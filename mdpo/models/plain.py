"""A branch through the model's own ``forward(...).logits``: no packing, no kernels. What the packed way is held to."""

import inspect
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mdpo.packing import PreferenceTokens, family_of
from mdpo.packing.branches import branch_of, pictures_of
from mdpo.packing.readings import readings

from .attention import own_attention
from .inputs import model_inputs
from .logps import unwrap

# Shapes: R tokens of the response


class PlainBranch(NamedTuple):
    """One branch of an example: what it is called, the prompt, its picture if any, and the response."""

    example: str
    name: str
    prompt_ids: Sequence[int]
    images: Mapping[str, Tensor] | None
    response: Sequence[int]


def plain_branches(
    examples: Sequence[PreferenceTokens], branches: Sequence[str], image_token_id: int
) -> list[PlainBranch]:
    """In the order of ``PackedBatch.cu_seqlens``; one that an example does not have is left out."""
    pictures = pictures_of(branches)
    found = [
        PlainBranch(example.id, response.branch.name, reading.prompt_ids, reading.images, response.ids)
        for example in examples
        for reading in readings(example, pictures, image_token_id)
        for response in reading.responses
    ]
    order = [branch_of(name).name for name in branches]
    return sorted(found, key=lambda each: order.index(each.name))


@torch.no_grad()
def plain_token_logps(model: nn.Module, branch: PlainBranch, values: dict[str, Tensor] | None = None) -> Tensor:
    """The log-prob of each token of the response: (R,) float32.

    Args:
        model: bare or PEFT, in the mode to be tried. Its ``forward`` gets what its processor returned.
        values: parameters to put in place of the model's, by name.
    """
    device = next(model.parameters()).device
    base = unwrap(model)
    ids = torch.tensor([[*branch.prompt_ids, *branch.response]], device=device)
    prompts = torch.tensor([len(branch.prompt_ids)], device=device)
    images = {name: tensor.to(device) for name, tensor in (branch.images or {}).items()}
    inputs = model_inputs(base, family_of(model), ids, torch.ones_like(ids), prompts, images)
    length = len(branch.response)
    if "logits_to_keep" in inspect.signature(base.forward).parameters:
        inputs["logits_to_keep"] = length + 1
    with own_attention(base):
        outputs = functional_call(model, values or {}, kwargs=inputs)
    logits = outputs.logits[0, -length - 1 : -1].float()
    targets = ids[0, -length:, None]
    return logits.log_softmax(-1).gather(1, targets)[:, 0]
