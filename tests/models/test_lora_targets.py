"""LoRA's targets as other libraries take them, kept off tower and projector."""

import re

import pytest
from peft import LoraConfig, get_peft_model

from mdpo import InputError
from mdpo.models import LANGUAGE_LINEAR, check_lora_targets, lora_expression
from tests import tiny

FAMILIES = [tiny.llava, tiny.bunny, tiny.qwen2_5_vl, tiny.smolvlm, tiny.internvl]


def adapted(model, targets) -> set[str]:
    check_lora_targets(model, targets)
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=lora_expression(targets)))
    found = {
        name.removeprefix("base_model.model.") for name, module in peft.named_modules() if hasattr(module, "lora_A")
    }
    return found


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
@pytest.mark.parametrize(
    "targets", [["q_proj", "v_proj"], "q_proj,v_proj", "q_proj, v_proj", ["self_attn.q_proj", "v_proj"]]
)
def test_names_reach_the_language_model_alone(family, targets):
    names = adapted(family(), targets)
    assert {name.rpartition(".")[2] for name in names} == {"q_proj", "v_proj"}
    assert all(re.search(r"\.(language|text)_model\.", name) for name in names)
    # peft's own rule for names takes the towers' as well
    tower = {name for name, _ in family().named_modules() if name.endswith(("q_proj", "v_proj"))}
    assert family not in (tiny.llava, tiny.bunny, tiny.smolvlm) or names < tower


@pytest.mark.parametrize("targets", [None, "all-linear", ["all-linear"]])
def test_the_default_is_every_linear_layer_of_the_language_model(targets):
    assert lora_expression(targets) == LANGUAGE_LINEAR
    check_lora_targets(tiny.llava(), targets)


def test_the_head_and_expressions_stay_possible():
    assert {name.rpartition(".")[2] for name in adapted(tiny.llava(), ["q_proj", "lm_head"])} == {"q_proj", "lm_head"}
    expression = r".*vision_tower.*\.(q_proj|k_proj)"
    names = adapted(tiny.llava(), expression)
    assert names and all("vision_tower" in name for name in names)
    assert lora_expression(expression) == expression


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "query"], "'query' matches no layer; the language model has down_proj, gate_proj, k_proj"),
        ("Wqkv", "'Wqkv' matches no layer; the language model has down_proj"),
        (r".*nowhere.*\.q", "matches no layer"),
        (["mlp"], "'mlp' is a LlamaMLP .*name linear layers, such as down_proj"),
        (r".*\.layers\.0\..*", "is a CLIPAttention"),
        ([], "it names no layer"),
        ("", "it names no layer"),
        ("(q_proj", "is neither a list of layer names nor a regular expression"),
        (["q_proj", r".*\.v_proj"], "is not the name of a layer; a regular expression stands alone"),
    ],
)
def test_a_target_that_is_none_is_named_with_what_is_there(targets, message):
    with pytest.raises(InputError, match=f"lora_target_modules: .*{message}") as error:
        check_lora_targets(tiny.llava(), targets)
    assert "\n" not in str(error.value)
