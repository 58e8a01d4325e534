"""Branches read one by one equal plain forwards of the model, one sequence at a time: log-probs and every gradient."""

import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
import transformers
from packaging.version import Version
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import Tensor, nn

from mdpo.errors import InputError
from mdpo.models import LANGUAGE_LINEAR, PackedPolicy, language_layers, sequence_logps
from mdpo.models.head import Logits
from mdpo.models.lora_targets import adapted, stacked_experts
from mdpo.models.separate import _ramp, behind_head
from mdpo.packing import PreferenceTokens, Separate, SeparateBatch, family_of, pack, part
from mdpo_kernels import mdpo_loss
from tests import tiny
from tests.models.separate_models import IMAGE, MODELS, build

# Those that this transformers can build of the same config: the oldest lacks two, and reads some configs otherwise.
_NEW = {"aria", "granite4_vision", "hyperclovax_vision_v2", "mistral_large4", "vipllava", "video_llava"}
_IS_OLD = Version(transformers.__version__) < Version("5.20")
_PACKED = {"gemma4", "glm4v", "llava_onevision", "qwen3_5", "qwen3_5_moe"}
KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(_IS_OLD and kind in _NEW, reason="of a later one"))
    for kind in MODELS
    if kind not in _PACKED
]

# Where a model's processor returns token types, what it says of (prompt, image, response); others say it of images
# alone.
_TYPES = {"paligemma": (0, 0, 1)}


def examples(kind: str) -> list[PreferenceTokens]:
    """Two images of different sizes with a crop each or none, text alone, and two images in one prompt."""
    generator = torch.Generator().manual_seed(1)
    tall, crop, wide = (MODELS[kind].images(generator, *size) for size in ((4, 2), (4, 2), (2, 4)))
    of_tall, of_wide = ([5, *[IMAGE] * count, 6] for count in MODELS[kind].tokens)
    return [
        PreferenceTokens("tall", [20, *of_tall, 21, 22], [30, 31, 32, 1], [33, 1], tall, crop),
        PreferenceTokens("text", [20, 21, 22], [40, 1], [41, 42, 43, 44, 1]),
        PreferenceTokens("wide", [20, 21, 22] * 6 + of_wide, [50, 1], [51, 52, 1], wide),
    ]


def plain_logp(
    model: nn.Module, kind: str, prompt: Sequence[int], response: Sequence[int], images: Mapping[str, Tensor]
) -> Tensor:
    """No padding, no kernel, no code shared with what is tested."""
    ids = torch.tensor([[*prompt, *response]])
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    parameters = inspect.signature(base.forward).parameters
    inputs = {"input_ids": ids, **images}
    text, image, answer = _TYPES.get(kind, (0, 1, 0))
    types = torch.where(ids == IMAGE, image, text)
    types[:, len(prompt) :] = answer
    inputs |= {name: types for name in ("mm_token_type_ids", "token_type_ids") if name in parameters}
    logits = model(**inputs, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum()


def plain_logps(model: nn.Module, kind: str, batch: list[PreferenceTokens]) -> Tensor:
    rows = []
    for images, response in (("images", "chosen_ids"), ("images", "rejected_ids"), ("rejected_images", "chosen_ids")):
        for example in batch:
            pictures = getattr(example, images)
            there = images == "images" or pictures is not None
            ids = (example.prompt_ids, getattr(example, response))
            rows.append(plain_logp(model, kind, *ids, pictures or {}) if there else torch.tensor(torch.nan))
    return torch.stack(rows).view(3, -1)


def weighted(logps: Tensor) -> Tensor:
    """One number of them all, to which each counts differently."""
    return (logps.nan_to_num() * torch.linspace(-1, 2, logps.numel()).view_as(logps)).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_equals_plain_forwards(kind):
    model = build(kind)
    assert isinstance(family_of(model), Separate)
    oracle, batch = copy.deepcopy(model), examples(kind)
    ours, expected = sequence_logps(model, pack(batch, model)), plain_logps(oracle, kind, batch)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0, equal_nan=True)
    assert abs((ours[0, 0] - ours[2, 0]).item()) > 1e-4  # the picture is looked at
    weighted(ours).backward()
    weighted(expected).backward()
    theirs = {name: p.grad for name, p in oracle.named_parameters() if p.grad is not None}
    largest = max(gradient.norm() for gradient in theirs.values())
    for name, parameter in model.named_parameters():
        if name in theirs and theirs[name].norm() > 1e-6 * largest:
            error = (parameter.grad - theirs[name]).norm() / theirs[name].norm().clamp_min(1e-3 * largest)
            assert error <= 1e-4, f"{name}: {error:.1e}"


# Linear layers that choose experts or tokens; an adapter on them would move a choice, not a number.
_CHOOSERS = {"router", "shared_expert_gate", "weights_proj", "wk", "wq_b"}


@pytest.mark.parametrize("kind", KINDS)
def test_lora_reaches_every_linear_layer_of_the_language_model_alone(kind):
    model = build(kind)
    inside = set(language_layers(model).modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] not in _CHOOSERS:
            assert (module in inside) == bool(re.fullmatch(LANGUAGE_LINEAR, name)), name


@pytest.mark.parametrize("kind", ["gemma3", "glm46v", "glm4v_moe", "idefics2", "lfm2_vl", "llama4"])
def test_a_checkpointed_step_with_an_adapter_equals_plain_forwards(kind):
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=LANGUAGE_LINEAR + "|lm_head", init_lora_weights=False)
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(get_peft_model(build(kind), lora))
    model, oracle = models
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    batch = examples(kind)
    policy = PackedPolicy(model, beta=0.1)
    output = policy(pack(batch, model))
    with torch.no_grad(), oracle.disable_adapter():
        reference = plain_logps(oracle, kind, batch)
    theirs = mdpo_loss(plain_logps(oracle, kind, batch), reference, beta=0.1)
    torch.testing.assert_close(output.reference, reference, atol=2e-5, rtol=0, equal_nan=True)
    torch.testing.assert_close(output.loss.loss, theirs.loss, atol=2e-5, rtol=0)
    output.loss.loss.backward()
    theirs.loss.backward()
    expected = {name: p.grad for name, p in oracle.named_parameters() if p.grad is not None}
    assert expected
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-3)


def test_experts_in_a_stack_are_said():
    assert stacked_experts(tiny.qwen3_vl_moe()) == "down_proj, gate_up_proj"
    assert stacked_experts(build("gemma3")) is None


@pytest.mark.parametrize(("model", "said"), [(tiny.qwen3_vl_moe, True), (partial(build, "glm4v_moe"), False)])
def test_experts_are_said_to_be_left_out_where_they_are(model, said, caplog):
    """Of GLM-4V's mixture, peft adapts the stacks where the layers of old are named."""
    wrapped = adapted(model(), LoraConfig(r=2, target_modules=LANGUAGE_LINEAR), fused=True)
    trains = any(".experts." in name and parameter.requires_grad for name, parameter in wrapped.named_parameters())
    assert ("LoRA leaves out" in caplog.text) is said is not trains


def test_a_packed_row_of_another_model_is_refused():
    model = build("gemma3")
    row = pack([PreferenceTokens("text", [20, 21, 22], [40, 1], [41, 1])], tiny.llava())
    with pytest.raises(InputError, match="a packed row, which this model does not take"):
        sequence_logps(model, row)


def test_nothing_stays_on_the_head_of_the_user_s_model():
    model = build("gemma3")
    head, batch = model.get_output_embeddings(), pack(examples("gemma3"), model)
    sequence_logps(model, batch).nansum().backward()
    with pytest.raises(IndexError):
        sequence_logps(model, replace(batch, input_ids=batch.input_ids + 10_000))
    assert not head._forward_hooks and not head._forward_pre_hooks


def test_the_sweep_is_wide():
    assert len(MODELS) >= 25


def test_layout():
    model = build("gemma3")
    batch = pack(examples("gemma3"), model)
    assert isinstance(batch, SeparateBatch)
    lengths = [row.length for row in batch.rows]
    assert [row.sequence for row in batch.rows] == [0, 1, 2, 3, 4, 5, 6]  # one branch of three examples is the seventh
    assert batch.input_ids.shape == (7, max(lengths))
    assert batch.attention_mask.sum(1).tolist() == lengths
    assert batch.num_tokens == sum(lengths)
    assert batch.present.tolist() == [[True] * 3, [True] * 3, [True, False, False]]
    assert batch.targets[:4].tolist() == [30, 31, 32, 1]


@pytest.mark.parametrize("kind", ["gemma3", "glm46v", "mistral3", "idefics2"])
def test_a_part_says_what_the_whole_says(kind):
    model, batch = build(kind), examples(kind)
    whole = pack(batch, model)
    with torch.no_grad():
        expected = sequence_logps(model, whole)
        for wanted in ({0}, {1, 4}, {2, 6}, set(range(7))):
            some = part(whole, wanted).packed
            found = sequence_logps(model, some).flatten()
            assert {at for at, digest in enumerate(some.digests) if digest} == wanted
            for at, logp in enumerate(found):
                assert (
                    at in wanted
                    and abs(float(logp - expected.flatten()[at])) < 2e-5
                    or at not in wanted
                    and logp.isnan()
                )


def test_token_weights_count():
    model, (tall, *_) = build("gemma3"), examples("gemma3")
    fields = {name: getattr(tall, name) for name in tall.__slots__}
    first = PreferenceTokens(**{**fields, "chosen_weights": [1.0, 0.0, 0.0, 0.0]})
    whole, alone = (pack([example], model) for example in (first, PreferenceTokens(**{**fields, "chosen_ids": [30]})))
    with torch.no_grad():
        both = sequence_logps(model, whole), sequence_logps(model, alone)
    torch.testing.assert_close(both[0][[0, 2]], both[1][[0, 2]], atol=2e-5, rtol=0)
    assert len(set(whole.digests) & set(alone.digests)) == 1  # the rejected branch


def _bad(kind: str, **changes) -> list[PreferenceTokens]:
    good = examples(kind)[0]
    return [
        PreferenceTokens(**{**{name: getattr(good, name) for name in good.__slots__}, "id": "the-bad-one", **changes})
    ]


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gemma3", {"chosen_ids": []}, "chosen response is empty"),
        ("gemma3", {"images": None}, "images are missing"),
        ("gemma3", {"prompt_ids": [20, 21]}, "has 0 placeholders and images are there"),
        (
            "gemma3",
            {"rejected_images": {"pixel_values": torch.zeros(1, 3, 32, 32)}},
            "pixel_values of rejected_images differs",
        ),
        (
            "glm46v",
            {"rejected_images": MODELS["glm46v"].images(torch.Generator(), 2, 4)},
            "image_grid_thw of rejected_images differs",
        ),
    ],
)
def test_bad_examples_are_named(kind, changes, message):
    with pytest.raises(InputError, match="the-bad-one") as error:
        pack(_bad(kind, **changes), build(kind))
    assert message in str(error.value)


def test_pixels_that_the_model_does_not_read_are_refused():
    model = build("gemma3")
    renamed = {"patches": torch.zeros(2, 3, 32, 32)}
    with pytest.raises(InputError, match="returns patches, which the forward of a 'gemma3' model does not take"):
        sequence_logps(model, pack(_bad("gemma3", images=renamed, rejected_images=None), model))


def test_images_of_sizes_that_nothing_tells_are_not_filled_up():
    model = build("deepseek_vl")
    wide = {"pixel_values": torch.zeros(1, 3, 32, 64)}
    large = _bad("deepseek_vl", images=wide, rejected_images=None)
    with pytest.raises(InputError, match="nothing says which of them is how large"):
        pack([examples("deepseek_vl")[0], *large], model)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda z: z, Logits(1.0, None, 150)),
        (lambda z: z / 16, Logits(1 / 16, None, 150)),
        (lambda z: 0.0625 * z[:140], Logits(0.0625, None, 140)),
        (lambda z: 30 * torch.tanh(z / 30), Logits(1.0, 30.0, 150)),
        (lambda z: 20 * torch.tanh(0.25 * z / 20), Logits(0.25, 20.0, 150)),
    ],
)
def test_what_a_model_does_behind_its_head_is_seen(change, expected):
    ramp = _ramp(150, torch.device("cpu"))
    found = behind_head(ramp, change(ramp)[None, None], "kind")
    assert found.columns == expected.columns
    assert found.scale == pytest.approx(expected.scale, rel=1e-6)
    assert (found.softcap or 0.0) == pytest.approx(expected.softcap or 0.0, rel=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z + 1,
        lambda z: -z,
        lambda z: z.sigmoid(),
        lambda z: z.flip(0),
        lambda z: z.abs(),
        lambda z: z[1:],
        lambda z: z * 0,
    ],
)
def test_anything_else_is_refused(change):
    ramp = _ramp(150, torch.device("cpu"))
    with pytest.raises(InputError, match="something else than scale, cap or cut"):
        behind_head(ramp, change(ramp), "kind")


def _mixed_logps(model: nn.Module, kind: str, batch: list[PreferenceTokens], autocast: bool) -> tuple[Tensor, Tensor]:
    """Ours and the plain forward's."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return sequence_logps(model, pack(batch, model)), plain_logps(model, kind, batch)


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "weights"])
@pytest.mark.parametrize("kind", ["gemma3", "lfm2_vl", "glm4v_moe"])
def test_bfloat16_is_within_its_rounding_of_the_plain_forward(kind, autocast):
    """The plain forward in the same numbers is as far from float32 as ours may be, twice."""
    exact = build(kind)
    batch = examples(kind)
    with torch.no_grad():
        truth = plain_logps(exact, kind, batch)
    model = copy.deepcopy(exact) if autocast else copy.deepcopy(exact).to(torch.bfloat16)
    ours, plain = _mixed_logps(model, kind, batch, autocast)
    assert ours.dtype == torch.float32
    error, its_own = ((found.float() - truth).abs().nan_to_num().max() for found in (ours, plain))
    assert 0 < error <= 2 * its_own + 0.01
    assert (ours - plain.float()).abs().nan_to_num().max() <= 3 * its_own + 0.01


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "branches with images do not go through"),
        (
            LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", alora_invocation_tokens=[3, 4]),
            "own forward",
        ),
    ],
    ids=["prompt tuning", "aLoRA"],
)
def test_adapters_outside_the_layers_are_refused_with_the_reason_of_this_way(config, reason):
    model = build("mistral3")
    batch = pack(examples("mistral3"), model)
    with pytest.raises(InputError, match=reason) as error:
        sequence_logps(get_peft_model(model, config), batch)
    assert "packed row" not in str(error.value)
