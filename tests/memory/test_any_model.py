"""A plan for models that the equation does not know: read separately, packed mixtures, and those that cannot be
counted.
"""

import functools

import pytest
from peft import LoraConfig, get_peft_model

from mdpo.cli import main
from mdpo.config import build_config
from mdpo.data import PictureSize, size_pictures
from mdpo.errors import InputError
from mdpo.memory import Adaptation, Memory, Plan, choose, log_normal, read_shape
from mdpo.memory.automatic import automatic
from mdpo.memory.choose import Constraints
from mdpo.memory.constraints import counted, examples_of
from mdpo.memory.counted import Bytes, CountedLayers, Unplanned
from mdpo.memory.layer import layer_bytes
from mdpo.memory.lengths import Data
from mdpo.memory.pictures import largest_picture, picture_of
from mdpo.memory.precision import Precision
from mdpo.memory.size import GIB
from mdpo.models import LANGUAGE_LINEAR
from mdpo.packing import plan as plan_steps
from tests import tiny
from tests.models.separate_models import build
from tests.models.separate_processors import PROCESSORS

pytestmark = pytest.mark.slow

MIXED = Precision(weight_bytes=2, autocast=True)


def folder_of(kind: str, tmp_path):
    model = tiny.qwen3_vl_moe() if kind == "qwen3_vl_moe" else build(kind)
    model.config.save_pretrained(tmp_path / kind)
    return tmp_path / kind


def settings(folder, **more):
    return {
        "model_name_or_path": str(folder),
        "train_data": "nowhere.json",
        "output_dir": "out",
        "use_cpu": True,
        "lora_r": 4,
        "plan_prompt_tokens": 100,
        "plan_response_tokens_median": 20,
        "plan_response_tokens_max": 60,
        **more,
    }


def plan(kind: str, tmp_path, *words: str) -> int:
    path = tmp_path / "c.yaml"
    path.write_text("".join(f"{name}: {value}\n" for name, value in settings(folder_of(kind, tmp_path)).items()))
    return main(["plan", str(path), "--memory", "2GiB", *words])


@pytest.mark.parametrize(
    ("kind", "tokens"), [("gemma3", "padded"), ("glm4v_moe", "padded"), ("glm4v", "packed"), ("qwen3_vl_moe", "packed")]
)
def test_mdpo_plan(kind, tokens, tmp_path, capsys):
    assert plan(kind, tmp_path) == 0
    text = capsys.readouterr().out
    longest = {"padded": 3 * 160, "packed": 2 * 160 + 60}[tokens]
    assert f"the longest of {longest} {tokens} tokens" in text and "plan: --load_in_4bit false" in text


def test_layers_that_do_not_run_without_numbers_are_refused_in_one_line():
    config = build("glm4v_moe").config
    config._experts_implementation = "eager"  # which looks who chose whom
    layers = CountedLayers(config, rank=2, pattern=LANGUAGE_LINEAR, masked=True)
    with pytest.raises(
        InputError, match="of a 'glm4v_moe' model cannot be planned.*set token_budget and gradient_checkp"
    ) as error:
        layers.by(MIXED)
    assert "\n" not in str(error.value)


def test_the_config_that_a_model_is_counted_by_stays_as_it_is():
    model = build("gemma3")
    before = model.config.to_dict(), model.config.get_text_config()._attn_implementation
    layer_bytes(read_shape(model.config, Adaptation(rank=2, pattern=LANGUAGE_LINEAR)), MIXED)
    assert (model.config.to_dict(), model.config.get_text_config()._attn_implementation) == before


def test_a_mask_grows_with_the_square_of_a_sequence():
    """One number in bfloat16 a pair of tokens: of every layer for itself, and a byte that all of them read."""
    found = layer_bytes(read_shape(build("mistral3").config, Adaptation(rank=2, pattern=LANGUAGE_LINEAR)), MIXED)
    assert [round(layer.kept.per_square, 3) for layer in found.layers] == [2, 2]
    assert round(found.shared.per_square, 3) == 1
    assert Bytes(1, 2, 3, 4).of(tokens=10, longest=5) == 1 + 20 + 15 + 200


def test_what_trains_is_what_peft_adapts():
    """The experts of some mixtures too, whose weights are a stack."""
    model = build("glm4v_moe")
    shape = read_shape(model.config, Adaptation(rank=4, pattern=LANGUAGE_LINEAR))
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=LANGUAGE_LINEAR))
    assert shape.trained == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert any("experts" in name for name, p in adapted.named_parameters() if p.requires_grad)


def test_full_fine_tuning_is_counted_too():
    lora, full = (
        layer_bytes(read_shape(build("mistral3").config, Adaptation(rank=rank, pattern=LANGUAGE_LINEAR)), MIXED).layers[
            1
        ]
        for rank in (4, 0)
    )
    assert full.kept.per_token > lora.kept.per_token, "every linear layer's input, and what norms normalise"


def test_micro_batches_are_planned_as_they_are_filled_up():
    examples = log_normal(
        prompt_tokens=100, response_tokens_median=20, response_tokens_max=60, image_tokens=4, separate=True
    )
    assert (examples.branches, examples.longest, examples.longest_sequence, examples.images) == (3, 480, 160, 3)
    shape = read_shape(build("mistral3").config, Adaptation(rank=4, pattern=LANGUAGE_LINEAR))
    constraints = Constraints(
        precision=MIXED,
        quantized=(False,),
        optimizers=("adamw_torch",),
        token_budget=1000,
        examples_per_step=8,
        fixed_budget=True,
    )
    found = choose(shape, examples, constraints, 2 * GIB)
    assert isinstance(found, Plan)
    steps = plan_steps(examples.packed[:128], 1000, examples_per_step=8, padded=True)
    assert found.micro_batches_per_step == pytest.approx(sum(map(len, steps)) / len(steps))


def test_a_run_says_why_its_layers_are_eager(tmp_path):
    run, args = build_config(settings(folder_of("gemma3", tmp_path), compile_layers=True), source="run.yaml")
    read = functools.partial(examples_of, run, args)
    found = automatic(run, args, read, Memory(2 * GIB), LANGUAGE_LINEAR)
    assert "layers eager (the model reads its branches separately)" in found.line
    assert found.plan is not None and not found.plan.compiled and "compile_layers" not in found.settings


def test_a_run_of_a_model_that_cannot_be_counted_goes_on_without_a_plan(tmp_path, monkeypatch):
    run, args = build_config(settings(folder_of("glm4v_moe", tmp_path)), source="run.yaml")

    def by(layers, precision):
        raise Unplanned("model_name_or_path: nothing is known of it")

    monkeypatch.setattr(CountedLayers, "by", by)
    found = automatic(
        run, args, lambda shape: pytest.fail("nothing is to be planned"), Memory(2 * GIB), LANGUAGE_LINEAR
    )
    assert found.plan is None and "no memory plan, because model_name_or_path: nothing is known" in found.line
    assert "every layer checkpointed" in found.line


# Pictures as large as the sized processor makes them


def test_a_picture_is_as_large_as_the_processor_is_told_to_make_it():
    config = tiny.qwen2_vl().config
    found = []
    for most in (64 * 64, 32 * 32):
        processor = size_pictures(tiny.qwen2_vl_processor(), PictureSize(max_pixels=most))
        found.append(picture_of(processor, config, (100, 100)))
        assert found[-1].pixels == 3 * 2 * most and found[-1].patches == most // 16 and found[-1].tokens == most // 64
        assert largest_picture(processor, config).tokens <= found[-1].tokens
    shape = read_shape(config, Adaptation(rank=4, pattern=LANGUAGE_LINEAR))
    _, args = build_config(settings("nowhere"), source="run.yaml")
    large, small = (counted(args, shape, Data([500], [60], picture)) for picture in found)
    assert large[0].pixels == 4 * small[0].pixels and large[0].image_tokens == 64
    assert large[1].scored_share == small[1].scored_share == 60 / 500


def test_rows_are_planned_with_their_pictures(tmp_path):
    """Through the configuration: pictures of a Gemma 3 are all of one size, and read by three branches."""
    folder = tmp_path / "model"
    processor = PROCESSORS["gemma3"]()
    model = build("gemma3", vocabulary=max(len(processor.tokenizer), 400))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    _, data = tiny.world(tmp_path / "rows", count=4)
    run, args = build_config({**settings(folder), "train_data": str(data)}, source="run.yaml")
    shape = read_shape(model.config, Adaptation(rank=4, pattern=LANGUAGE_LINEAR))
    assert shape.image_tokens == 0
    sized, examples = examples_of(run, args, shape)
    assert (sized.image_tokens, sized.image_patches, sized.pixels) == (10, 16, 3 * 32 * 32), "framed"
    assert examples.separate and examples.images == 3 and max(examples.packed) % 3 == 0
    assert 0 < examples.scored_share < 0.6
