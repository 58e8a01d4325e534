"""What a configuration asks for, in the terms that a plan is made in: a shape, examples, and what is left open.

What the user has written stays: an optimizer, a number of checkpointed layers, weights in 4 bits or not.
"""

import re
from pathlib import Path

from accelerate.utils import parse_flag_from_env
from transformers import PreTrainedConfig, ProcessorMixin

from mdpo.config import MDPOConfig, RunConfig
from mdpo.data import DataOptions, PictureSize, PreferenceDataset, data_files, rows_of_run, size_pictures
from mdpo.errors import InputError
from mdpo.hub import cached_config, folder_of, hub_name
from mdpo.models import load_processor, lora_expression, torch_dtype
from mdpo.models.adapters import adapter_config
from mdpo.models.load import model_config
from mdpo.objectives import objective_of
from mdpo.packing import family_of_config

from .choose import Constraints, wished_optimizers
from .counted import Unplanned
from .footprint import ADAM_BYTES, DRIVER_BYTES
from .lengths import Data, Examples, from_lengths, log_normal
from .pictures import largest_picture, picture_of
from .precision import Precision
from .shapes import SHAPES, Adaptation, ModelShape, read_shape, with_picture

_PROCESSORS = ("processor_config.json", "preprocessor_config.json")  # one of them, in every folder with a processor


def unplanned(run: RunConfig, args: MDPOConfig) -> str | None:
    """Why the arithmetic does not hold for a configuration, naming the setting; None where it does."""
    if optimizer_of(args) not in ADAM_BYTES:
        return f"optim: {optimizer_of(args)!r} is not planned for; choose from {', '.join(ADAM_BYTES)}"
    if not (run.use_lora or (run.freeze_vision_tower and run.freeze_multi_modal_projector)):
        return "freeze_vision_tower, freeze_multi_modal_projector: only frozen ones are planned for"
    return None


def optimizer_of(args: MDPOConfig) -> str:
    return str(getattr(args.optim, "value", args.optim))


def is_sharded(args: MDPOConfig) -> bool:
    """Whether weights, gradients or an optimizer's states are spread over the processes."""
    by_launcher = parse_flag_from_env("ACCELERATE_USE_FSDP")  # as accelerate launch says it
    return bool(args.fsdp) or by_launcher or args.deepspeed_plugin is not None


def layers_by(args: MDPOConfig, shape: ModelShape | None = None) -> str:
    """Whose layers a run on a GPU has: "compiled", unless the user wants them otherwise, they are sharded or the
    model's are not compiled, "eager", or "Liger's"."""
    if args.use_liger_kernel:
        return "Liger's"
    if shape is not None and shape.eager is not None:
        return "eager"
    if "compile_layers" in args.given:
        return "compiled" if args.compile_layers else "eager"
    if args.torch_compile:
        return "as torch_compile makes them"
    return "eager" if is_sharded(args) else "compiled"


def shape_of(run: RunConfig, args: MDPOConfig, lora_pattern: str) -> ModelShape:
    """lora_pattern: LoRA's targets where the run names none.

    Raises InputError where the model's config is not here, or no model that can be trained, and Unplanned where nothing
    is known of such a model.
    """
    config = _model_config(run)
    try:
        return read_shape(config, _adaptation(run, args, lora_pattern))
    except InputError:
        raise
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError) as error:  # a config of another make
        raise Unplanned(
            f"model_name_or_path: the memory of a {config.model_type!r} model cannot be planned, since its config "
            f"is of another make ({error}); set token_budget and gradient_checkpointing by hand"
        ) from error


def constraints_of(
    run: RunConfig,
    args: MDPOConfig,
    shape: ModelShape,
    *,
    cuda: bool,
    exact: bool = False,
    driver_bytes: int = DRIVER_BYTES,
) -> Constraints:
    """exact: whether precision and optimizer stay as they are, also where the user has not chosen them.

    Raises InputError where the model has fewer layers than are to be checkpointed.
    """
    chosen = exact or "load_in_4bit" in run.given or not run.use_lora
    return Constraints(
        precision=precision_of(run, args, shape, cuda=cuda),
        quantized=(True,) if run.load_in_4bit else (False,) if chosen else (False, True),
        optimizers=(optimizer_of(args),) if exact or "optim" in args.given else wished_optimizers(optimizer_of(args)),
        token_budget=args.token_budget,
        examples_per_step=args.examples_per_step,
        checkpointed=checkpointed_by(args, shape.layers),
        compiled=layers_by(args, shape) == "compiled" if cuda else args.compile_layers and shape.eager is None,
        driver_bytes=driver_bytes,
    )


def precision_of(run: RunConfig, args: MDPOConfig, shape: ModelShape, *, cuda: bool) -> Precision:
    weight_bytes = shape.dtype_bytes if run.dtype == "auto" else torch_dtype(run.dtype).itemsize
    return Precision(weight_bytes=weight_bytes, autocast=args.bf16 or args.fp16, cuda=cuda, liger=args.use_liger_kernel)


def checkpointed_by(args: MDPOConfig, layers: int) -> int | None:
    """The layers that the user has checkpointed, of so many; None where that is left open."""
    if not args.has_checkpointing:
        return None
    if args.checkpoint_layers is None:
        return layers if args.gradient_checkpointing else 0
    if args.checkpoint_layers > layers:
        raise InputError(f"checkpoint_layers is {args.checkpoint_layers}; expected at most the model's {layers} layers")
    return args.checkpoint_layers


def _adaptation(run: RunConfig, args: MDPOConfig, lora_pattern: str) -> Adaptation:
    if run.adapter_name_or_path is None:
        pattern = lora_expression(run.lora_target_modules or lora_pattern)
        return Adaptation(rank=run.lora_r if run.use_lora else 0, pattern=pattern)
    config = adapter_config(run.adapter_name_or_path)
    targets = config.get("target_modules") or lora_pattern
    if not isinstance(targets, str):  # peft takes the end of a name
        targets = rf"(.*\.)?({'|'.join(map(re.escape, targets))})"
    return Adaptation(rank=config.get("r", run.lora_r), pattern=targets, is_reference=args.reference != "base")


def _model_config(run: RunConfig) -> PreTrainedConfig:
    if run.plan_model_shape is not None:
        if run.plan_model_shape not in SHAPES:
            raise InputError(f"plan_model_shape: {run.plan_model_shape!r} is unknown; choose from {', '.join(SHAPES)}")
        if cached_config(run.model_name_or_path) is None:  # a plan for what is not here yet needs no network
            return SHAPES[run.plan_model_shape]()
    remedy = f"set plan_model_shape to one of {', '.join(SHAPES)}"
    try:
        folder = folder_of(run.model_name_or_path, "config")
    except InputError as error:
        raise InputError(f"model_name_or_path: {error}, or {remedy}") from error
    if not (folder / "config.json").is_file():
        raise InputError(f"model_name_or_path: {folder} has no config.json to plan from; put it there, or {remedy}")
    return model_config(folder)


def _has_processor(run: RunConfig) -> bool:
    """Whether the processor can be had: it is small, so that of a model on the hub it is fetched, where there is a
    network.
    """
    if Path(run.model_name_or_path).expanduser().is_dir():
        return True
    if (
        hub_name(run.model_name_or_path) is None
        or run.plan_model_shape is not None
        and cached_config(run.model_name_or_path) is None
    ):
        return False
    return any((folder_of(run.model_name_or_path, "settings") / name).is_file() for name in _PROCESSORS)


def examples_of(run: RunConfig, args: MDPOConfig, shape: ModelShape) -> tuple[ModelShape, Examples]:
    """The examples of the data where it and the processor are on this machine, else those that the configuration says;
    and the shape, with its images as large as the processor makes them.

    Raises InputError where it says nothing, where a row cannot be read, and where one is longer than the token_budget
    that the user has written, as training would.
    """
    named = list(run.train_data) if isinstance(run.train_data, dict) else run.train_data
    if data_files(named) and _has_processor(run):
        dataset = PreferenceDataset(
            rows_of_run(run.train_data, run, args), _processor(run), DataOptions.of(args, objective_of(args))
        )
        if "token_budget" in args.given:
            dataset.check_budget(args.token_budget, family_of_config(_model_config(run)))
        return counted(args, shape, data_of(run, dataset))
    keys = ("plan_prompt_tokens", "plan_response_tokens_median", "plan_response_tokens_max")
    missing = [key for key in keys if getattr(run, key) is None]
    if missing:
        raise InputError(
            f"train_data: {run.train_data} or the processor in {run.model_name_or_path} is not on this machine, so its "
            f"lengths are not known: set {', '.join(missing)}"
        )
    prompt, median, most = (getattr(run, key) for key in keys)
    if args.max_length is not None:
        most = min(most, args.max_length - prompt)
    if min(prompt, median, most) < 1:
        raise InputError(f"{', '.join(keys)} do not fit; expected numbers above 0 that max_length leaves room for")
    if PictureSize.of(run).values() and not args.drop_images and _has_processor(run):
        shape = with_picture(shape, largest_picture(_processor(run), _model_config(run)))
    return shape, log_normal(
        prompt_tokens=prompt,
        response_tokens_median=median,
        response_tokens_max=most,
        image_tokens=shape.image_tokens,
        branches=args.branches,
        with_images=not args.drop_images,
        separate=shape.separate,
    )


def data_of(run: RunConfig, dataset: PreferenceDataset) -> Data:
    """What a plan is made from of the rows, as they are laid out for the model."""
    config = _model_config(run)
    largest = dataset.largest_picture()
    return Data(
        dataset.lengths_for(family_of_config(config)).tolist(),
        dataset.scored_lengths().tolist(),
        None if largest is None else picture_of(dataset.processor, config, largest),
    )


def counted(args: MDPOConfig, shape: ModelShape, data: Data) -> tuple[ModelShape, Examples]:
    """The examples, and the shape with images as large as theirs."""
    if data.picture is not None:
        shape = with_picture(shape, data.picture)
    objective = objective_of(args)
    pictures = objective.pictures
    branches = sum(pictures.values()) if shape.separate else 1
    images = objective.images
    if shape.separate:  # each branch encodes its own
        images = sum(count for picture, count in pictures.items() if picture != "none")
    return shape, from_lengths(
        data.lengths,
        images=0 if args.drop_images else images,
        image_tokens=shape.image_tokens,
        branches=branches,
        separate=shape.separate,
        scored=data.scored,
    )


def _processor(run: RunConfig) -> ProcessorMixin:
    return size_pictures(load_processor(run.model_name_or_path), PictureSize.of(run))
