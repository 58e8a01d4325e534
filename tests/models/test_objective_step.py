"""A packed step of every objective equals separate, unpacked Hugging Face forwards: log-probs and every gradient."""

import copy
from dataclasses import replace

import pytest
import torch

from mdpo.errors import InputError
from mdpo.models import branch_logps, encode_images, sequence_logps
from mdpo.objectives import PRESETS
from mdpo.packing import PackedBatch, PreferenceTokens, branch_of, pack, part
from mdpo_kernels import preference_loss
from tests import tiny
from tests.models.packed_examples import FAMILIES, IMAGE, examples, pixels
from tests.models.separate_forwards import assert_same_gradients, plain_token_logps

NAN = float("nan")


def rich(kind: str) -> list[PreferenceTokens]:
    """All that a row can bring; without weights; without a second answer; text alone."""
    ordinary, _, two_images, text, _ = examples(kind)
    generator = torch.Generator().manual_seed(5)
    negatives = [ordinary.rejected_images, *(pixels(kind, generator) for _ in range(2))]
    full = replace(
        ordinary,
        rejected_images=negatives,
        contrast_ids=[70, 71, 1],
        imageless_prompt_ids=[20, 25, 26],
        chosen_weights=[1.0, 5.0, 0.0, 1.0],
        rejected_weights=[2.0, 1.0],
    )
    no_weights = replace(full, id="no-weights", chosen_weights=None, rejected_weights=None)
    return [full, no_weights, two_images, text]


def separate(model, example: PreferenceTokens, name: str) -> torch.Tensor:
    """The log-prob of a branch by itself, its tokens weighted; NaN where the example does not have it."""
    branch = branch_of(name)
    prompt, images = example.prompt_ids, example.images
    if branch.picture == "none":
        prompt, images = example.imageless_prompt_ids, None
        if images is None and example.images is None:
            return torch.tensor(NAN)
        if prompt is None:
            prompt = [token for token in example.prompt_ids if token != IMAGE]
    elif branch.picture != "image":
        number = int(branch.picture.partition("_")[2] or 1) - 1
        given = example.rejected_images
        given = [] if given is None else given if isinstance(given, list) else [given]
        if number >= len(given):
            return torch.tensor(NAN)
        images = given[number]
    response = {"chosen": example.chosen_ids, "rejected": example.rejected_ids, "contrast": example.contrast_ids}[
        branch.response
    ]
    if response is None:
        return torch.tensor(NAN)
    weights = {"chosen": example.chosen_weights, "rejected": example.rejected_weights}.get(branch.response)
    logps = plain_token_logps(model, prompt, images, response)
    return (logps * torch.tensor([1.0] * len(response) if weights is None else weights)).sum()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", FAMILIES)
def test_equals_separate_forwards(kind, preset):
    objective, batch = PRESETS[preset], rich(kind)
    model = FAMILIES[kind]()
    oracle = copy.deepcopy(model)
    packed = pack(batch, model, branches=objective.branches)
    policy = branch_logps(model, packed)
    expected = torch.stack(
        [torch.stack([separate(oracle, example, name) for example in batch]) for name in objective.branches]
    )
    torch.testing.assert_close(policy, expected, atol=2e-5, rtol=0, equal_nan=True)
    assert not policy[:, :2].isnan().any(), "the first rows have every branch"
    for logps in (policy, expected):
        reference = logps.detach() - torch.linspace(-3, 3, logps.numel()).view_as(logps)
        preference_loss(logps, reference, objective.terms, branches=objective.branches, beta=0.3).loss.backward()
    assert_same_gradients(model, oracle)


def test_a_picture_is_laid_out_once_for_all_that_read_it():
    example = rich("llava-llama")[1]
    prompt, chosen, rejected = map(len, (example.prompt_ids, example.chosen_ids, example.rejected_ids))
    contrast, imageless = len(example.contrast_ids), len(example.imageless_prompt_ids)
    lengths = {
        "dpo": prompt + chosen + rejected,
        "symmpo": 2 * prompt + 2 * chosen + rejected + 2 * contrast,
        "svco": 2 * prompt + imageless + 3 * chosen + 3 * contrast,
        "misp": 4 * prompt + 4 * chosen + rejected,
        "c2dpo": 2 * prompt + 2 * chosen + 2 * rejected,
    }
    for name, length in lengths.items():
        assert pack([example], tiny.llava(), branches=PRESETS[name].branches).num_tokens == length, name


def test_without_a_prompt_of_its_own_the_picture_s_placeholders_are_left_out():
    example = replace(rich("llava-llama")[1], imageless_prompt_ids=None)
    packed = pack([example], tiny.llava(), branches=["chosen@none"])
    assert packed.input_ids[0].tolist() == [20, 21, 22, 23, 24, *example.chosen_ids]
    assert not packed.images and packed.image_index == ()


def test_branches_may_have_their_long_names_and_any_order():
    model, batch = tiny.llava(), rich("llava-llama")
    usual = branch_logps(model, pack(batch, model))
    names = ["chosen@negative", "rejected@image", "chosen@image"]
    packed = pack(batch, model, branches=names)
    assert packed.branches == ("image_rejected", "rejected", "chosen")
    torch.testing.assert_close(branch_logps(model, packed), usual.flip(0), equal_nan=True, atol=2e-6, rtol=0)
    with pytest.raises(InputError, match="branch_logps"):
        sequence_logps(model, packed)


def test_mdpo_s_row_and_log_probs_are_those_of_three_branches_to_the_last_bit():
    model, batch = tiny.llava(), examples("llava-llama")
    packed = pack(batch, model)
    assert torch.equal(
        sequence_logps(model, packed).nan_to_num(),
        branch_logps(model, pack(batch, model, branches=PRESETS["mdpo"].branches)).nan_to_num(),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contrast_ids": []}, "contrast response is empty"),
        ({"contrast_ids": [IMAGE, 1]}, "contrast response contains the image placeholder"),
        ({"chosen_weights": [1.0]}, "1 chosen_weights for 4 tokens"),
        ({"imageless_prompt_ids": []}, "the prompt is empty"),
        ({"imageless_prompt_ids": [20, IMAGE]}, "make 0 image tokens, but the prompt has 1"),
        (
            {"rejected_images": [pixels("llava-llama", torch.Generator()), {}]},
            r"rejected_images\[1\] lack pixel_values",
        ),
    ],
)
def test_what_cannot_be_packed_is_named(changes, message):
    example = replace(rich("llava-llama")[0], **changes)
    with pytest.raises(InputError, match=f"'ordinary': .*{message}|{message}"):
        pack([example], tiny.llava(), branches=["chosen", "contrast@negative", "chosen@none", "chosen@negative_2"])


def test_an_unknown_branch_is_named_with_the_nearest():
    with pytest.raises(InputError, match="'chosen@negativ' is unknown; did you mean chosen@negative"):
        pack(rich("llava-llama"), tiny.llava(), branches=["chosen@negativ"])


def sequences(packed: PackedBatch) -> list[int]:
    return [at for at, digest in enumerate(packed.digests) if digest]


@pytest.mark.parametrize(
    "kind",
    [
        "llava-llama",
        "qwen2_vl",
        "qwen3_vl",
        "qwen3_5",
        "idefics3",
        "llava_next",
        "llava_onevision",
        "gemma4",
        "internvl",
    ],
)
@pytest.mark.parametrize("shared", [True, False], ids=["features", "no features"])
def test_a_part_of_a_row_says_what_the_row_says(kind, shared):
    model, batch = FAMILIES[kind](), rich(kind)
    packed = pack(batch, model, branches=PRESETS["svco"].branches)
    with torch.no_grad():
        whole, features = branch_logps(model, packed), encode_images(model, packed)
        for wanted in (sequences(packed)[:1], sequences(packed)[3:5], sequences(packed)[-2:], sequences(packed)[::3]):
            some = part(packed, wanted)
            assert some.packed.num_tokens < packed.num_tokens
            found = branch_logps(model, some.packed, image_features=features.of(some.image_tokens) if shared else None)
            there = ~found.isnan()
            assert there.flatten()[wanted].all()
            torch.testing.assert_close(found[there], whole[there], atol=2e-5, rtol=0)
            kept = [digest for digest in some.packed.digests if digest]
            assert len(kept) == there.sum() and set(kept) <= set(packed.digests)
    every = part(packed, sequences(packed))
    assert every.packed is packed and every.image_tokens is None
