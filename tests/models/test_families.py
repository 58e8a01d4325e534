"""What packing knows of each family, held against the models; and who is refused, with which words."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from mdpo.errors import InputError
from mdpo.models import LANGUAGE_LINEAR, encode_images, language_layers, load, sequence_logps
from mdpo.objectives import PRESETS
from mdpo.packing import PreferenceTokens, Separate, family_of, pack
from tests import tiny
from tests.models.packed_examples import FAMILIES, IMAGE, examples, join, pixels


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_qwen_positions_are_get_rope_index(kind):
    model = FAMILIES[kind]()
    for example in examples(kind):
        ids = torch.tensor([example.prompt_ids])
        grid = None if example.images is None else example.images["image_grid_thw"]
        expected, _ = model.model.get_rope_index(ids, mm_token_type_ids=(ids == IMAGE).int(), image_grid_thw=grid)
        assert torch.equal(family_of(model).positions(example.prompt_ids, example.images), expected[:, 0])


@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision"])
def test_tiles_are_counted_as_the_model_makes_them(kind):
    model = FAMILIES[kind]()
    family = family_of(model)
    sides = [1, 7, 16, 31, 32, 33, 47, 64, 65, 90, 96, 127, 333]
    sizes = torch.tensor([[height, width] for height in sides for width in sides])
    with torch.no_grad():
        outputs = model.model.get_image_features(torch.zeros(len(sizes), 5, 3, tiny.SIDE, tiny.SIDE), sizes)
    assert family.image_lengths({"image_sizes": sizes}) == [len(features) for features in outputs.pooler_output]


# The image processors that real checkpoints of the family name, with their sizes scaled down to the tiny models'.
_SIDE = {"height": tiny.SIDE, "width": tiny.SIDE}
_SPLIT = {"size": {"longest_edge": 4 * tiny.SIDE}, "max_image_size": {"longest_edge": tiny.SIDE}}
IMAGE_PROCESSORS = {
    "llava-llama": lambda: CLIPImageProcessorPil(size={"shortest_edge": tiny.SIDE}, crop_size=_SIDE),
    "bunny": lambda: LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": tiny.SIDE}, crop_size=_SIDE),
    "llava_next": lambda: LlavaNextImageProcessorPil(
        size={"shortest_edge": tiny.SIDE}, crop_size=_SIDE, image_grid_pinpoints=tiny.PINPOINTS
    ),
    "llava_onevision": lambda: LlavaOnevisionImageProcessorPil(size=_SIDE, image_grid_pinpoints=tiny.PINPOINTS),
    "qwen2_vl": lambda: Qwen2VLImageProcessorPil(patch_size=4, min_pixels=16 * 16, max_pixels=64 * 64),
    "qwen3_vl": lambda: Qwen2VLImageProcessorPil(patch_size=4, min_pixels=16 * 16, max_pixels=64 * 64),
    "idefics3": lambda: Idefics3ImageProcessorPil(**_SPLIT),
    "smolvlm": lambda: SmolVLMImageProcessorPil(**_SPLIT),
    "internvl": lambda: GotOcr2ImageProcessorPil(size=_SIDE, crop_to_patches=True),
}


@pytest.mark.parametrize("kind", IMAGE_PROCESSORS)
def test_what_image_processors_return_is_counted_and_encoded(kind):
    model = FAMILIES[kind]()
    pictures = [Image.new("RGB", size, (200, 100, 50)) for size in ((97, 40), (40, 97), (64, 64))]
    images = dict(IMAGE_PROCESSORS[kind]()(images=pictures, return_tensors="pt"))
    lengths = family_of(model).image_lengths(images)
    prompt = [20, *(token for length in lengths for token in [*[IMAGE] * length, 21])]
    packed = pack([PreferenceTokens("real", prompt, [30, 1], [31, 1], images)], model)
    with torch.no_grad():
        assert len(encode_images(model, packed).embeddings) == sum(lengths)
        theirs = model(input_ids=torch.tensor([[*prompt, 30, 1]]), **processed(model, images, prompt)).logits
        expected = theirs[0, len(prompt) - 1 : -1].log_softmax(-1)[[0, 1], [30, 1]].sum()
        torch.testing.assert_close(sequence_logps(model, packed)[0, 0], expected, atol=2e-5, rtol=0)


def processed(model, images: dict, prompt: list[int]) -> dict:
    """What the model's own forward takes of it."""
    inputs = {name: tensor for name, tensor in images.items() if name != "num_patches"}
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (torch.tensor([[*prompt, 30, 1]]) == IMAGE).int()
    return inputs


def test_pictures_that_were_not_cut_into_tiles_are_refused():
    processor = IMAGE_PROCESSORS["llava_onevision"]()
    images = dict(processor(images=[[Image.new("RGB", (97, 40)), Image.new("RGB", (40, 97))]], return_tensors="pt"))
    bad = PreferenceTokens("together", [20, *[IMAGE] * 34, 21], [30, 1], [31, 1], images)
    with pytest.raises(
        InputError, match=r"'together': images: batch_num_images is \[2\], so they were not cut into tiles"
    ):
        pack([bad], tiny.llava_onevision())


@pytest.mark.parametrize("kind", FAMILIES)
def test_lora_targets_are_all_linears_of_the_language_model_s_layers_and_nothing_else(kind):
    model = FAMILIES[kind]()
    linears = {
        module
        for name, module in language_layers(model).named_modules()
        if isinstance(module, torch.nn.Linear)
        and not name.endswith("shared_expert_gate")  # which chooses, as a router does
    }
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=LANGUAGE_LINEAR))
    adapted = {module.get_base_layer() for module in peft.modules() if hasattr(module, "lora_A")}
    assert adapted == linears


def test_qwen3_vl_shares_its_deepstack_features():
    model, batch = tiny.qwen3_vl(), examples("qwen3_vl")
    packed = pack(batch, model)
    features = encode_images(model, packed)
    assert [level.shape for level in features.deepstack] == [features.embeddings.shape] * 2
    shared = sequence_logps(model, packed, image_features=features)
    torch.testing.assert_close(shared, sequence_logps(model, packed), atol=0, rtol=0, equal_nan=True)
    without = sequence_logps(model, packed, image_features=features._replace(deepstack=()))
    assert (shared - without).nan_to_num().abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["idefics3", "smolvlm", "internvl"])
def test_each_distinct_tile_is_encoded_once(kind):
    packed = pack(examples(kind), FAMILIES[kind]())
    # tiles: first and crop 3 each, second and second_crop 4 each, third 2
    assert len(packed.images["pixel_values"]) == 16
    assert packed.image_index[:10] == (*range(6), 6, 7, 8, 9)


@pytest.mark.parametrize("kind", ["idefics3", "smolvlm"])
def test_tiles_of_zeros_are_padding_as_in_the_model(kind):
    model, (ordinary, *_) = FAMILIES[kind](), examples(kind)
    mask = ordinary.images["pixel_attention_mask"]
    fill = {"pixel_values": torch.zeros(1, 2, 3, tiny.SIDE, tiny.SIDE), "pixel_attention_mask": mask[:, :2]}
    padded = PreferenceTokens(
        "padded", ordinary.prompt_ids, ordinary.chosen_ids, ordinary.rejected_ids, join(ordinary.images, fill)
    )
    expected = sequence_logps(model, pack([ordinary], model))[0]
    torch.testing.assert_close(sequence_logps(model, pack([padded], model))[0], expected, atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["idefics3", "smolvlm"])
def test_a_blank_negative_is_named(kind):
    _, _, two_images, *_ = examples(kind)
    blank = {name: torch.zeros_like(tensor) for name, tensor in two_images.images.items()}
    bad = PreferenceTokens("blank", two_images.prompt_ids, [1], [1], two_images.images, blank)
    with pytest.raises(InputError, match="'blank': rejected_images make 0 image tokens"):
        pack([bad], FAMILIES[kind]())


@pytest.mark.parametrize(
    ("kind", "key"), [("llava-llama", "pixel_values"), ("llava_next", "image_sizes"), ("qwen2_vl", "image_grid_thw")]
)
def test_missing_image_inputs_are_named(kind, key):
    example, model = examples(kind)[0], FAMILIES[kind]()
    images = {name: tensor for name, tensor in example.images.items() if name != key}
    bad = PreferenceTokens("lacking", example.prompt_ids, [1], [1], images)
    with pytest.raises(InputError, match=f"'lacking': images lack {key}"):
        pack([bad], model)


def test_whatever_else_the_processor_returns_is_left_out():
    example, model = examples("internvl")[0], tiny.internvl()
    images = {**example.images, "num_patches": torch.tensor([3])}
    packed = pack([PreferenceTokens("x", example.prompt_ids, [1], [1], images)], model)
    assert packed.images.keys() == {"pixel_values"}


def test_images_of_another_shape_are_named():
    model = tiny.internvl()
    large = {"pixel_values": torch.randn(1, 3, 2 * tiny.SIDE, 2 * tiny.SIDE)}
    bad = PreferenceTokens("large", [20, *[IMAGE] * 16, 21], [1], [1], large)
    with pytest.raises(InputError, match="'large': pixel_values of shape .* of 'ordinary'"):
        pack([examples("internvl")[0], bad], model)


@pytest.mark.parametrize("kind", ["llava-mistral-window", "internvl-window", "qwen2_vl-window", "qwen2_5_vl-window"])
def test_a_window_cuts_the_branches_of_the_examples(kind):
    """Or the families with a window would show nothing: without it the log-probs are others."""
    model, batch = FAMILIES[kind](), examples(kind)
    packed = pack(batch, model)
    with torch.no_grad():
        windowed = sequence_logps(model, packed)
        for layer in model.get_decoder().layers:
            layer.self_attn.sliding_window = None
        model.config.text_config.sliding_window = None
        moved = (windowed - sequence_logps(model, packed)).abs()
    assert (moved[:, :3][packed.present[:, :3]] > 1e-4).all()  # of the examples with images


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("paligemma", "both directions"),
        ("gemma3", "both directions"),
        ("glm4v_moe", "'glm4v_moe' has not been tried in a packed row"),
    ],
)
def test_families_that_cannot_be_packed_are_read_separately_with_the_reason(kind, reason):
    model = tiny.llava()
    model.config.model_type = kind
    family = family_of(model)
    assert isinstance(family, Separate)
    line = family.line(("chosen", "rejected", "image_rejected"))
    assert line.startswith("separate: 3P+3R tokens instead of 2P+3R, because ") and reason in line


@pytest.mark.parametrize(
    ("objective", "cost"),
    [
        ("mdpo", "3P+3R tokens instead of 2P+3R"),
        ("dpo", "2P+2R tokens instead of P+2R"),
        ("symmpo", "5P+5R tokens instead of 2P+5R"),
        ("misp", "5P+5R tokens instead of 4P+5R"),
    ],
)
def test_the_line_says_the_tokens_of_the_objective(objective, cost):
    family = Separate(3, "it is so")
    assert family.line(PRESETS[objective].read) == f"separate: {cost}, because it is so"
    assert family.line(["chosen"]) == "separate: P+R tokens, because it is so"


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("mllama", {}, "cross-attention"),
        ("molmo2", {}, "its processor alone"),
        ("florence2", {"is_encoder_decoder": True}, "decodes a response apart from its prompt"),
        ("kosmos-2", {"image_token_id": None}, "names no image_token_id"),
    ],
)
def test_families_whose_logps_cannot_be_had_are_refused_with_the_reason(kind, change, reason):
    model = tiny.llava()
    for name, value in {"model_type": kind, **change}.items():
        setattr(model.config, name, value)
    with pytest.raises(InputError, match=f"{kind}.*{reason}"):
        pack(examples("llava-llama"), model)


@pytest.mark.parametrize(
    ("build", "change", "reason"),
    [
        (tiny.llava, lambda c: setattr(c.text_config, "model_type", "gpt_oss"), "around the text model 'gpt_oss'"),
        (tiny.internvl, lambda c: setattr(c.text_config, "model_type", "qwen3_moe"), "the text model 'qwen3_moe'"),
        (tiny.llava, lambda c: setattr(c.vision_config, "model_type", "pixtral"), "vision tower 'pixtral'"),
        (tiny.llava_next, lambda c: setattr(c.vision_config, "model_type", "dinov2"), "vision tower 'dinov2'"),
        (tiny.llava_next, lambda c: setattr(c, "vision_feature_select_strategy", "full"), "no square grid"),
        (tiny.llava_onevision, lambda c: setattr(c, "vision_aspect_ratio", "square"), "vision_aspect_ratio 'square'"),
        (tiny.gemma4, lambda c: setattr(c.text_config, "use_bidirectional_attention", "vision"), "in both directions"),
        (tiny.gemma4, lambda c: setattr(c.text_config, "enable_moe_block", True), "'gemma4' model with experts"),
        (
            tiny.internvl,
            lambda c: setattr(c, "vision_feature_select_strategy", "full"),
            "vision_feature_select_strategy 'full'",
        ),
    ],
)
def test_known_families_with_parts_that_nobody_has_tried_are_read_separately(build, change, reason):
    model = build()
    change(model.config)
    family = family_of(model)
    assert isinstance(family, Separate) and reason in family.reason


def test_a_siglip_tower_with_the_default_strategy_loses_a_patch():
    model = tiny.bunny()
    model.config.vision_feature_select_strategy = "default"
    image = pixels("bunny", torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.model.get_image_features(**image).pooler_output
    assert family_of(model).image_lengths(image) == [len(features[0])]


@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision", "qwen3_vl", "idefics3", "internvl"])
def test_sharded_checkpoints_load(kind, tmp_path):
    model, batch = FAMILIES[kind](), examples(kind)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = load(tmp_path)
    expected = sequence_logps(model, pack(batch, model))
    torch.testing.assert_close(sequence_logps(again, pack(batch, again)), expected, atol=0, rtol=0, equal_nan=True)


def test_an_adapter_alone_is_refused_with_advice(tmp_path):
    get_peft_model(tiny.llava(), LoraConfig(r=2, target_modules=LANGUAGE_LINEAR)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="adapter alone; give the base model's folder, and the adapter with --adapter"):
        load(tmp_path)
