"""Families that are read branch by branch, GLM-4V and Qwen3.5, from images and text through their own processors to
trained adapters.
"""

import json
import logging

import pytest
import torch
from peft import LoraConfig
from transformers.utils import is_torchvision_available

from mdpo import MDPOConfig, MDPOTrainer
from mdpo.data import DataOptions, PreferenceDataset, read_rows
from mdpo.data.images import open_image
from mdpo.models.inputs import model_inputs
from mdpo.models.layers import LANGUAGE_LINEAR, language_layers
from mdpo.packing import Separate, family_of
from tests import tiny
from tests.models.separate_models import build
from tests.models.separate_processors import PROCESSORS

pytestmark = pytest.mark.slow

KINDS = [
    pytest.param(
        kind,
        marks=pytest.mark.skipif(
            kind == "mistral3" and not is_torchvision_available(), reason="its processor needs it"
        ),
    )
    for kind in PROCESSORS
]


def world(kind: str, folder, count: int = 4):
    processor = PROCESSORS[kind]()
    model = build(kind, vocabulary=max(len(processor.tokenizer), 400))
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in tiny.records(folder, count)))
    return model, processor, read_rows(data)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_what_the_processor_makes_of_them(kind, tmp_path):
    model, processor, rows = world(kind, tmp_path, 1)
    example = PreferenceDataset(rows, processor, DataOptions())[0]
    picture = open_image(rows[0].images[0], "row")
    suffix = {}
    if kind == "paligemma":  # which writes BOS and the line break itself
        text, suffix = "<image>what is this?", {"suffix": [processor.tokenizer.decode(example.chosen_ids[:-1])]}
    else:
        content = [{"type": "image"}, {"type": "text", "text": "what is this?"}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
    made = processor(text=[text], images=[picture], return_tensors="pt", add_special_tokens=False, **suffix)
    prompt = len(example.prompt_ids)
    assert made["input_ids"][0, :prompt].tolist() == list(example.prompt_ids)
    read = made.keys() & example.images.keys()
    assert "pixel_values" in read
    for name in read:  # an image processor returns more, such as num_crops, which its processor drops
        assert torch.equal(made[name], example.images[name]), name
    ids = torch.tensor([[*example.prompt_ids, *example.chosen_ids]])
    inputs = model_inputs(model, family_of(model), ids, torch.ones_like(ids), torch.tensor([prompt]), example.images)
    assert made.keys() - {"labels"} <= inputs.keys()
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in made:
            assert inputs[name][:, : made[name].shape[1]].tolist() == made[name].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_trains(kind, tmp_path, caplog):
    model, processor, rows = world(kind, tmp_path)
    args = MDPOConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=3,
        examples_per_step=4,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
        token_budget=200,
    )
    with caplog.at_level(logging.INFO, "mdpo"):
        trainer = MDPOTrainer(model, args, rows, None, processor, LoraConfig(r=2, target_modules=LANGUAGE_LINEAR))
        trainer.train()
    lines = [record.getMessage() for record in caplog.records]
    separately = isinstance(trainer.family, Separate)
    assert separately == (kind not in ("glm4v", "qwen3_5"))
    banner = " ".join(" ".join(lines).split())
    assert banner.count("branches separate: 3P+3R tokens instead of 2P+3R, because") == separately
    way = "each branch by itself" if separately else "a packed row"
    assert any(f"{way} and the model's own forward differ by at most" in line for line in lines)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(3 * 0.6931, abs=1e-3) and losses[2] != losses[0]
    for step in trainer.get_train_dataloader():
        assert all(packed.input_ids.numel() <= 200 for packed in step.micro_batches)


def test_attention_dropout_stays_on_by_wish(tmp_path):
    """A packed row has none; the model's own forward has."""
    model, processor, rows = world("gemma3", tmp_path)
    for layer in language_layers(model):
        layer.self_attn.attention_dropout = 0.5
    args = MDPOConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=1,
        examples_per_step=4,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
        disable_dropout=False,
    )
    trainer = MDPOTrainer(model, args, rows, None, processor, LoraConfig(r=2, target_modules=LANGUAGE_LINEAR))
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entry["loss"] != pytest.approx(3 * 0.6931, abs=1e-3), "the policy drops some of what its reference has"
