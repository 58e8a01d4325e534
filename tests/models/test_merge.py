"""mdpo merge: the adapter's log-probs from weights alone, and a card that says where they come from."""

import json

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, OFTConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import GenerationConfig

from mdpo import InputError
from mdpo.cli import main
from mdpo.models import LANGUAGE_LINEAR, load, load_processor, sequence_logps
from mdpo.models.merge import merge
from mdpo.models.model_card import FinishedRun, adapter_kind, model_card, run_card
from mdpo.packing import pack
from tests import tiny
from tests.models.packed_examples import examples


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
    history = [
        {"loss": 2.0, "step": 1},
        {"loss": 1.5, "rewards/margins": 0.25, "step": 2},
        {"eval_loss": 1.75, "step": 2},
    ]
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
        str(tmp_path / "base"),
        "data/train.jsonl",
        "8 (ab)",
        "crop_0_20",
        "| beta | 0.1 |",
        "| steps | 2 |",
        "| rewards/margins | 0.25 |",
        "| eval_loss | 1.75 |",
        "4 bits (NF4)",
        "| lora r | 4 |",
        "| torch (training) | 9.9 |",
    ):
        assert fact in card
    assert "| loss | 2 |" not in card, "the last metrics, not the first"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LoraConfig(r=2), "A LoRA adapter trained"),
        (LoraConfig(r=2, use_dora=True), "A DoRA adapter trained"),
        (IA3Config(), "An IA3 adapter trained"),
        (LoHaConfig(), "A LoHa adapter trained"),
        (OFTConfig(oft_block_size=4), "An OFT adapter trained"),
    ],
)
def test_a_card_names_the_kind_of_adapter(config, words, tmp_path):
    run = FinishedRun(
        base="base", adapter=adapter_kind(config.to_dict()), settings={}, source="", history=[], steps=1, epochs=None
    )
    assert words in run_card(tmp_path, run)
    config.save_pretrained(tmp_path)
    assert words in model_card(tmp_path, tmp_path)


def test_a_base_that_has_moved(adapter, tmp_path):
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="give its folder with --base"):
        merge(adapter, tmp_path / "merged")
    merge(adapter, tmp_path / "merged", tmp_path / "moved")
    with pytest.raises(InputError, match="is not empty"):
        merge(adapter, tmp_path / "merged", tmp_path / "moved")
    with pytest.raises(InputError, match="not a PEFT adapter"):
        merge(tmp_path / "moved", tmp_path / "other")


KINDS = {
    "lora": {"target_modules": LANGUAGE_LINEAR},
    "dora": {"target_modules": LANGUAGE_LINEAR, "use_dora": True},
    "lora on the head": {"target_modules": rf"lm_head|{LANGUAGE_LINEAR}"},
    "dora on the head": {"target_modules": rf"lm_head|{LANGUAGE_LINEAR}", "use_dora": True},
    "lora with a bias": {"target_modules": rf"lm_head|{LANGUAGE_LINEAR}", "lora_bias": True},
    "embeddings": {"target_modules": r".*embed_tokens"},
    "embeddings and head": {"target_modules": r".*embed_tokens|lm_head"},
    "saved embeddings": {"target_modules": LANGUAGE_LINEAR, "modules_to_save": ["embed_tokens"]},
    "saved head": {"target_modules": LANGUAGE_LINEAR, "modules_to_save": ["lm_head"]},
    "tokens": {"target_modules": LANGUAGE_LINEAR, "trainable_token_indices": [5, 6, 7, 200]},
    "trained biases": {"target_modules": LANGUAGE_LINEAR, "bias": "all"},
    "pissa": {"target_modules": LANGUAGE_LINEAR, "init_lora_weights": "pissa"},
}
# On tied embeddings these cannot be merged into one matrix.
APART_ALONE = {
    "lora on the head",
    "dora on the head",
    "lora with a bias",
    "embeddings",
    "embeddings and head",
    "saved embeddings",
    "saved head",
}


@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_merged_says_what_peft_says_or_is_refused(tmp_path, kind, tied):
    family, make = ("smolvlm", tiny.smolvlm) if tied else ("llava-qwen2", lambda: tiny.llava("qwen2"))
    make().save_pretrained(tmp_path / "base")
    tiny.processor().save_pretrained(tmp_path / "base")
    model = get_peft_model(load(tmp_path / "base"), LoraConfig(r=2, **KINDS[kind]))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "adapter")
    try:
        merge(tmp_path / "adapter", tmp_path / "merged", tmp_path / "base")
    except InputError as error:
        assert tied and kind in APART_ALONE or kind == "lora with a bias", str(error)
        assert "merged" in str(error) and not (tmp_path / "merged").exists()
        return
    merged = load(tmp_path / "merged")
    packed = pack(examples(family), merged)
    with torch.no_grad():
        ours, theirs = sequence_logps(merged, packed), sequence_logps(model.eval(), packed)
    torch.testing.assert_close(ours, theirs, atol=5e-4, rtol=0, equal_nan=True)


def test_prompt_learning_is_not_merged(tmp_path):
    tiny.llava().save_pretrained(tmp_path / "base")
    tiny.processor().save_pretrained(tmp_path / "base")
    settings = {"num_virtual_tokens": 4, "task_type": "CAUSAL_LM", "num_layers": 2, "token_dim": 32}
    model = get_peft_model(load(tmp_path / "base"), PromptTuningConfig(**settings, num_attention_heads=4))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="PROMPT_TUNING"):
        merge(tmp_path / "adapter", tmp_path / "merged", tmp_path / "base")
