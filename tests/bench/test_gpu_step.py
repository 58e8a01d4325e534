"""The packed step compiled, on a GPU in bfloat16: log-probs and gradients against the model's own forward in
float32.
"""

import copy

import pytest
import torch

from bench.inputs.models import BUNNY_3B, TINY, Shape, build
from bench.inputs.preference_rows import even_rows
from bench.suite.implementations.step import StepProblem, packed, three_padded
from tests.numerics import relative_error

CPU = torch.device("cpu")


def tiny_phi() -> Shape:
    text = copy.deepcopy(BUNNY_3B.text)
    text.vocab_size, text.hidden_size, text.intermediate_size, text.num_hidden_layers = 512, 128, 256, 2
    text.num_attention_heads = text.num_key_value_heads = 4
    return Shape("phi-tiny", text, TINY.vision, TINY.tower, TINY.patch_size)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [TINY, tiny_phi()], ids=lambda shape: shape.name)
def test_the_packed_step_is_as_exact_as_three_padded_passes(shape):
    """Both in bfloat16 under autocast; the truth is three passes in float32 on the CPU.

    No more than twice their error.
    """
    model = build(shape, 64, CPU, lora_r=4)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    examples = even_rows(shape, 80, 24, 8, image_tokens=64)
    truth = three_padded(StepProblem(copy.deepcopy(model), examples))()
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    found = []
    for layout in (packed, three_padded):
        on_gpu = StepProblem(copy.deepcopy(model).cuda(), examples)
        with torch.autocast("cuda", torch.bfloat16):
            found.append(layout(on_gpu)())
    for ours, theirs, expected, what in zip(*found, truth, ("logps", "gradient"), strict=True):
        bound = 2 * relative_error(theirs, expected) + 1e-6
        assert relative_error(ours, expected) <= bound, what
