"""mDPO's packed step equals separate, unpacked Hugging Face forwards: log-probs and every gradient."""

import copy
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mdpo.errors import InputError
from mdpo.models import sequence_logps
from mdpo.models.attention import NAME
from mdpo.packing import PreferenceTokens, pack
from mdpo_kernels import mdpo_loss
from tests import tiny
from tests.models.adapters import with_lora
from tests.models.packed_examples import FAMILIES, IMAGE, examples
from tests.models.separate_forwards import (
    assert_same_step,
    expected_logps,
    gradients,
)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_equals_separate_forwards(kind, lora, checkpointing):
    model = FAMILIES[kind]()
    oracle = copy.deepcopy(model)
    if lora:
        model, oracle = with_lora(model), with_lora(oracle)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()  # checkpointing is for training mode alone; the tiny models have no dropout
    batch = examples(kind)
    assert_same_step(model, oracle, batch, pack(batch, model))


def test_loss_and_gradients_do_not_depend_on_the_packing():
    batch = examples("llava-llama")
    together, apart = tiny.llava(), tiny.llava()
    mdpo_loss(sequence_logps(together, pack(batch, together)), torch.zeros(3, 5)).loss.backward()
    for micro_batch in ([batch[3], batch[0]], [batch[4]], [batch[2], batch[1]]):
        policy = sequence_logps(apart, pack(micro_batch, apart))
        mdpo_loss(policy, torch.zeros(3, len(micro_batch)), num_examples=5).loss.backward()
    theirs = gradients(apart)
    for name, gradient in gradients(together).items():
        torch.testing.assert_close(gradient, theirs[name], atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("before", ["eager", "sdpa", NAME])
def test_works_after_anything_was_set(before):
    batch = examples("llava-llama")
    model, oracle = tiny.llava(), tiny.llava()
    model.set_attn_implementation(before)
    model.config.use_cache = True
    model.config.return_dict = False
    model.config.output_hidden_states = True
    assert_same_step(model, oracle, batch, pack(batch, model))


@pytest.mark.parametrize("kind", ["llava-llama", "llava-mistral-window", "qwen3_5", "gemma4"])
def test_generation_still_works_after_a_packed_pass(kind):
    batch = examples(kind)[:1]
    model, oracle = FAMILIES[kind](), FAMILIES[kind]()
    sequence_logps(model, pack(batch, model))
    ids = torch.tensor([batch[0].prompt_ids])
    inputs = {"input_ids": ids, **batch[0].images}
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    options = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **options), oracle.generate(**inputs, **options))


def test_lora_on_the_head_is_part_of_the_logps():
    batch = examples("llava-llama")

    def build():
        torch.manual_seed(3)
        peft = get_peft_model(tiny.llava(), LoraConfig(r=2, target_modules=r"lm_head|.*language_model.*q_proj"))
        with torch.no_grad():
            for name, parameter in peft.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        return peft

    model, oracle = build(), build()
    assert_same_step(model, oracle, batch, pack(batch, model))
    with model.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(
            sequence_logps(model, pack(batch, model)),
            expected_logps(tiny.llava(), batch),
            atol=2e-5,
            rtol=0,
            equal_nan=True,
        )


def test_each_distinct_image_is_encoded_once():
    batch = examples("llava-llama")
    packed = pack(batch, tiny.llava())
    # first, crop, second, third, second_crop; the last row brings nothing new
    assert packed.images["pixel_values"].shape[0] == 5
    assert packed.image_index == (0, 1, 2, 3, 2, 3, 4, 0, 1)


def test_layout_shares_the_prefix():
    example = examples("llava-llama")[0]
    packed = pack([example], tiny.llava())
    prefix, chosen, rejected = map(len, (example.prompt_ids, example.chosen_ids, example.rejected_ids))
    assert packed.num_tokens == example.packed_length == 2 * prefix + 2 * chosen + rejected
    assert packed.input_ids[0].tolist() == [
        *example.prompt_ids,
        *example.chosen_ids,
        *example.rejected_ids,
        *example.prompt_ids,
        *example.chosen_ids,
    ]
    assert packed.position_ids[0, prefix + chosen].item() == prefix  # y_l continues the prefix, not y_w
    assert packed.cu_seqlens.tolist() == [0, chosen, chosen + rejected, 2 * chosen + rejected]
    assert packed.targets.tolist() == [*example.chosen_ids, *example.rejected_ids, *example.chosen_ids]


def bad(**changes) -> PreferenceTokens:
    good = examples("llava-llama")[0]
    fields = {name: getattr(good, name) for name in good.__slots__}
    return PreferenceTokens(**{**fields, "id": "the-bad-one", **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chosen_ids": []}, "chosen response is empty"),
        ({"rejected_ids": []}, "rejected response is empty"),
        ({"prompt_ids": []}, "prompt is empty"),
        ({"prompt_ids": [20, IMAGE, 21]}, "images make 16 image tokens, but the prompt has 1"),
        ({"images": None}, "images make 0 image tokens"),
        ({"rejected_images": {"pixel_values": torch.zeros(1, 3, 64, 64)}}, "rejected_images make 64"),
        ({"chosen_ids": [IMAGE, 1]}, "contains the image placeholder"),
    ],
)
def test_bad_examples_are_named(changes, message):
    with pytest.raises(InputError, match="the-bad-one") as error:
        pack([bad(**changes)], tiny.llava())
    assert message in str(error.value)


def test_the_chosen_backend_is_said_once(caplog):
    from mdpo_kernels import attention

    attention.choose_backend.cache_clear()
    batch, model = examples("llava-llama"), tiny.llava()
    with caplog.at_level(logging.INFO, "mdpo_kernels"):
        for _ in range(2):
            sequence_logps(model, pack(batch, model))
    assert sum("packed attention" in record.message for record in caplog.records) == 1
