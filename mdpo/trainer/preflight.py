"""What would end a run late, tried before its first step: settings before the model is loaded, then the model with its
processor, and the files that will be saved."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, Trainer
from transformers.integrations import get_available_reporting_integrations, get_reporting_integration_callbacks

from mdpo.config import MDPOConfig
from mdpo.errors import InputError, OutputError
from mdpo.models.folder import short
from mdpo.models.generation_config import repair_generation_config
from mdpo.models.logps import unwrap
from mdpo.output_checks import check_output_folder
from mdpo.outputs import scratch_folder, unwritten

_log = logging.getLogger(__name__)

# Optimizers that transformers can only build for a model: before there is one, only what they need is asked for.
_OF_A_MODEL = ("galore", "apollo")


def check_settings(args: MDPOConfig, *, optimizer: bool = False) -> None:
    """What can be tried before the model is loaded.

    optimizer: whether the caller brings one.

    Raises InputError, naming the setting, where a folder cannot be written to or a package is not installed.
    """
    if args.should_save:
        check_output_folder(str(args.output_dir), "output_dir")
    if args.cache_reference and args.reference_cache_dir is not None and args.process_index == 0:
        check_output_folder(args.reference_cache_dir, "reference_cache_dir")
    _check_trackers(args)
    if not optimizer:
        _check_optimizer(args)


def _check_trackers(args: MDPOConfig) -> None:
    """Trackers are made as Trainer makes them, which asks for a package that is not installed."""
    for name in args.report_to or []:
        if name == "mlflow" and name not in get_available_reporting_integrations():
            # Asked itself, transformers' class leaves an object behind whose end prints a traceback.
            raise InputError(
                f"report_to: {name!r} cannot be used (it is not installed); install it, or set report_to: none"
            )
        try:
            for tracker in get_reporting_integration_callbacks([name]):
                tracker()
        except Exception as error:  # each tracker has its own
            raise InputError(
                f"report_to: {name!r} cannot be used ({short(error)}); install it, or set report_to: none"
            ) from error


def _check_optimizer(args: MDPOConfig) -> None:
    name = getattr(args.optim, "value", args.optim)
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"optim: {name!r} cannot be used ({short(error)}); install it, or use adamw_torch") from error
    except (ValueError, TypeError) as error:
        if name.startswith(_OF_A_MODEL) and args.optim_target_modules is not None:
            return  # it asks for the model
        raise InputError(f"optim: {name!r} cannot be used ({short(error)}); correct it, or use adamw_torch") from error


def check_arguments(model: Any, args: Any, processing_class: Any, peft_config: Any, **rows: Any) -> None:
    """Raises InputError where an argument of the trainer is of the wrong kind, with what to pass instead.

    rows: the data sets by their argument's name.
    """
    if isinstance(model, (str, Path)):
        raise InputError(f"model: {str(model)!r} is a path; pass the model: mdpo.models.load({str(model)!r})")
    if not isinstance(model, (PreTrainedModel, PeftModel)):
        raise InputError(f"model is a {type(model).__name__}; expected a Hugging Face model or a PEFT model")
    if unwrap(model).get_output_embeddings() is None:
        raise InputError(
            f"model: a {type(unwrap(model)).__name__} has no language-model head; load it with mdpo.models.load, or "
            "transformers' AutoModelForImageTextToText"
        )
    if not isinstance(args, MDPOConfig):
        raise InputError(f"args is a {type(args).__name__}; expected an mdpo.MDPOConfig, which has mDPO's settings")
    if peft_config is not None and not isinstance(peft_config, PeftConfig):
        raise InputError(f"peft_config is a {type(peft_config).__name__}; expected a peft.LoraConfig or its like")
    for name, value in rows.items():
        if isinstance(value, (str, Path)):
            raise InputError(f"{name}: {str(value)!r} is a path; pass the rows: mdpo.data.read_rows({str(value)!r})")
    _check_processing_class(processing_class)
    if getattr(model, "_hf_peft_config_loaded", False) and not isinstance(model, PeftModel):
        raise InputError(
            "model: it contains an adapter added by transformers' add_adapter, whose checkpoints cannot be resumed; "
            "wrap the bare model with peft.get_peft_model, or pass peft_config"
        )
    method = getattr(model, "quantization_method", None)
    method = getattr(method, "value", method)
    if method not in (None, "bitsandbytes"):
        raise InputError(
            f"model: its weights are quantised with {method}, which is not trained on here; load the unquantised "
            "model, with load_in_4bit where memory is short"
        )


def _check_processing_class(processing_class: Any) -> None:
    if processing_class is None:
        raise InputError("processing_class is missing: give the model's processor")
    if isinstance(processing_class, (str, Path)):
        path = str(processing_class)
        raise InputError(f"processing_class: {path!r} is a path; pass mdpo.models.load_processor({path!r})")
    if not isinstance(processing_class, ProcessorMixin) or not hasattr(processing_class, "image_processor"):
        kind = "tokenizer" if isinstance(processing_class, PreTrainedTokenizerBase) else type(processing_class).__name__
        raise InputError(
            f"processing_class is a {kind}; expected the model's processor, with its image processor; pass "
            "mdpo.models.load_processor(folder), or transformers' AutoProcessor"
        )


def check_saving(model: nn.Module, processor: Any, folder: str | Path) -> None:
    """Saves, into a folder that goes away again, everything that stands beside the weights.

    folder: on the disk where the results go. A generation config that can be repaired is, in the model.

    Raises InputError naming the part that cannot be saved, and OutputError where the disk is full.
    """
    base = unwrap(model)
    if not isinstance(model, PeftModel):
        repair_generation_config(model)
    parts: Sequence[tuple[str, Any]] = (
        [("peft_config", config) for config in model.peft_config.values()]
        if isinstance(model, PeftModel)
        else [("the model's config", base.config), ("generation_config", getattr(base, "generation_config", None))]
    )
    with scratch_folder(folder) as trial:
        for name, part in [*((name, copy.deepcopy(part)) for name, part in parts), ("processing_class", processor)]:
            try:
                if part is not None:
                    part.save_pretrained(trial)
            except Exception as error:  # whatever it is, it would come after the training otherwise
                if str(unwritten(error)).startswith("the disk is full"):
                    raise OutputError(
                        f"output_dir: {folder}: {unwritten(error)}, and nothing is trained yet; make room, or "
                        "give another --output_dir, and run the same command again"
                    ) from error
                raise InputError(f"{name} cannot be saved: {short(error)}; correct it before training") from error
