"""The cached reference: found again when nothing changed, never when anything did."""

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mdpo.models import PackedPolicy, ReferenceCache, fingerprint
from mdpo.packing import pack
from tests import tiny
from tests.models.packed_examples import examples


@pytest.fixture
def computed():
    model = tiny.llava()
    packed = pack(examples("llava-llama"), model)
    return model, packed, PackedPolicy(model).eval()(packed).reference


def keep(cache, packed, reference):
    cache.keep(cache.new_records(packed, reference))


def assert_found(cache, packed, reference):
    logps, missing = cache.find(packed)
    assert not missing
    torch.testing.assert_close(logps, reference, atol=0, rtol=0, equal_nan=True)


def test_found_again_exactly(computed, tmp_path):
    model, packed, reference = computed
    cache = ReferenceCache(tmp_path, fingerprint(model))
    present = packed.present.flatten().nonzero().flatten().tolist()
    assert cache.find(packed).logps.isnan().all() and list(cache.find(packed).missing) == present
    keep(cache, packed, reference)
    for again in (cache, ReferenceCache(tmp_path, fingerprint(model))):
        assert_found(again, packed, reference)
    assert (cache.found, cache.computed) == (len(present), len(present))


def test_found_in_another_packing(computed, tmp_path):
    model, packed, reference = computed
    cache = ReferenceCache(tmp_path, fingerprint(model))
    keep(cache, packed, reference)
    batch = examples("llava-llama")
    assert_found(cache, pack([batch[2], batch[0]], model), reference[:, [2, 0]])


def test_another_objective_finds_the_branches_that_it_has(computed, tmp_path):
    model, packed, reference = computed
    batch = examples("llava-llama")
    cache = ReferenceCache(tmp_path, fingerprint(model))
    two = pack(batch, model, branches=("chosen", "rejected"))
    keep(cache, two, reference[:2])
    found = cache.find(packed)
    torch.testing.assert_close(found.logps[:2], reference[:2], atol=0, rtol=0)
    third = [2 * len(batch) + at for at, example in enumerate(batch) if example.rejected_images is not None]
    assert found.logps[2].isnan().all() and list(found.missing) == third
    policy = PackedPolicy(model).eval()
    completed = policy(packed, found.logps, None, found.missing)
    torch.testing.assert_close(completed.reference, reference, equal_nan=True)
    torch.testing.assert_close(completed.loss.loss, policy(packed).loss.loss)
    assert {record.branch for record in cache.new_records(packed, completed.reference)} == {"image_rejected"}


def changed_examples():
    first = examples("llava-llama")[0]
    crop, image = first.rejected_images["pixel_values"], first.images["pixel_values"]
    fields = {name: getattr(first, name) for name in first.__slots__}
    yield "prompt", [0, 1, 2], {**fields, "prompt_ids": [25, *first.prompt_ids[1:]]}
    yield "chosen", [0, 2], {**fields, "chosen_ids": first.chosen_ids[1:]}
    yield "rejected", [1], {**fields, "rejected_ids": [34, 1]}
    yield "image", [0, 1], {**fields, "images": {"pixel_values": image + 1e-6}}
    yield "negative", [2], {**fields, "rejected_images": {"pixel_values": crop.flip(-1)}}
    yield "no negative", [], {**fields, "rejected_images": None}
    yield "dtype of the pixels", [0, 1], {**fields, "images": {"pixel_values": image.half()}}
    yield "weights", [1], {**fields, "rejected_weights": [2.0] * len(first.rejected_ids)}


@pytest.mark.parametrize(
    ("what", "missing", "fields"), list(changed_examples()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_branch_is_not_found_where_what_it_reads_has_changed(computed, tmp_path, what, missing, fields):
    model, packed, reference = computed
    cache = ReferenceCache(tmp_path, fingerprint(model))
    keep(cache, packed, reference)
    example = type(examples("llava-llama")[0])(**fields)
    assert list(cache.find(pack([example], model)).missing) == missing


def test_another_model_or_dtype_is_not_used_and_said(computed, tmp_path, caplog):
    model, packed, reference = computed
    prints = {fingerprint(model), fingerprint(model, torch.bfloat16), fingerprint(tiny.llava(seed=1))}
    prints.add(fingerprint(tiny.llava().bfloat16()))
    assert len(prints) == 4
    keep(ReferenceCache(tmp_path, fingerprint(model)), packed, reference)
    assert ReferenceCache(tmp_path, fingerprint(tiny.llava(seed=1))).find(packed).logps.isnan().all()
    assert "another model" in caplog.text


class Scales(NamedTuple):
    """As bitsandbytes' QuantState hands over what belongs to a weight in 4 bits."""

    absmax: torch.Tensor

    def as_dict(self, packed: bool = False) -> dict[str, torch.Tensor]:
        assert packed, "otherwise not all of it is tensors"
        return {"absmax": self.absmax}


def test_a_model_in_4_bits_is_known_by_its_scales_too():
    prints = set()
    for scale in (None, 1.0, 2.0):
        model = tiny.llava()
        if scale is not None:
            model.lm_head.weight.quant_state = Scales(torch.tensor([scale]))
        prints.add(fingerprint(model))
    assert len(prints) == 3


def test_adapters_have_no_part_in_the_fingerprint():
    targets = r"lm_head|.*language_model.*q_proj"
    adapted = get_peft_model(tiny.llava(), LoraConfig(r=2, target_modules=targets))
    saved = get_peft_model(tiny.llava(), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert fingerprint(tiny.llava()) == fingerprint(adapted) == fingerprint(saved)


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_file_loses_its_last_record_alone(computed, tmp_path, cut):
    model, packed, reference = computed
    cache = ReferenceCache(tmp_path, fingerprint(model))
    keep(cache, packed, reference)
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-cut])
    torn = ReferenceCache(tmp_path, fingerprint(model))
    assert len(torn) == len({*packed.digests} - {""}) - 1
    keep(torn, packed, reference)
    assert_found(ReferenceCache(tmp_path, fingerprint(model)), packed, reference)


def test_digests_do_not_depend_on_the_batch(computed):
    model, packed, _ = computed
    for index, example in enumerate(examples("llava-llama")):
        assert pack([replace(example)], model).digests == packed.digests[index :: len(packed.ids)]


@pytest.mark.parametrize("logp", ["NaN", "Infinity", "1e999", "1" + "0" * 400, "[" * 100_000])
def test_a_record_that_is_no_log_prob_is_computed_again(computed, tmp_path, logp):
    model, packed, reference = computed
    path = tmp_path / f"{fingerprint(model)}.jsonl"
    path.write_text(f'{{"digest": "{packed.digests[0]}", "logp": {logp}}}\n')
    cache = ReferenceCache(tmp_path, fingerprint(model))
    assert 0 in cache.find(packed).missing
    keep(cache, packed, reference)
    assert_found(ReferenceCache(tmp_path, fingerprint(model)), packed, reference)


def test_a_log_prob_that_is_not_finite_is_not_kept(computed, tmp_path):
    model, packed, reference = computed
    reference = reference.clone()
    reference[0, 1] = torch.nan
    keep(ReferenceCache(tmp_path, fingerprint(model)), packed, reference)
    assert ReferenceCache(tmp_path, fingerprint(model)).find(packed).missing == (1,)
