"""Keys that other trainers have: what they are here, or that they do not exist and why."""

import pytest

from mdpo.config import build_config, parse_overrides
from mdpo.errors import InputError
from mdpo.settings import peers
from mdpo.settings.peers import unknown_key

REQUIRED = {"model_name_or_path": "m", "train_data": "d", "use_cpu": True}


def said(key: str) -> str:
    with pytest.raises(InputError, match=f"unknown key '{key}'; ") as error:
        build_config({**REQUIRED, key: 1}, source="run.yaml")
    return str(error.value).split("; ", 1)[1]


@pytest.mark.parametrize(
    ("key", "here"),
    [
        ("lr", "learning_rate"), ("lora_rank", "lora_r"), ("lora_target", "lora_target_modules"),
        ("torch_dtype", "dtype"),
        ("model", "model_name_or_path"), ("dataset_name", "train_data"), ("dataset", "train_data"),
        ("pref_beta", "beta"),
        ("cutoff_len", "max_length"), ("val_size", "eval_fraction"), ("precompute_ref_log_probs", "cache_reference"),
        ("media_dir", "image_dir"), ("use_peft", "use_lora"), ("finetuning_type", "use_lora"),
        ("quantization_bit", "load_in_4bit"), ("batch_size", "token_budget"),
        ("gradient_accumulation", "examples_per_step"),
        ("warmup_ratio", "warmup_steps"), ("evaluation_strategy", "eval_strategy"),
    ],
)  # fmt: skip
def test_a_name_of_another_trainer_says_what_to_set(key, here):
    assert here in said(key) and "nearest" not in said(key)


@pytest.mark.parametrize("key",
    ["loss_type", "rpo_alpha", "label_smoothing", "attn_implementation", "use_dora", "template",
                                 "trust_remote_code", "early_stopping_patience", "neat_packing"])  # fmt: skip
def test_what_does_not_exist_says_why(key):
    assert "nearest" not in said(key) and "mdpo train --help" not in said(key)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("learnig_rate", "learning_rate"), ("save_total", "save_total_limit"), ("bf_16", "bf16"), ("beta_", "beta")],
)
def test_a_typo_is_told_the_nearest_key(key, nearest):
    assert said(key) == f"the nearest valid key is {nearest!r}"


@pytest.mark.parametrize("key", ["zebra", "wombat_of_doom", "x"])
def test_no_key_is_near_to_nonsense(key):
    assert "nearest" not in said(key) and "--help" in said(key)


def test_the_table_names_settings_that_exist_and_none_that_do():
    from mdpo.config import _hints

    known = _hints()
    others = {"adapter_name_or_path", "system_prompt"}  # said only where the setting exists
    assert set(peers._HERE) - others <= set(known)
    names = [name for names in peers._HERE.values() for name in names]
    names += [*peers._INSTEAD, *peers._COLUMNS, *peers._LOSSES, *peers._SFT_TERMS, *peers._LORA]
    assert len(names) == len(set(names)) and not set(names) & set(known)


@pytest.mark.parametrize(
    "words", [["--group_by_length"], ["--group-by-length", "--seed", "1"], ["--group_by_length", "a", "b"]]
)
def test_a_flag_of_another_trainer_is_told_as_in_a_file(words):
    with pytest.raises(InputError, match="unknown key 'group_by_length'; steps are planned by token_budget"):
        build_config({**REQUIRED, **parse_overrides(words)}, source="run.yaml")


@pytest.mark.parametrize("key", ["image_column", "images_column", "text_column", "prompt_column"])
def test_a_column_is_no_key(key):
    assert "columns are found by their names" in said(key)


def test_a_long_key_is_shortened():
    assert len(unknown_key("x" * 10_000, ["beta"])) < 300
