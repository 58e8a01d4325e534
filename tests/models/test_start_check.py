"""The check before the first step: silent where both ways agree, and what it finds where they don't."""

import functools
import math

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from mdpo.errors import InputError
from mdpo.models import establish_reference, sequence_logps
from mdpo.models.dropout import disable_dropout
from mdpo.models.start_check import check_equal_start, check_packed, first_examples, rounding_of
from mdpo.packing import PreferenceTokens, pack
from tests import tiny
from tests.models.adapters import LANGUAGE, nudge
from tests.models.packed_examples import FAMILIES, examples
from tests.models.separate_models import build

pytestmark = pytest.mark.slow


def check(model, family="llava-llama", **options):
    return check_packed(model, examples(family), rounding=rounding_of(model), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_passes(kind, dtype):
    found = check(FAMILIES[kind]().to(dtype), kind, training=True)
    assert len(found.differences) == 13 and found.agrees
    assert found.furthest.mean < (1e-5 if dtype is torch.float32 else 0.1)
    assert "13 branches" in found.line


@pytest.mark.parametrize("kind", ["llava-llama", "smolvlm", "qwen3_vl"])
def test_adapters_pass_fresh_and_trained(kind):
    model = get_peft_model(FAMILIES[kind](), LoraConfig(r=4, target_modules="all-linear", modules_to_save=["lm_head"]))
    check(model, kind, training=True)
    nudge(model)
    check(model, kind)


def with_dropout(**probabilities):
    model = tiny.bunny()
    for name, probability in probabilities.items():
        setattr(model.config.text_config, name, probability)
    return tiny._build(transformers.LlavaForConditionalGeneration, model.config, 0)


class _Scaled(transformers.LlavaForConditionalGeneration):
    """As Granite and Cohere: logits are scaled behind the head."""

    @functools.wraps(transformers.LlavaForConditionalGeneration.forward)
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits / 2
        return outputs


class _ScaledEmbeddings(transformers.LlavaForConditionalGeneration):
    """As Gemma: embeddings are scaled in front of the text model."""

    def forward(self, input_ids=None, **kwargs):
        embeddings = self.get_input_embeddings()(input_ids) * 1.5
        return super().forward(inputs_embeds=embeddings, input_ids=None, **kwargs)


def scaled_in_peft_s_forward(base=None):
    """An adapter that acts otherwise in the forward of the PEFT model, which both ways of ours pass by."""
    model = get_peft_model(base or tiny.llava(), LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=LANGUAGE))
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]

    def scale(*_):
        for layer in layers:
            layer.scale_layer(2.0)

    def unscale(*_):
        for layer in layers:
            layer.unscale_layer(2.0)

    model.register_forward_pre_hook(scale)
    model.register_forward_hook(unscale)
    return model


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda: with_dropout(resid_pdrop=0.5), "dropout left on"),
        (lambda: with_dropout(embd_pdrop=0.5), "dropout left on"),
        (lambda: _Scaled(tiny.llava().config).eval(), "something that packing does not do"),
        (lambda: tiny._build(_ScaledEmbeddings, tiny.llava().config, 0), "something that packing does not do"),
        (scaled_in_peft_s_forward, "a way that a packed row does not see"),
    ],
    ids=["dropout", "dropout of embeddings", "scaled logits", "scaled embeddings", "scaled adapter"],
)
def test_what_differs_is_refused_with_the_likely_cause(make, cause):
    batch = examples("llava-llama")
    model = make()
    if model.config.vision_config.model_type == "siglip_vision_model":
        batch = examples("bunny")
    if isinstance(model, _ScaledEmbeddings):
        batch = [batch[3]]  # images by their placeholders' embeddings are another matter
    torch.manual_seed(0)
    with pytest.raises(InputError, match="check_start: example") as error:
        check_packed(model, batch, rounding=rounding_of(model), training=True)
    assert cause in str(error.value)


def test_of_a_model_whose_branches_are_read_separately_no_packed_row_is_blamed():
    model = scaled_in_peft_s_forward(build("mistral3"))
    with pytest.raises(InputError, match="branches that are read by themselves do not see") as error:
        check_packed(
            model,
            [PreferenceTokens("text", [20, 21, 22], [30, 31, 1], [33, 1])],
            rounding=rounding_of(model),
            training=True,
        )
    assert "packed row" not in str(error.value)


def test_modes_and_attention_are_left_as_they_were():
    model = tiny.llava().train()
    model.get_decoder().norm.eval()
    sequence_logps(model, pack(examples("llava-llama"), model))
    before = model.config.text_config._attn_implementation
    check(model)
    assert model.training and not model.get_decoder().norm.training
    assert model.config.text_config._attn_implementation == before


def test_policy_and_reference_are_equal_before_the_first_step():
    model = get_peft_model(tiny.llava(), LoraConfig(r=4, target_modules=LANGUAGE))
    packed = pack(examples("llava-llama"), model)
    with torch.no_grad():
        policy = sequence_logps(model, packed)
        reference = establish_reference(model, fresh=True).branch_logps(model, packed)
    assert check_equal_start(packed, policy, reference, 1e-6) == 0
    reference[1, 2] += 0.01
    with pytest.raises(InputError, match="'two-images', rejected"):
        check_equal_start(packed, policy, reference, 1e-4)
    reference[1, 2] = math.nan
    with pytest.raises(InputError, match="'two-images', rejected"):
        check_equal_start(packed, policy, reference, 1e-4)


def test_the_shortest_of_the_first_rows_are_tried_images_first():
    batch = examples("llava-llama")
    lengths = [example.packed_length for example in batch]
    assert [example.id for example in first_examples(lengths, batch.__getitem__)] == [
        "plain-dpo",
        "one-token",
        "text-only",
    ]
    assert [example.id for example in first_examples(lengths[3:4], batch[3:].__getitem__)] == ["text-only"]
    assert first_examples([], batch.__getitem__) == []


@pytest.mark.parametrize(("rope", "limit"), [("dynamic", 12), ("longrope", 10)])
def test_positions_that_change_with_the_length_are_packed_up_to_there(rope, limit):
    config = tiny.llava().config
    parameters = {"rope_type": rope, "factor": 2.0, "rope_theta": 1e4}
    if rope == "longrope":
        parameters |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 10}
    config.text_config.max_position_embeddings = 12
    config.text_config.rope_parameters = parameters
    model = tiny._build(transformers.LlavaForConditionalGeneration, config, 0)
    short, long = examples("llava-llama")[3], examples("llava-llama")[0]
    check_packed(model, [short], rounding=rounding_of(model))
    with pytest.raises(InputError, match=f"outgrows the {limit} from which on the model's rotary positions change"):
        pack([long], model)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoHaConfig(r=4, target_modules=LANGUAGE, rank_dropout=0.5, module_dropout=0.5),
        peft.LoKrConfig(r=4, target_modules=LANGUAGE, rank_dropout=0.5, module_dropout=0.5),
        peft.BOFTConfig(boft_block_size=4, boft_dropout=0.5, target_modules=LANGUAGE),
        LoraConfig(r=4, target_modules=LANGUAGE, lora_dropout=0.5),
    ],
    ids=["loha", "lokr", "boft", "lora"],
)
def test_an_adapters_own_dropout_is_found_and_switched_off(config, tmp_path, monkeypatch):
    # peft tries to compile BOFT's kernel, in a folder whose lock a process that was killed leaves to wait for without
    # end.
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    model = get_peft_model(tiny.llava(), config)
    with pytest.raises(InputError, match="the adapter is random"):
        check(model, training=True)
    assert any("=0.5" in each for each in disable_dropout(model))
    check(model, training=True)
    assert disable_dropout(model) == []


def test_a_fresh_adapter_is_not_blamed_for_the_config():
    model = get_peft_model(_Scaled(tiny.llava().config).eval(), LoraConfig(r=4, target_modules=LANGUAGE))
    with pytest.raises(InputError, match="something that packing does not do"):
        check(model)
