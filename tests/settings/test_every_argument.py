"""Every field of ``transformers.TrainingArguments`` is in exactly one of three tables: it is honoured, with evidence;
it is refused by name; or it has no effect here, which is said. A version that brings a field that is in none fails
here.
"""

import ast
import copy
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from peft import LoraConfig
from transformers import Trainer, TrainingArguments

import mdpo.cli
import mdpo.trainer.trainer
import mdpo.training
from mdpo import InputError, MDPOConfig, MDPOTrainer
from mdpo.data import read_rows
from mdpo.own_settings import OwnRunSettings, OwnTrainerSettings
from mdpo.settings.arguments import IDLE, REFUSED, idle_arguments
from mdpo.trainer.publishes import Publishes
from mdpo.trainer.terminal import Lines, Progress
from tests import tiny

pytestmark = pytest.mark.slow

DEFAULTS = {
    "learning_rate": 1e-3,
    "examples_per_step": 4,
    "token_budget": 200,
    "num_train_epochs": 1,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
}
ALWAYS_IDLE = {name for name, (condition, _) in IDLE.items() if condition.__name__ == "_always"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return read_rows(tiny.world(tmp_path_factory.mktemp("world"), count=10)[1])


@pytest.fixture(scope="module")
def build(rows, tmp_path_factory) -> Callable[..., MDPOTrainer]:
    """A trainer on ten rows, three steps an epoch; with ``evaluate``, four of the rows are evaluated too."""
    model, processor = tiny.llava(), tiny.processor()

    def make(settings: dict[str, Any], *, evaluate: bool = False, callbacks=None) -> MDPOTrainer:
        folder = tmp_path_factory.mktemp("run")
        return MDPOTrainer(
            model=copy.deepcopy(model),
            args=MDPOConfig(**{"output_dir": str(folder), **DEFAULTS, **settings}),
            train_dataset=rows,
            eval_dataset=rows[:4] if evaluate else None,
            processing_class=processor,
            peft_config=LoraConfig(r=2, target_modules=r".*language_model.*\.q_proj"),
            callbacks=callbacks,
        )

    return make


class Tried(NamedTuple):
    """settings: what is set. evidence: true of the trainer after it has trained; built: before it has, and it
    does not.
    """

    settings: dict[str, Any]
    evidence: Callable[[MDPOTrainer], object] | None = None
    built: Callable[[MDPOTrainer], object] | None = None
    evaluate: bool = False


class Read(NamedTuple):
    """The part of transformers, or of ours, that reads the field; a method of Trainer must not be overridden here."""

    where: Any


class Stops(NamedTuple):
    """What this machine has not, such as a GPU, is said by name. unless: where it is here, reader reads the field."""

    settings: dict[str, Any]
    message: str
    unless: Callable[[], bool] = lambda: False
    reader: Any = TrainingArguments


def installed(package: str) -> Callable[[], bool]:
    return lambda: importlib.util.find_spec(package) is not None


def logged(run: MDPOTrainer, key: str) -> list:
    return [entry[key] for entry in run.state.log_history if key in entry]


def group(run: MDPOTrainer) -> dict[str, Any]:
    return run.optimizer.param_groups[0]


def layers(run: MDPOTrainer) -> list:
    return list(run.model.get_base_model().model.language_model.layers)


def checkpoints(run: MDPOTrainer) -> list[str]:
    return sorted(path.name for path in Path(run.args.output_dir).glob("checkpoint-*"))


def in_checkpoint(run: MDPOTrainer) -> set[str]:
    return {path.name for path in Path(run.args.output_dir, "checkpoint-3").iterdir()}


def moved(run: MDPOTrainer) -> float:
    return max(float(p.detach().abs().max()) for n, p in run.model.named_parameters() if "lora_B" in n)


INTEGRATIONS = "transformers.integrations.integration_utils"
SAVING = {"save_strategy": "epoch"}
EVALUATING = {"eval_strategy": "steps", "eval_steps": 1}
BEST = {**EVALUATING, "save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True}
WORKERS = {"dataloader_num_workers": 1}

HONOURED: dict[str, Tried | Read | Stops] = {
    "output_dir": Tried({}, built=lambda run: Path(run.args.output_dir).is_dir()),
    "num_train_epochs": Tried({"num_train_epochs": 2}, lambda run: run.state.global_step == 6),
    "max_steps": Tried({"max_steps": 2}, lambda run: run.state.global_step == 2),
    "learning_rate": Tried({"learning_rate": 0.25}, lambda run: logged(run, "learning_rate")[0] == 0.25),
    "lr_scheduler_type": Tried(
        {"lr_scheduler_type": "linear"}, lambda run: logged(run, "learning_rate")[-1] < logged(run, "learning_rate")[0]
    ),
    "lr_scheduler_kwargs": Tried(
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 9e-4}},
        lambda run: 9e-4 <= logged(run, "learning_rate")[-1] < 1e-3,
    ),
    "warmup_steps": Tried(
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2},
        lambda run: logged(run, "learning_rate") == [0, 5e-4, 1e-3],
    ),
    "optim": Tried({"optim": "sgd"}, lambda run: isinstance(run.optimizer.optimizer, torch.optim.SGD)),
    "optim_args": Tried({"optim": "sgd", "optim_args": "momentum=0.5"}, lambda run: group(run)["momentum"] == 0.5),
    "optim_target_modules": Read(Trainer),
    "weight_decay": Tried({"weight_decay": 0.5}, lambda run: group(run)["weight_decay"] == 0.5),
    "adam_beta1": Tried({"adam_beta1": 0.5}, lambda run: group(run)["betas"][0] == 0.5),
    "adam_beta2": Tried({"adam_beta2": 0.5}, lambda run: group(run)["betas"][1] == 0.5),
    "adam_epsilon": Tried({"adam_epsilon": 0.5}, lambda run: group(run)["eps"] == 0.5),
    "max_grad_norm": Tried(
        {"max_grad_norm": 1e-6, "optim": "sgd", "learning_rate": 1.0}, lambda run: 0 < moved(run) < 4e-6
    ),
    "bf16": Tried({"bf16": True}, built=lambda run: run.accelerator.mixed_precision == "bf16"),
    "fp16": Stops({"fp16": True}, "fp16: a CPU"),
    "tf32": Stops({"tf32": True}, "tf32 requires Ampere", unless=torch.cuda.is_available),
    "activation_checkpointing": Tried(
        {"activation_checkpointing": True}, lambda run: layers(run)[0].gradient_checkpointing
    ),
    "gradient_checkpointing": Tried(
        {"gradient_checkpointing": True}, lambda run: layers(run)[0].gradient_checkpointing
    ),
    "activation_checkpointing_kwargs": Tried(
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
        lambda run: layers(run)[0]._gradient_checkpointing_func.keywords["use_reentrant"],
    ),
    "gradient_checkpointing_kwargs": Tried(
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        lambda run: layers(run)[0]._gradient_checkpointing_func.keywords["use_reentrant"],
    ),
    "torch_compile": Tried(
        {"torch_compile": True}, built=lambda run: run.accelerator.state.dynamo_plugin.backend.value == "INDUCTOR"
    ),
    "torch_compile_backend": Tried(
        {"torch_compile_backend": "eager"},
        built=lambda run: run.accelerator.state.dynamo_plugin.backend.value == "EAGER",
    ),
    "torch_compile_mode": Tried(
        {"torch_compile_mode": "max-autotune"},
        built=lambda run: run.accelerator.state.dynamo_plugin.mode == "max-autotune",
    ),
    "use_liger_kernel": Stops(
        {"use_liger_kernel": True}, "needs liger-kernel", installed("liger_kernel"), Trainer.train
    ),
    "liger_kernel_config": Read(Trainer.train),
    "use_cache": Tried({"use_cache": True}, built=lambda run: run.model.config.use_cache),
    "torch_empty_cache_steps": Tried({"torch_empty_cache_steps": 2}, lambda run: run.emptied == 2),
    "logging_strategy": Tried({"logging_strategy": "epoch"}, lambda run: len(logged(run, "loss")) == 1),
    "logging_steps": Tried({"logging_steps": 2}, lambda run: len(logged(run, "loss")) == 1),
    "logging_first_step": Tried(
        {"logging_steps": 3, "logging_first_step": True}, lambda run: len(logged(run, "loss")) == 2
    ),
    "log_on_each_node": Read(TrainingArguments.should_log.fget),
    "include_num_input_tokens_seen": Tried(
        {"include_num_input_tokens_seen": True},
        lambda run: logged(run, "num_input_tokens_seen")[-1] == sum(run.train_dataset.lengths),
    ),
    "log_level": Tried({"log_level": "error"}, built=lambda run: transformers.logging.get_verbosity() == 40),
    "log_level_replica": Read(TrainingArguments.get_process_log_level),
    "disable_tqdm": Tried(
        {"disable_tqdm": False},
        built=lambda run: {Progress} <= kinds(run) and Lines not in kinds(run),
    ),
    "report_to": Stops({"report_to": ["azure_ml"]}, "(?i)azure", unless=installed("azureml")),
    "run_name": Read(INTEGRATIONS),
    "project": Read(INTEGRATIONS),
    "trackio_space_id": Read(INTEGRATIONS),
    "trackio_bucket_id": Read(INTEGRATIONS),
    "trackio_static_space_id": Read(INTEGRATIONS),
    "eval_strategy": Tried({"eval_strategy": "epoch"}, lambda run: len(logged(run, "eval_loss")) == 1, evaluate=True),
    "eval_steps": Tried({"eval_steps": 1}, lambda run: len(logged(run, "eval_loss")) == 3, evaluate=True),
    "eval_delay": Tried({**EVALUATING, "eval_delay": 2}, lambda run: len(logged(run, "eval_loss")) == 2, evaluate=True),
    "eval_on_start": Tried(
        {"eval_strategy": "epoch", "eval_on_start": True}, lambda run: len(logged(run, "eval_loss")) == 2, evaluate=True
    ),
    "prediction_loss_only": Tried(
        {"prediction_loss_only": True}, built=lambda run: run.predict(run.train_dataset).predictions is None
    ),
    "save_only_model": Tried({**SAVING, "save_only_model": True}, lambda run: "optimizer.pt" not in in_checkpoint(run)),
    "save_strategy": Tried(SAVING, lambda run: checkpoints(run) == ["checkpoint-3"]),
    "save_steps": Tried(
        {"save_strategy": "steps", "save_steps": 2}, lambda run: checkpoints(run) == ["checkpoint-2", "checkpoint-3"]
    ),
    "save_total_limit": Tried(
        {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1},
        lambda run: checkpoints(run) == ["checkpoint-3"],
    ),
    "save_on_each_node": Read(TrainingArguments.should_save.fget),
    "load_best_model_at_end": Tried(
        BEST, lambda run: run.evaluate()["eval_loss"] == pytest.approx(run.state.best_metric, abs=1e-6), evaluate=True
    ),
    "metric_for_best_model": Tried(
        {**BEST, "metric_for_best_model": "rewards/margins"},
        lambda run: run.state.best_metric == max(logged(run, "eval_rewards/margins")),
        evaluate=True,
    ),
    "greater_is_better": Tried(
        {**BEST, "metric_for_best_model": "rewards/margins", "greater_is_better": False},
        lambda run: run.state.best_metric == min(logged(run, "eval_rewards/margins")),
        evaluate=True,
    ),
    "ignore_data_skip": Read(Trainer._run_epoch if hasattr(Trainer, "_run_epoch") else Trainer),
    "restore_callback_states_from_checkpoint": Read(Trainer._load_callback_state),
    "full_determinism": Tried(
        {"full_determinism": True}, built=lambda run: torch.are_deterministic_algorithms_enabled()
    ),
    "seed": Tried({"seed": 7}, lambda run: run.sampler.settings["seed"] == 7 and torch.initial_seed() == 7),
    "data_seed": Tried({"data_seed": 7}, lambda run: run.sampler.settings["seed"] == 7),
    "use_cpu": Tried({"use_cpu": True}, built=lambda run: run.args.device.type == "cpu"),
    "accelerator_config": Tried(
        {"accelerator_config": {"use_configured_state": True}}, built=lambda run: run.args.distributed_state is not None
    ),
    "dataloader_num_workers": Tried(WORKERS, built=lambda run: run.get_train_dataloader().num_workers == 1),
    "dataloader_pin_memory": Read(MDPOTrainer._dataloader),
    "dataloader_persistent_workers": Tried(
        {**WORKERS, "dataloader_persistent_workers": True},
        built=lambda run: run.get_train_dataloader().persistent_workers,
    ),
    "dataloader_prefetch_factor": Tried(
        {**WORKERS, "dataloader_prefetch_factor": 3}, built=lambda run: run.get_train_dataloader().prefetch_factor == 3
    ),
    "dataloader_multiprocessing_context": Tried(
        {**WORKERS, "dataloader_multiprocessing_context": "spawn"},
        built=lambda run: run.get_train_dataloader().multiprocessing_context.get_start_method() == "spawn",
    ),
    "ddp_find_unused_parameters": Tried(
        {"ddp_find_unused_parameters": False}, built=lambda run: not run.accelerator.ddp_handler.find_unused_parameters
    ),
    "ddp_bucket_cap_mb": Tried(
        {"ddp_bucket_cap_mb": 7}, built=lambda run: run.accelerator.ddp_handler.bucket_cap_mb == 7
    ),
    "ddp_broadcast_buffers": Tried(
        {"ddp_broadcast_buffers": False}, built=lambda run: not run.accelerator.ddp_handler.broadcast_buffers
    ),
    "ddp_static_graph": Tried({"ddp_static_graph": True}, built=lambda run: run.accelerator.ddp_handler.static_graph),
    "ddp_backend": Read(TrainingArguments._setup_devices.func),
    "ddp_timeout": Read(TrainingArguments._setup_devices.func),
    "fsdp": Stops({"fsdp": "full_shard"}, "fsdp: this is a single process"),
    "fsdp_config": Read(TrainingArguments._process_fsdp_args),
    "deepspeed": Stops(
        {"deepspeed": {"zero_optimization": {"stage": 2}}},
        "deepspeed: the package is not",
        unless=installed("deepspeed"),
    ),
    "debug": Tried({"debug": "underflow_overflow"}, lambda run: any(m._forward_hooks for m in run.model.modules())),
    "skip_memory_metrics": Tried({"skip_memory_metrics": False}, lambda run: logged(run, "train_mem_cpu_alloc_delta")),
    "do_train": Read(mdpo.config._read_do_flags),
    "do_eval": Stops({"do_eval": True}, "do_eval: no rows to evaluate on"),
    "resume_from_checkpoint": Read(mdpo.training.train),
    "push_to_hub": Read(mdpo.training._train),
    "hub_model_id": Read(Publishes._make_repository),
    "hub_token": Read(Publishes._make_repository),
    "hub_private_repo": Read(Publishes._make_repository),
    "hub_revision": Read(Publishes.upload),
}


def kinds(run: MDPOTrainer) -> set[type]:
    return {type(callback) for callback in run.callback_handler.callbacks}


NAMES = [field.name for field in fields(TrainingArguments)]
# Fields of one end of the versions that are supported, 5.17 to 5.23, alone.
SOME_VERSIONS = {"activation_checkpointing", "activation_checkpointing_kwargs"}


@pytest.mark.parametrize("name", NAMES)
def test_a_field_stands_in_one_table(name):
    tables = [name in HONOURED, name in REFUSED, name in ALWAYS_IDLE]
    assert sum(tables) == 1, "honoured with evidence, refused with a reason, or said to have no effect"


def test_the_tables_name_nothing_else():
    assert {*HONOURED, *REFUSED, *IDLE} - {*NAMES} <= SOME_VERSIONS


def here(table: dict) -> list[str]:
    return [name for name in table if name in NAMES]


@pytest.fixture
def restored():
    """What settings change outside of their run."""
    verbosity, benchmark = transformers.logging.get_verbosity(), torch.backends.cudnn.benchmark
    with pytest.MonkeyPatch.context() as patch:
        # full_determinism sets these for CUDA's libraries; remembered here, they are put back
        for name in (
            "CUDA_LAUNCH_BLOCKING",
            "CUBLAS_WORKSPACE_CONFIG",
            "ASCEND_LAUNCH_BLOCKING",
            "HCCL_DETERMINISTIC",
            "FLASH_ATTENTION_DETERMINISTIC",
        ):
            patch.setenv(name, "0")
        yield
    transformers.logging.set_verbosity(verbosity)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, benchmark


@pytest.mark.parametrize("name", here(HONOURED))
def test_what_is_honoured_has_its_effect(name, build, restored, monkeypatch):
    entry = HONOURED[name]
    if isinstance(entry, Stops) and entry.unless():
        entry = Read(entry.reader)
    if isinstance(entry, Read):
        assert (
            f"args.{name}" in source(entry.where)
            or f"self.{name}" in source(entry.where)
            or f'"{name}"' in source(entry.where)
        )
        return
    if isinstance(entry, Stops):
        with pytest.raises((InputError, RuntimeError), match=entry.message):
            build(entry.settings)
        return
    emptied = []
    monkeypatch.setattr(mdpo.trainer.trainer, "clear_device_cache", lambda: emptied.append(1))
    run = build(entry.settings, evaluate=entry.evaluate)
    if entry.built is not None:
        assert entry.built(run)
    if entry.evidence is not None:
        run.train()
        run.emptied = len(emptied)
        assert entry.evidence(run)


def source(where: Any) -> str:
    if where is Trainer:
        modules = ("transformers.trainer", "transformers.trainer_optimizer")  # the second one is new
        return "".join(inspect.getsource(sys.modules[name]) for name in modules if name in sys.modules)
    if isinstance(where, str):
        return inspect.getsource(__import__(where, fromlist=["_"]))
    if where.__qualname__.startswith("Trainer."):
        ours = getattr(MDPOTrainer, where.__name__)
        calls = ours is where or f"super().{where.__name__}(" in inspect.getsource(ours)
        assert calls, "overridden without a call of it: the setting may be read no more"
    return inspect.getsource(where)


def test_trackers_get_the_trainer_s_own_arguments(build):
    seen = []

    class Tracker(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            seen.append(args)

    run = build({"max_steps": 1}, callbacks=[Tracker])
    run.train()
    assert seen == [run.args]


OTHER_VALUES = {
    "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "gradient_accumulation_steps": 2,
    "auto_find_batch_size": True, "label_smoothing_factor": 0.1, "neftune_noise_alpha": 5.0,
    "train_sampling_strategy": "sequential", "dataloader_drop_last": True, "dataloader_in_order": False,
    "bf16_full_eval": True, "fp16_full_eval": True, "include_for_metrics": ["inputs"], "batch_eval_metrics": True,
    "enable_jit_checkpoint": True, "parallelism_config": object(), "do_predict": True,
}  # fmt: skip


@pytest.mark.parametrize("name", here(REFUSED))
def test_what_is_refused_is_refused_by_name_with_what_to_do(name, tmp_path):
    with pytest.raises(InputError, match=f"^{name}: ") as error:
        MDPOConfig(output_dir=str(tmp_path), use_cpu=True, **{name: OTHER_VALUES[name]})
    assert ";" in str(error.value) and "\n" not in str(error.value)


WITHOUT_EFFECT = {
    "average_tokens_across_devices": {"average_tokens_across_devices": False},
    "logging_nan_inf_filter": {"logging_nan_inf_filter": True},
    "eval_do_concat_batches": {"eval_do_concat_batches": False},
    "eval_use_gather_object": {"eval_use_gather_object": True},
    "eval_accumulation_steps": {"eval_accumulation_steps": 2},
    "remove_unused_columns": {"remove_unused_columns": True},
    "label_names": {"label_names": ["x"]},
    "length_column_name": {"length_column_name": "x"},
    "local_rank": {"local_rank": 0},
    "hub_token": {"hub_token": "x"},
    "hub_private_repo": {"hub_private_repo": True},
    "hub_model_id": {"hub_model_id": "x"},
    "hub_strategy": {"hub_strategy": "end"},
    "hub_always_push": {"hub_always_push": True},
    "hub_revision": {"hub_revision": "x"},
    "run_name": {"run_name": "x"},
    "project": {"project": "x"},
    "trackio_space_id": {"trackio_space_id": "x"},
    "trackio_bucket_id": {"trackio_bucket_id": "x"},
    "trackio_static_space_id": {"trackio_static_space_id": "x"},
    "liger_kernel_config": {"liger_kernel_config": {"rope": True}},
    "activation_checkpointing_kwargs": {"activation_checkpointing_kwargs": {"use_reentrant": False}},
    "gradient_checkpointing_kwargs": {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "fsdp_config": {"fsdp_config": {"version": 2}},
    "optim_target_modules": {"optim_target_modules": ["q_proj"]},
    "adam_beta1": {"adam_beta1": 0.5, "optim": "sgd"},
    "adam_beta2": {"adam_beta2": 0.5, "optim": "adafactor"},
    "adam_epsilon": {"adam_epsilon": 0.5, "optim": "sgd"},
    "warmup_steps": {"warmup_steps": 3},
    "num_train_epochs": {"num_train_epochs": 5, "max_steps": 3},
    "logging_steps": {"logging_steps": 3, "logging_strategy": "epoch"},
    "save_steps": {"save_steps": 3},
    "save_total_limit": {"save_total_limit": 3},
    "save_only_model": {"save_only_model": True},
    "eval_steps": {"eval_steps": 3, "eval_strategy": "epoch"},
    "eval_delay": {"eval_delay": 1, "eval_strategy": "no"},
}


@pytest.mark.parametrize("name", here(IDLE))
def test_what_has_no_effect_is_said_once(name, build, caplog):
    settings = WITHOUT_EFFECT[name]
    build(settings, evaluate=name.startswith("eval_"))
    renamed = name.startswith("gradient") and "activation_checkpointing_kwargs" in NAMES
    said = name.replace("gradient", "activation") if renamed else name
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith(f"{said}: no effect, ")]
    assert len(lines) == 1


def test_a_plain_run_says_nothing(tmp_path, rows):
    assert idle_arguments(MDPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")) == []


@pytest.mark.parametrize("kind", [OwnTrainerSettings, OwnRunSettings])
def test_a_setting_of_our_own_has_a_help_text_and_is_read(kind):
    read: set[str] = set()
    for path in Path(mdpo.cli.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            elif (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and path.name not in ("config.py", "own_settings.py")
            ):
                read.add(node.value)  # getattr(run, name)
    own = [field for field in fields(kind) if field.name in kind.__annotations__ and field.name not in NAMES]
    assert own
    for field in own:
        assert field.metadata.get("help"), f"{field.name} has no help text"
        assert field.name in read, f"{field.name} is read nowhere"
