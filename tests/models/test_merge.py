"""mdpo merge: the adapter's log-probs from weights alone, and a card that says where they come from."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GenerationConfig

from mdpo import InputError
from mdpo.cli import main
from mdpo.models import LANGUAGE_LINEAR, load, load_processor, sequence_logps
from mdpo.models.merge import merge
from mdpo.packing import pack
from tests import tiny
from tests.models.test_packed_step import examples


@pytest.fixture
def adapter(tmp_path):
    """An adapter on a saved base, with the files that training leaves beside it."""
    base = tmp_path / "base"
    tiny.llava().save_pretrained(base)
    tiny.processor().save_pretrained(base)
    model = get_peft_model(load(base), LoraConfig(r=4, target_modules=rf"lm_head|{LANGUAGE_LINEAR}"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    history = [{"loss": 2.0, "step": 1}, {"loss": 1.5, "rewards/margins": 0.25, "step": 2}, {"eval_loss": 1.75, "step": 2}]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 2, "epoch": 1.0, "log_history": history}))
    (folder / "mdpo_settings.json").write_text(json.dumps({"beta": 0.1, "negative": "crop_0_20", "rows": "8 (ab)"}))
    record = {"run": {"train_data": "data/train.jsonl", "load_in_4bit": True}, "versions": {"torch": "9.9"}}
    (folder / "mdpo_run.json").write_text(json.dumps(record))
    return folder


def test_log_probs_are_the_adapters(adapter, tmp_path):
    assert main(["merge", str(adapter), str(tmp_path / "merged")]) == 0
    merged = load(tmp_path / "merged")
    with_adapter = PeftModel.from_pretrained(load(tmp_path / "base"), adapter)
    packed = pack(examples("llava-llama"), merged)
    ours, theirs = (sequence_logps(model, packed) for model in (merged, with_adapter))
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5, equal_nan=True)
    moved = (ours - sequence_logps(load(tmp_path / "base"), packed)).nan_to_num().abs().max()
    assert moved > 0.01, "the adapter does something"
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert load_processor(tmp_path / "merged").chat_template == tiny.TEMPLATE
    GenerationConfig.from_pretrained(tmp_path / "merged")


def test_the_card_names_base_data_settings_metrics_and_versions(adapter, tmp_path):
    card = (merge(adapter, tmp_path / "merged") / "README.md").read_text()
    for fact in (
        str(tmp_path / "base"), "data/train.jsonl", "8 (ab)", "crop_0_20", "| beta | 0.1 |", "| steps | 2 |",
        "| rewards/margins | 0.25 |", "| eval_loss | 1.75 |", "4 bits (NF4)", "| lora r | 4 |", "| torch (training) | 9.9 |",
    ):  # fmt: skip
        assert fact in card
    assert "| loss | 2 |" not in card, "the last metrics, not the first"


def test_a_base_that_has_moved(adapter, tmp_path):
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="give its folder with --base"):
        merge(adapter, tmp_path / "merged")
    merge(adapter, tmp_path / "merged", tmp_path / "moved")
    with pytest.raises(InputError, match="is not empty"):
        merge(adapter, tmp_path / "merged", tmp_path / "moved")
    with pytest.raises(InputError, match="not a PEFT adapter"):
        merge(tmp_path / "moved", tmp_path / "other")
