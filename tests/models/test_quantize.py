"""4-bit weights: where they are, what they cost in accuracy, and that nothing else is touched."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mdpo import InputError
from mdpo.models import PackedPolicy, fingerprint, load, sequence_logps
from mdpo.models import quantize as quantize_module
from mdpo.models.quantize import quantized_modules
from mdpo.packing import pack
from tests import tiny, wide
from tests.models.packed_examples import examples

pytest.importorskip("bitsandbytes", reason='4-bit weights need bitsandbytes: pip install -e ".[quant]"')


@pytest.fixture(scope="module", params=["llava-llama", "bunny", "qwen2_5_vl"])
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = wide.model(request.param)
    model.save_pretrained(folder)
    return model, folder


def test_the_language_models_linears_and_nothing_else(saved):
    model, folder = saved
    quantized = load(folder, load_in_4bit=True)
    linears = [
        name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "language_model." in name
    ]
    assert quantized_modules(quantized) == linears
    whole = dict(model.named_parameters())
    for name, parameter in quantized.named_parameters():
        if parameter.dtype != torch.uint8:
            assert torch.equal(parameter, whole[name]), name


def test_the_error_of_nf4_is_that_of_its_sixteen_levels(saved):
    import bitsandbytes

    model, folder = saved
    for name, parameter in load(folder, load_in_4bit=True).named_parameters():
        if parameter.dtype == torch.uint8:
            restored = bitsandbytes.functional.dequantize_4bit(parameter.data, parameter.quant_state)
            weight = model.get_parameter(name)
            # A normal weight in blocks of 64 loses 9% (root mean square); double quantisation adds next to nothing.
            assert (restored - weight).norm() / weight.norm() < 0.11, name


def test_the_policy_in_4_bits(saved, request):
    """Log-probs move by a stated bound; at step 0 policy and reference are equal, and adapters are in fp32."""
    model, folder = saved
    family = request.node.callspec.params["saved"]
    packed = pack(examples(family), model)
    quantized = load(folder, load_in_4bit=True)
    whole, moved = (sequence_logps(m, packed).detach() for m in (model, quantized))
    tokens = packed.cu_seqlens.diff().view(3, -1)
    assert ((whole - moved).abs() / tokens).nan_to_num().max() < 0.5, "nats a token, of a model with random weights"
    peft = get_peft_model(quantized, LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj|fc1|up_proj)"))
    output = PackedPolicy(peft).train()(packed)
    rewards = output.loss.rewards
    assert torch.equal(rewards[~rewards.isnan()], torch.zeros(int((~rewards.isnan()).sum())))
    output.loss.loss.backward()
    trained = [parameter for parameter in peft.parameters() if parameter.requires_grad]
    assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.isfinite().all() for p in trained)


def test_scales_are_part_of_the_fingerprint(tmp_path):
    model = wide.model("llava-llama")
    model.save_pretrained(tmp_path / "one")
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.up_proj.weight.mul_(2)  # the same codes, twice the scales
    model.save_pretrained(tmp_path / "two")
    one, two = (load(tmp_path / name, load_in_4bit=True) for name in ("one", "two"))
    assert fingerprint(one) != fingerprint(two)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's kernels take any width")
def test_widths_that_the_cpu_kernels_get_wrong_are_refused(tmp_path):
    tiny.llava().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="32 inputs.*multiple of 64"):
        load(tmp_path, load_in_4bit=True)


def test_without_bitsandbytes_the_error_says_what_to_install(tmp_path, monkeypatch):
    tiny.llava().save_pretrained(tmp_path)
    monkeypatch.setattr(quantize_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install"):
        load(tmp_path, load_in_4bit=True)
