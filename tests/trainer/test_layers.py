"""What the settings ask of the layers, held against what the model's layers can give."""

import pytest

from mdpo import InputError, MDPOConfig
from mdpo.models import not_compiled
from mdpo.trainer.layers import EAGER, prepare_layers
from tests import tiny


def settings(tmp_path, reentrant: bool) -> MDPOConfig:
    return MDPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to="none",
        gradient_checkpointing=True,
        compile_layers=False,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )


def test_checkpointing_that_loses_the_gradients_of_shared_keys_is_refused(tmp_path):
    """Its log-probs are right, and its gradients off by more than half their size."""
    with pytest.raises(InputError, match="gradient_checkpointing_kwargs: use_reentrant: true loses gradients"):
        prepare_layers(tiny.gemma4(), None, settings(tmp_path, True))
    assert prepare_layers(tiny.gemma4(), None, settings(tmp_path, False)) == EAGER


def test_other_models_may_be_checkpointed_so(tmp_path):
    assert prepare_layers(tiny.llava(), None, settings(tmp_path, True)) == EAGER


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (tiny.llava, None),
        (tiny.qwen3_5, "linear attention"),
        (tiny.qwen3_5_moe, "linear attention"),
        (tiny.gemma4, "keys and values of earlier ones"),
        (tiny.qwen3_vl_moe, "an expert gets"),
    ],
)
def test_layers_run_eagerly_where_they_exchange_more_than_a_compiled_one_takes(model, reason):
    found = not_compiled(model())
    assert found is None if reason is None else reason in found
