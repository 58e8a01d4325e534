"""The options that save memory: the exact ones leave the adapter as it is, the approximate ones within a
stated bound.
"""

import functools

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from mdpo import InputError, MDPOConfig, MDPOTrainer
from mdpo.data import read_rows
from mdpo.models import LANGUAGE_LINEAR, language_layers, load, load_processor
from mdpo.models.quantize import quantized_modules
from tests import tiny, wide
from tests.numerics import relative_distance

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two layers of 64 channels, which bitsandbytes can take in 4 bits, and six rows."""
    model, data = tiny.world(tmp_path_factory.mktemp("world"), count=6)
    wide.model("llava-llama").save_pretrained(model)
    return model, data


def run(world, output_dir, *, load_in_4bit=False, targets=LANGUAGE_LINEAR, dtype="auto", **settings) -> MDPOTrainer:
    """Two steps, untrained; ``start`` is what the adapter begins with."""
    model, data = world
    defaults = {
        "learning_rate": 1e-3,
        "examples_per_step": 3,
        "token_budget": 200,
        "max_steps": 2,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
    }
    trainer = MDPOTrainer(
        model=load(model, dtype=dtype, load_in_4bit=load_in_4bit),
        args=MDPOConfig(output_dir=str(output_dir), **{**defaults, **settings}),
        train_dataset=read_rows(data),
        processing_class=load_processor(model),
        peft_config=LoraConfig(r=64, lora_alpha=64, target_modules=targets),
    )
    trainer.start = adapter(trainer)
    return trainer


def adapter(trainer: MDPOTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def trained(world, output_dir, **settings) -> MDPOTrainer:
    trainer = run(world, output_dir, **settings)
    trainer.train()
    return trainer


def relative_difference(one: MDPOTrainer, other: MDPOTrainer) -> float:
    """‖Δ − Δ'‖ / ‖Δ‖ of what two runs have moved the adapter by, from the same start."""
    return relative_distance(adapter(one), adapter(other), one.start)


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory) -> MDPOTrainer:
    return trained(world, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("checkpointed", [0, 1, 2])
def test_checkpointing_k_layers_is_exact_and_recomputes_k(world, plain, tmp_path, checkpointed):
    trainer = run(world, tmp_path, checkpoint_layers=checkpointed)
    calls, forwards = [0, 0], []
    trainer.model.get_input_embeddings().register_forward_pre_hook(lambda *_: forwards.append(1))
    for index, layer in enumerate(language_layers(trainer.model)):
        # On a part of the layer: what runs again is its forward, without its hooks.
        layer.mlp.register_forward_pre_hook(lambda *_, index=index: calls.__setitem__(index, calls[index] + 1))
    trainer.train()
    ours, theirs = adapter(trainer), adapter(plain)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [count > len(forwards) for count in calls] == [index < checkpointed for index in range(2)]


def test_the_packing_is_exact(world, plain, tmp_path):
    assert relative_difference(plain, trained(world, tmp_path, token_budget=10_000)) < 1e-4


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_adam_in_8_bits_moves_the_adapter_alike(world, plain, tmp_path, optim):
    """Two steps of it. bitsandbytes keeps tensors of fewer than 4096 values in 32 bits; those here have more."""
    pytest.importorskip("bitsandbytes")
    trainer = trained(world, tmp_path, optim=optim)
    assert relative_difference(plain, trainer) < 0.1
    states = [state["state1"].dtype for state in trainer.optimizer.optimizer.state.values()]
    assert torch.uint8 in states


def test_nf4_moves_the_adapter_alike(world, plain, tmp_path):
    """The first steps of Adam are the signs of gradients, so on another base (weights off by 9%) many entries
    differ.
    """
    pytest.importorskip("bitsandbytes")
    trainer = trained(world, tmp_path, load_in_4bit=True)
    assert relative_difference(plain, trainer) < 0.8
    assert quantized_modules(trainer.model.get_base_model()), "still in 4 bits"
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[0] == pytest.approx(3 * 0.693147, abs=1e-4), "policy and reference are one model at step 0"


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory):
    model, data = tiny.world(tmp_path_factory.mktemp("one_layer"), count=3)
    wide.model("llava-llama", layers=1).save_pretrained(model)
    return model, data


def test_compiled_layers_move_the_adapter_alike(one_layer, tmp_path, monkeypatch):
    """Traced and differentiated as graphs, but run as they are: compiling them takes a minute of a CPU."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    assert _compiled_against_eager(one_layer, tmp_path) < 1e-3


@pytest.mark.gpu
def test_compiled_layers_on_a_gpu(world, tmp_path):
    """Bound: rounding, in fp32. A CPU's kernels have kept to it too."""
    assert _compiled_against_eager(world, tmp_path, use_cpu=False) < 1e-2


def _compiled_against_eager(world, folder, **settings) -> float:
    settings |= {"max_steps": 1, "lr_scheduler_type": "constant", "warmup_steps": 0}
    trainer = run(world, folder / "compiled", compile_layers=True, **settings)
    compiled = [layer._compiled_call_impl for layer in language_layers(trainer.model)]
    assert None not in compiled
    trainer.train()
    return relative_difference(trained(world, folder / "eager", **settings), trainer)


def test_lora_on_the_head(world, tmp_path):
    trainer = trained(world, tmp_path, targets=rf"lm_head|{LANGUAGE_LINEAR}", checkpoint_layers=1)
    head = trainer.model.get_base_model().get_output_embeddings()
    assert isinstance(head, LoraLayer)
    assert not torch.equal(head.lora_B["default"].weight, torch.zeros_like(head.lora_B["default"].weight))


def test_under_autocast_a_layers_input_is_not_copied(world, tmp_path):
    """peft casts an input up to the adapter's fp32 and autocast casts it down: without that the values are the same."""
    trainer = run(world, tmp_path, dtype="bfloat16", bf16=True)
    layer = trainer.model.get_base_model().model.language_model.layers[0].mlp.down_proj
    seen = []
    layer.lora_A["default"].register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    trainer.train()
    assert seen and set(seen) == {torch.bfloat16}
    assert layer.cast_input_dtype_enabled, (
        "outside of a step peft's cast is there, for those who use the model as it is"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoint_layers": 3}, "checkpoint_layers is 3; expected at most the model's 2 layers"),
        ({"checkpoint_layers": -1}, "checkpoint_layers is -1; expected a number of at least 0"),
    ],
)
def test_bad_settings(world, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        run(world, tmp_path, **settings)


def test_liger_where_the_family_has_nothing(tmp_path):
    model, data = tiny.world(tmp_path, count=2)
    tiny.bunny().save_pretrained(model)
    with pytest.raises(InputError, match="Liger does not support the text model 'phi'"):
        run((model, data), tmp_path, use_liger_kernel=True)


def test_liger_where_it_is_not_installed(world, tmp_path, monkeypatch):
    from mdpo.trainer import layers

    monkeypatch.setattr(layers, "is_liger_kernel_available", lambda: False)
    with pytest.raises(InputError, match="pip install liger-kernel"):
        run(world, tmp_path, use_liger_kernel=True)
