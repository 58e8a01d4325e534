"""An adapter's keys, read as vLLM's LoRA loader reads them: each finds a layer of the served model, and each layer its
pair.

The rules are those of vLLM's ``parse_fine_tuned_lora_name``, ``PEFTHelper`` and ``hf_to_vllm_mapper``s, written down
anew: "base_model.model." goes, the model's prefixes are mapped, what is left ends in lora_A.weight or lora_B.weight,
and its last name is that of a linear layer. A name that vLLM does not know refuses the adapter; one in another place is
dropped in silence.
"""

import json

import pytest
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file

from mdpo.models import load, lora_expression
from mdpo.models.lora_targets import adapted
from mdpo.models.merge import merge
from tests import tiny

RANK = 3
LLAVA = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "lm_head.": "language_model.lm_head.",
}
QWEN = {
    "model.language_model.": "language_model.model.",
    "model.visual.": "visual.",
    "lm_head.": "language_model.lm_head.",
    "model.": "language_model.model.",
}
# Prefixes as vLLM maps them, and where its language model keeps its layers.
SERVED = {
    "llava": (tiny.llava, LLAVA, "language_model.model"),
    "llava_next": (tiny.llava_next, LLAVA, "language_model.model"),
    "qwen2_vl": (tiny.qwen2_vl, QWEN, "language_model.model"),
    "qwen2_5_vl": (tiny.qwen2_5_vl, QWEN, "language_model.model"),
    "qwen3_vl": (tiny.qwen3_vl, QWEN, "language_model.model"),
    "internvl": (tiny.internvl, LLAVA, "language_model.model"),
    "idefics3": (tiny.idefics3, {}, "model.text_model"),
}
LINEAR = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def as_vllm_reads(key: str, prefixes: dict[str, str]) -> tuple[str, str]:
    """The module and the half of the pair, lora_A or lora_B."""
    assert key.startswith("base_model.model.")
    name = key.removeprefix("base_model.model.")
    for old, new in prefixes.items():
        if name.startswith(old):
            name = name.replace(old, new, 1)
    *module, half, weight = name.split(".")
    assert weight == "weight" and half in ("lora_A", "lora_B"), f"{key} is no LoRA weight to vLLM"
    return ".".join(module), half


@pytest.mark.parametrize("family", SERVED)
def test_every_key_of_an_adapter_finds_its_layer_in_vllm(family, tmp_path):
    make, prefixes, body = SERVED[family]
    model = make()
    config = LoraConfig(r=RANK, lora_alpha=6, target_modules=lora_expression(None), task_type="CAUSAL_LM")
    adapted(model, config, fused=True).save_pretrained(tmp_path)
    found: dict[str, dict[str, tuple]] = {}
    for key, value in load_file(tmp_path / "adapter_model.safetensors").items():
        module, half = as_vllm_reads(key, prefixes)
        found.setdefault(module, {})[half] = tuple(value.shape)
    layers = make().config.get_text_config().num_hidden_layers
    assert set(found) == {f"{body}.layers.{number}.{name}" for number in range(layers) for name in LINEAR}
    assert all(
        set(pair) == {"lora_A", "lora_B"} and pair["lora_A"][0] == pair["lora_B"][1] == RANK for pair in found.values()
    )
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["bias"], saved["peft_type"]) == (RANK, 6, "none", "LORA")
    assert not saved["use_dora"] and not saved["modules_to_save"], "neither of which vLLM loads"


def test_a_key_that_vllm_does_not_know_is_seen():
    with pytest.raises(AssertionError, match="no LoRA weight"):
        as_vllm_reads(
            "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight", LLAVA
        )


def test_a_merged_model_has_the_keys_of_its_base(tmp_path):
    model_folder, _ = tiny.world(tmp_path / "world", count=1)
    config = LoraConfig(r=RANK, target_modules=lora_expression(None), task_type="CAUSAL_LM")
    adapted(load(model_folder), config, fused=True).save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter", tmp_path / "merged", model_folder)
    keys = [set(safe_open(folder / "model.safetensors", "pt").keys()) for folder in (model_folder, tmp_path / "merged")]
    assert keys[0] == keys[1]
    assert (tmp_path / "merged" / "processor_config.json").is_file() and (tmp_path / "merged" / "config.json").is_file()
