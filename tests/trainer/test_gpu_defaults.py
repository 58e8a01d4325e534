"""mdpo train as it is on a GPU: the card's free memory is given by the tests, and layers are compiled for a CPU."""

import functools
import json
import logging

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from mdpo import MDPOConfig, MDPOTrainer, cli, training
from mdpo.data import read_rows
from mdpo.memory.size import GIB
from mdpo.models import language_layers, load, load_processor, logps, policy
from mdpo.models.norms import cast_norms_once
from mdpo.packing import pack
from mdpo.trainer import layers, machine
from mdpo.trainer.host_copy import HostCopy, to_device
from mdpo.trainer.manifest import SETTINGS_NAME
from tests import tiny, wide
from tests.models.packed_examples import examples

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    model, data = tiny.world(tmp_path_factory.mktemp("world"), count=6)
    wide.model("llava-llama", layers=1).save_pretrained(model)
    return model, data


@pytest.fixture
def compiles_eagerly(monkeypatch):
    """Traced, but run as they are: compiling takes a minute of a CPU."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU and a compiler, as far as mdpo train looks; the layers stay as they are. Returns a list
    whose last entry is the free memory in GiB."""
    free = [4.0]
    monkeypatch.setattr(machine, "compiler_fault", lambda device: None)
    monkeypatch.setattr(layers, "compile_layers", lambda model: None)
    monkeypatch.setattr(training, "_on_gpu", lambda args: True)
    monkeypatch.setattr(training, "free_memory", lambda device: int(free[-1] * GIB))
    return free


def train(world, folder, *overrides) -> int:
    path = folder / "config.yaml"
    settings = {
        "model_name_or_path": str(world[0]),
        "train_data": str(world[1]),
        "output_dir": str(folder / "out"),
        "examples_per_step": 3,
        "num_train_epochs": 1,
        "lora_r": 2,
        "use_cpu": True,
        "learning_rate": 1e-3,
        "save_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    path.write_text(yaml.safe_dump(settings))
    return cli.main(["train", str(path), *overrides])


def lines(caplog, text: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


def chosen(folder, step: int) -> dict:
    return json.loads((folder / "out" / f"checkpoint-{step}" / SETTINGS_NAME).read_text())["chosen"]


def test_one_line_says_what_was_chosen_and_the_checkpoint_records_it(world, tmp_path, caplog, gpu):
    with caplog.at_level(logging.INFO):
        assert train(world, tmp_path) == 0
    (line,) = lines(caplog, "GiB free")
    assert "4.00 GiB free: checkpoint_layers 0 of 1, token_budget" in line and "layers compiled" in line
    found = chosen(tmp_path, 1)
    assert found["checkpoint_layers"] == 0 and found["layers"] == "compiled"
    assert f"token_budget {found['token_budget']} " in line


def test_a_run_that_goes_on_takes_its_checkpoints_choices_and_ends_bit_for_bit_where_it_did(
    world, tmp_path, caplog, gpu
):
    assert train(world, tmp_path, "--token_budget", "200", "--checkpoint_layers", "1", "--compile_layers", "false") == 0
    before, whole = chosen(tmp_path, 1), load_file(tmp_path / "out" / "adapter_model.safetensors")
    again = str(tmp_path / "out" / "checkpoint-1")
    gpu.append(40.0)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert train(world, tmp_path, "--resume_from_checkpoint", again) == 0
    (line,) = lines(caplog, "GiB free")
    assert "checkpoint_layers 1 of 1, token_budget 200" in line and "as in the checkpoint's run" in line
    assert chosen(tmp_path, 2) == before and before["token_budget"] == 200 and before["layers"] == "eager"
    resumed = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_run_goes_on_where_its_choices_do_not_fit_any_more(world, tmp_path, caplog, gpu):
    assert train(world, tmp_path, "--compile_layers", "false") == 0
    path = tmp_path / "out" / "checkpoint-1"
    gpu.append(0.01)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert train(world, tmp_path, "--resume_from_checkpoint", str(path), "--compile_layers", "false") == 0
    (line,) = lines(caplog, "GiB free")
    assert "still too large for the card by the arithmetic" in line and "checkpoint's run" not in line


def test_what_is_written_stays(world, tmp_path, caplog, gpu):
    written = ["--token_budget", "300", "--checkpoint_layers", "1", "--compile_layers", "false"]
    with caplog.at_level(logging.INFO):
        assert train(world, tmp_path, "--max_steps", "1", *written) == 0
    assert chosen(tmp_path, 1) == {
        "token_budget": 300,
        "checkpoint_layers": 1,
        "gradient_checkpointing": True,
        "layers": "eager",
    }


def test_on_a_cpu_nothing_is_chosen(world, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert train(world, tmp_path, "--max_steps", "1") == 0
    assert not lines(caplog, "GiB free")
    assert chosen(tmp_path, 1) == {
        "token_budget": 16384,
        "checkpoint_layers": None,
        "gradient_checkpointing": False,
        "layers": "eager",
    }


# The layers


def trainer(world, folder, **settings) -> MDPOTrainer:
    model = load(world[0], dtype="float32")
    defaults = {
        "learning_rate": 1e-3,
        "examples_per_step": 3,
        "max_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
    }
    return MDPOTrainer(
        model=model,
        args=MDPOConfig(output_dir=str(folder), **{**defaults, **settings}),
        train_dataset=read_rows(world[1]),
        processing_class=load_processor(world[0]),
    )


def is_compiled(model: nn.Module) -> list[bool]:
    return [layer._compiled_call_impl is not None for layer in language_layers(model)]


def test_a_frozen_reference_is_compiled_as_its_policy_is(world, tmp_path, compiles_eagerly):
    run = trainer(world, tmp_path, compile_layers=True)
    assert run.layers == "compiled" and is_compiled(run.model) == is_compiled(run.policy.reference.frozen) == [True]
    plain = trainer(world, tmp_path)
    assert plain.layers == "eager" and is_compiled(plain.policy.reference.frozen) == [False]
    assert run._cache._path.name != plain._cache._path.name, "a cache filled by one serves the other"


def test_without_a_compiler_layers_run_eagerly_and_one_line_says_why(world, tmp_path, caplog, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    monkeypatch.setattr(torch, "compile", broken)
    run = trainer(world, tmp_path, compile_layers=True)
    (line,) = lines(caplog, "compile_layers")
    assert "run eagerly" in line and line.endswith(
        "Failed to find C compiler. Please specify via CC environment variable."
    )
    monkeypatch.undo()
    assert run.layers == "eager" and is_compiled(run.model) == [False]
    assert run._cache._path.name == trainer(world, tmp_path)._cache._path.name
    run.train()


def test_all_ranks_compile_or_none(world, tmp_path, caplog, monkeypatch, compiles_eagerly):
    monkeypatch.setattr(machine, "from_all_ranks", lambda args, entries: [*entries, "rank 1 has no gcc"])
    assert trainer(world, tmp_path, compile_layers=True).layers == "eager"
    assert lines(caplog, "rank 1 has no gcc")


# What is read late, and what is known once


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_copy_for_the_host_is_of_the_moment_that_asked_for_it(device):
    values = torch.arange(3.0, device=device)
    copy = HostCopy(values)
    values.add_(1)
    assert copy.get().tolist() == [0.0, 1.0, 2.0] and copy.get().is_pinned() == values.is_cuda
    assert torch.equal(to_device(copy.get(), values.device), values - 1)


def test_the_finite_check_is_read_when_the_last_backward_is_queued(world, tmp_path, monkeypatch):
    """And before the optimizer steps, which tests/trainer/test_training.py holds."""
    run, order = trainer(world, tmp_path, token_budget=200), []
    get, backward = HostCopy.get, run.accelerator.backward
    monkeypatch.setattr(HostCopy, "get", lambda self: order.append("read") or get(self))
    monkeypatch.setattr(run.accelerator, "backward", lambda loss: order.append("backward") or backward(loss))
    run.train()
    per_step = order[: len(order) // 2]
    assert per_step.count("backward") > 1 and "backward" not in per_step[per_step.index("read") :]


def test_the_parameters_are_counted_and_the_tower_looked_at_once(world, tmp_path, monkeypatch):
    run = trainer(world, tmp_path)
    counted, looked = [], []
    monkeypatch.setattr(run.model, "num_parameters", lambda **options: counted.append(1) or 7)
    for module in (policy, logps):
        monkeypatch.setattr(module, "vision_parameters", lambda base: looked.append(1) or [])
    run.args.check_start = False
    run.train()
    assert run.state.global_step == 2 and len(counted) <= 1 and not looked
    assert run.state.total_flos % 42 == 0


# Phi's norms


@pytest.mark.parametrize("compiled", [False, True])
def test_a_norm_is_cast_once_and_what_its_readers_read_is_the_same(compiled, compiles_eagerly):
    packed, found, casts = None, [], []
    for once in (False, True):
        model = tiny.bunny().float()
        if once:
            cast_norms_once(model, "cpu")
            cast_norms_once(model, "cpu")
        layer = language_layers(model)[0]
        assert len(layer.input_layernorm._forward_hooks) == once
        if not compiled:
            layer.input_layernorm.register_forward_hook(lambda module, inputs, output: casts.append(output.dtype))
        else:
            for each in language_layers(model):
                each.compile(fullgraph=True, dynamic=True)
        packed = pack(examples("bunny"), model) if packed is None else packed
        with torch.autocast("cpu", torch.bfloat16):
            values = logps.sequence_logps(model, packed)
        values.nan_to_num().sum().backward()
        found.append((values.detach(), torch.cat([p.grad.flatten() for p in layer.parameters()])))
    (plain, gradient), (cast, other) = found
    assert torch.equal(plain.nan_to_num(), cast.nan_to_num())
    assert float((gradient - other).norm() / gradient.norm()) < 2**-7, (
        "one rounding to bf16 of what the readers send back"
    )
    assert compiled or casts == [torch.float32, torch.bfloat16]


def test_outside_of_autocast_a_norm_is_left_alone():
    model = tiny.bunny()
    cast_norms_once(model, "cpu")
    norm = language_layers(model)[0].input_layernorm
    assert norm(torch.randn(2, norm.normalized_shape[0])).dtype == torch.float32
