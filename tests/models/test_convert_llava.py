"""LLaVA-1.5's original layout: what comes out computes what went in, and what is no LLaVA-1.5 is named."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPVisionModel, PreTrainedTokenizerFast

from mdpo.cli import main
from mdpo.errors import InputError
from mdpo.models import convert_llava, load, load_processor
from tests import tiny

TOWER = "model.vision_tower.vision_tower.vision_model."


def original_name(name: str) -> str:
    """The original's name of one of transformers' parameters."""
    for ours, theirs in {
        "model.vision_tower.vision_model.": TOWER,
        "model.vision_tower.": TOWER,
        "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
        "model.language_model.": "model.",
    }.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


@pytest.fixture
def source(tmp_path) -> Path:
    """A tiny LLaVA in the original layout, its tower's sizes in the config."""
    model = tiny.llava()
    save_file({original_name(n): t.contiguous() for n, t in model.state_dict().items()}, tmp_path / "model.safetensors")
    text = model.config.text_config
    sizes = {
        key: getattr(text, key)
        for key in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "rms_norm_eps",
        )
    }
    official = {
        **sizes,
        "model_type": "llava_llama",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "image_aspect_ratio": "pad",
        "vision_config": model.config.vision_config.to_dict(),
    }
    (tmp_path / "config.json").write_text(json.dumps(official))
    return tmp_path


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without_tower(source: Path) -> None:
    weights = load_file(source / "model.safetensors")
    save_file({n: t for n, t in weights.items() if not n.startswith(TOWER)}, source / "model.safetensors")


def logits(model, image_token_id: int) -> torch.Tensor:
    ids = torch.tensor([[20, *[image_token_id] * 16, 21, 22]])
    pixels = torch.randn(1, 3, tiny.SIDE, tiny.SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels).logits


def test_computes_the_same_and_added_ids_take_the_probability_of_unk(source):
    model = load(convert_llava(source, source / "out"))
    assert model.config.image_token_id == 400, "the first id behind the original vocabulary"
    ours, expected = logits(model, 400), logits(tiny.llava(), 3)
    assert ours.shape[-1] == 448
    torch.testing.assert_close(ours[..., :400], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours[..., 400:], expected[..., :1].expand(-1, -1, 48), atol=1e-6, rtol=0)


def test_the_tower_comes_from_a_folder_where_the_checkpoint_has_none(source):
    without_tower(source)
    edit(source / "config.json", vision_config=None)
    tower = CLIPVisionModel(tiny.llava().config.vision_config)
    weights = tiny.llava().model.vision_tower.state_dict()
    tower.load_state_dict(weights)
    tower.save_pretrained(source / "clip")
    model = load(convert_llava(source, source / "out", vision_tower=source / "clip"))
    torch.testing.assert_close(logits(model, 400)[..., :400], logits(tiny.llava(), 3), atol=1e-6, rtol=0)
    edit(source / "config.json", mm_vision_tower=str(source / "clip"))
    named = load(convert_llava(source, source / "named"))
    assert torch.equal(logits(named, 400), logits(model, 400))


def test_sharded_half_precision_source_with_old_buffers(source):
    weights = {name: tensor.half() for name, tensor in load_file(source / "model.safetensors").items()}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    weights[f"{TOWER}embeddings.position_ids"] = torch.arange(17)[None]
    (source / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    for shard, members in shards.items():
        save_file({name: weights[name] for name in members}, source / shard)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    model = load(convert_llava(source, source / "out"))
    assert model.dtype == torch.float16
    torch.testing.assert_close(logits(model.float(), 400)[..., :400], logits(tiny.llava(), 3), atol=1e-2, rtol=0)


def test_processor_pads_to_square_and_speaks_vicuna(source):
    words = ["<unk>", "<s>", "</s>", "USER:", "ASSISTANT:", "what", "is", "this?"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(source)
    folder = convert_llava(source, source / "out")
    processor, model = load_processor(folder), load(folder)
    assert model.config.image_token_id == processor.image_token_id == len(words)
    assert model.config.text_config.vocab_size == 400, "there is room for the image token"
    content = [{"type": "image"}, {"type": "text", "text": "what is this?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text.endswith("questions. USER: <image>\nwhat is this? ASSISTANT:")
    wide = Image.new("RGB", (64, 32), (255, 0, 0))
    inputs = processor(text=text, images=wide, return_tensors="pt")
    assert (inputs["input_ids"] == len(words)).sum() == 16
    top = inputs["pixel_values"][0, :, 0]
    assert top.abs().max() < 0.02, "padded above with the mean colour, which normalises to zero"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: edit(s / "config.json", model_type="llava_mpt"), "'llava_mpt', only 'llava_llama' and 'llava'"),
        (lambda s: edit(s / "config.json", text_config={}), "in transformers' layout already"),
        (lambda s: edit(s / "config.json", mm_projector_type="linear"), "mm_projector_type 'linear'"),
        (lambda s: edit(s / "config.json", image_aspect_ratio="anyres"), "'anyres' .* not LLaVA-1.5's"),
        (lambda s: edit(s / "config.json", mm_use_im_start_end=True), "mm_use_im_start_end"),
        (lambda s: edit(s / "config.json", mm_vision_select_feature="cls"), "mm_vision_select_feature 'cls'"),
        (lambda s: edit(s / "config.json", hidden_size=72), "do not fit config.json"),
        (lambda s: (s / "config.json").unlink(), "config.json does not exist"),
        (lambda s: (s / "model.safetensors").unlink(), "only safetensors are read.*weights_only=True"),
        (lambda s: save_file({"x": torch.zeros(1)}, s / "model.safetensors"), "not a whole checkpoint; merge"),
        (without_tower, "give the folder of openai/clip-vit-large-patch14-336 with --vision-tower"),
        (lambda s: ((s / "out").mkdir(), (s / "out" / "x").touch()), "is not empty"),
    ],
)
def test_bad_sources_are_named(source, change, message):
    change(source)
    with pytest.raises(InputError, match=message):
        convert_llava(source, source / "out")


def test_a_tower_of_unknown_size_is_asked_for(source):
    official = json.loads((source / "config.json").read_text())
    del official["vision_config"]
    (source / "config.json").write_text(json.dumps({**official, "mm_vision_tower": "openai/clip-vit-base-patch16"}))
    with pytest.raises(InputError, match="clip-vit-base-patch16.*give its folder"):
        convert_llava(source, source / "out")


def test_from_the_command_line(source, capsys):
    assert main(["convert", "llava", str(source), str(source / "out")]) == 0
    assert "wrote" in capsys.readouterr().out
    assert main(["convert", "llava", str(source), str(source / "more"), "--vision-tower", str(source / "none")]) == 2
    assert "not a CLIP model" in capsys.readouterr().err
    assert main(["convert", "bunny", str(source), str(source / "more"), "--vision-tower", str(source)]) == 2
