"""What a model is asked: rows of every kind, the processors that read them, and what generate was given."""

import numpy as np
from PIL import Image

from mdpo.data import parse_rows
from tests import tiny

SIDE = tiny.SIDE


FAMILIES = {
    "llava": (tiny.llava, tiny.processor),
    "llava_next": (tiny.llava_next, tiny.llava_next_processor),
    "idefics3": (tiny.idefics3, tiny.idefics3_processor),
    "smolvlm": (tiny.smolvlm, tiny.idefics3_processor),  # whose own processor is Idefics3's, with videos
    "internvl": (tiny.internvl, tiny.internvl_processor),
    "qwen2_5_vl": (tiny.qwen2_5_vl, tiny.qwen2_vl_processor),
    "qwen3_vl": (tiny.qwen3_vl, tiny.qwen2_vl_processor),
}


def picture(seed: int, height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def rows(**columns):
    pair = {"chosen": "a", "rejected": "b", **columns}
    return parse_rows(
        [
            {"image": picture(0, 40, 36), "prompt": "what is this?", **pair},
            {"prompt": "a cat sits", **pair},
            {"images": [picture(1, 50, 80), picture(2, 100, 30)], "prompt": "<image> or <image>?", **pair},
            {"image": picture(3, 60, 36), "prompt": "the dog </s> runs on and sees one two three", **pair},
        ],
        ".",
    )


class Seen:
    """What a model's ``generate`` was given and what it returned."""

    def __init__(self, model, monkeypatch) -> None:
        self.inputs, self.new = [], []
        original = model.generate

        def generate(**inputs):
            self.inputs.append(inputs)
            tokens = original(**inputs)
            self.new.append(tokens[:, inputs["input_ids"].shape[1] :])
            return tokens

        monkeypatch.setattr(model, "generate", generate, raising=False)

    def prompts(self) -> list[list[int]]:
        return [
            ids[mask.bool()].tolist()
            for inputs in self.inputs
            for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        ]


def saying(model, ids: list[int]):
    """The model made to say these ids and then the first of them again."""
    model.generation_config.sequence_bias = [[ids[: at + 1], 100.0 * (at + 1)] for at in range(len(ids))]
    return model
