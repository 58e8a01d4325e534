"""Regular expressions of strangers over layer names: tried under a bound, and refused by the setting that
brought them.
"""

import json

import pytest
from peft import LoraConfig, get_peft_model

from mdpo.errors import InputError
from mdpo.models import patterns
from mdpo.models.adapters import load_adapter
from mdpo.models.lora_targets import adapted, check_lora_targets
from mdpo.models.patterns import check_patterns
from tests import tiny

pytestmark = pytest.mark.slow

NAMES = [f"model.language_model.layers.{layer}.self_attn.q_proj" for layer in range(30)]
CATASTROPHIC = r"(([a-z_.0-9]+)+)+!"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 1)


@pytest.mark.parametrize("pattern", [CATASTROPHIC, r"(.*\w)*!"])
def test_an_expression_that_does_not_end_is_refused_in_time(pattern):
    with pytest.raises(
        InputError, match="target_modules: the regular expression .* does not come to an end over the model's"
    ):
        check_patterns({"exclude_modules": "q_proj|k_proj", "target_modules": pattern}, NAMES, "correct it")


@pytest.mark.parametrize("pattern", ["(", "*", "(?P<a>x)(?P<a>y)", "(" * 5000, "x{99999999999}", "a|" * 20_000])
def test_what_is_no_expression_is_refused(pattern):
    with pytest.raises(InputError, match="rank_pattern: .*correct it"):
        check_patterns({"rank_pattern": pattern}, NAMES, "correct it")


@pytest.mark.parametrize("pattern", [r".*\.layers\.\d+\..*(q|v)_proj", "q_proj", "", r"(?:.*\.)?(?:a|b)+_proj"])
def test_ordinary_ones_pass(pattern):
    check_patterns({"target_modules": pattern}, NAMES, "correct it")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(tiny.llava(), LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target_modules", CATASTROPHIC),
        ("exclude_modules", CATASTROPHIC),
        ("rank_pattern", {CATASTROPHIC: 4}),
        ("alpha_pattern", {CATASTROPHIC: 4}),
        ("modules_to_save", [CATASTROPHIC]),
        ("layers_pattern", [CATASTROPHIC]),
    ],
)
def test_an_adapters_config_is_named_with_its_key(folder, key, value):
    path = folder / "adapter_config.json"
    whole = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(whole), key: value}))
        with pytest.raises(InputError, match=f"adapter_config.json: {key}: the regular expression"):
            load_adapter(tiny.llava(), folder)
    finally:
        path.write_text(whole)


def test_settings_of_ones_own_are_tried_too():
    with pytest.raises(InputError, match="lora_target_modules: the regular expression"):
        check_lora_targets(tiny.llava(), CATASTROPHIC)
    with pytest.raises(InputError, match="peft_config: target_modules: the regular expression"):
        adapted(tiny.llava(), LoraConfig(target_modules=CATASTROPHIC), fused=True)
