"""The plan against what CUDA's allocator says."""

import pytest
import torch

from mdpo.memory import Adaptation, Setup, footprint, read_shape
from mdpo.memory.precision import Precision
from mdpo.models import LANGUAGE_LINEAR


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointed", [0, 3, 6])
@pytest.mark.parametrize("family", ["llama", "phi"])
def test_the_peak_is_within_a_tenth_of_max_memory_allocated(family, checkpointed):
    """Second step of a bf16 model of some 60 million parameters with fp32 adapters under autocast; AdamW in 32 bits."""
    from dataclasses import replace

    import transformers
    from peft.helpers import disable_input_dtype_casting

    from bench.inputs.models import CPU_60M, build
    from mdpo.models import PackedPolicy, checkpoint_first_layers
    from mdpo.models.logps import unwrap
    from mdpo.packing import PreferenceTokens, pack

    text = CPU_60M.text
    if family == "phi":
        text = transformers.PhiConfig(
            vocab_size=8192,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=6,
            num_attention_heads=12,
            hidden_act="gelu_pytorch_tanh",
        )
    device = torch.device("cuda")
    model = build(replace(CPU_60M, text=text), 256, device, lora_r=64)
    if checkpointed:
        base = unwrap(model)
        getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)()
        checkpoint_first_layers(model, checkpointed)
    image = torch.randn(1, 3, 224, 224)
    prompt = [model.config.image_token_id] * 256 + list(range(10, 80))
    examples = [
        PreferenceTokens(str(n), prompt, [5] * 120, [6] * 120, {"pixel_values": image + n}, {"pixel_values": image - n})
        for n in range(4)
    ]
    packed = pack(examples, model).to(device)
    policy = PackedPolicy(model).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    reference = torch.zeros(3, len(examples), device=device)
    with disable_input_dtype_casting(model):
        for step in range(2):
            if step:
                torch.cuda.reset_peak_memory_stats()
            else:  # the gradients are kept from here on, as within a step of several micro-batches
                optimizer.zero_grad(set_to_none=False)
            with torch.autocast("cuda", torch.bfloat16):
                loss = policy(packed, reference).loss.loss
            loss.backward()
            optimizer.step()
    shape = read_shape(model.config, Adaptation(rank=64, pattern=LANGUAGE_LINEAR))
    setup = Setup(
        precision=Precision(weight_bytes=2, autocast=True),
        quantized=False,
        optimizer="adamw_torch_fused",
        checkpointed=checkpointed,
        tokens=packed.num_tokens,
        scored=len(packed.targets),
        images=len(packed.image_index),
    )
    predicted = footprint(shape, setup).allocated
    assert torch.cuda.max_memory_allocated() == pytest.approx(predicted, rel=0.1)
