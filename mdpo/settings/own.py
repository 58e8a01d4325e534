"""The settings that are not transformers': their types where Python gives them, and those that do not go together.

They are functions on ``MDPOConfig`` and ``RunConfig`` objects, which ``mdpo.config`` defines.
"""

import functools
import typing
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from typing import Any

from mdpo.errors import InputError

from .arguments import default_of
from .types import alternatives, coerce, shown

Condition = Callable[[Any], bool]

# Of the objective mdpo alone.
MDPO_PARAMETERS = ("conditional", "anchors", "anchor")


def read_types(config: Any, own: Collection[str]) -> None:
    """Holds the values of a config to their fields' types, in place, as a YAML file's are: "chosen" is ["chosen"].

    own: the fields of our own. There, none and null are none, as the help prints it; of transformers' fields, in which
    such a word can be a value, only the numbers and texts are looked at. Raises InputError that names the setting.
    """
    for name, hint in _type_hints(type(config)).items():
        if not hasattr(config, name):
            continue
        value, options = getattr(config, name), alternatives(hint)
        if name in own:
            if type(None) in options and isinstance(value, str) and value.lower() in ("none", "null"):
                setattr(config, name, None)
                continue
        elif not set(options) <= {int, float, str, type(None)}:
            continue
        if not any(_fits(value, option) for option in options):
            setattr(config, name, coerce(value, hint, name))


@functools.cache
def _type_hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.init}


def _fits(value: Any, option: Any) -> bool:
    kind = typing.get_origin(option) or option
    if kind is list:
        return isinstance(value, list) and all(_fits(entry, typing.get_args(option)[0]) for entry in value)
    if isinstance(value, bool) and kind in (int, float):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def given(config: Any, own: Collection[str]) -> tuple[str, ...]:
    """The settings of our own that differ from their defaults: from Python, no more is known of what was given."""
    return tuple(f.name for f in fields(config) if f.name in own and getattr(config, f.name) != default_of(f))


def check_objective(args: Any) -> None:
    """Raises InputError where settings of ``MDPOConfig`` contradict each other."""
    check_parameters(args)
    _check_anchors(args)
    if args.drop_images:
        _check_one_picture(args)
    if not args.cache_reference and args.reference_cache_dir is not None:
        raise InputError("reference_cache_dir: cache_reference is false, so nothing is kept there; keep one of them")


def check_parameters(args: Any) -> None:
    """Raises InputError where mDPO's own parameters are given (``args.given``) beside another objective."""
    if args.objective == "mdpo":
        return
    called = args.objective if isinstance(args.objective, str) else "a list of terms"
    for name in MDPO_PARAMETERS:
        if name in args.given:
            raise InputError(
                f"{name}: a parameter of objective mdpo, and objective is {called}; leave {name} out, or write "
                "what it should do as a term of the objective"
            )


def _check_one_picture(args: Any) -> None:
    """Without images every branch reads the same prompt, so that a term between two pictures would compare nothing."""
    if args.objective == "mdpo":
        if args.conditional:
            raise InputError(
                "drop_images: without images there is no image preference (conditional); set --conditional false, or "
                "leave drop_images out"
            )
        if "image_rejected" in args.anchors:
            raise InputError(
                "drop_images: without images there is no rejected one to anchor; take image_rejected out of anchors, "
                "or leave drop_images out"
            )
    other = [name for name in args.branches if name not in ("chosen", "rejected")]
    if other:
        raise InputError(
            f"drop_images: the objective compares images ({', '.join(other)}), and without images there is "
            "nothing to compare; choose another objective, such as dpo, or leave drop_images out"
        )


def _check_anchors(args: Any) -> None:
    unknown = [name for name in args.anchors if name not in ("chosen", "rejected", "image_rejected")]
    if unknown:
        raise InputError(f"anchors: {shown(unknown[0])} is not a branch; choose from chosen, rejected, image_rejected")
    if isinstance(args.anchor, Sequence) and len(args.anchor) != len(args.anchors):
        raise InputError(f"anchor: {len(args.anchor)} values for {len(args.anchors)} anchors; give one per entry")
    if not args.anchors and args.anchor:
        raise InputError(
            f"anchor: {shown(args.anchor)}, but anchors is empty; name a branch in anchors, or leave anchor out"
        )


def check_adapter(run: Any) -> None:
    """Raises InputError where settings of ``RunConfig`` ask for weights to train that would not."""
    if not run.use_lora:
        return
    for name, part in (("freeze_vision_tower", "vision tower"), ("freeze_multi_modal_projector", "projector")):
        if not getattr(run, name):
            raise InputError(
                f"{name}: false, but LoRA (use_lora) is on the language model alone, and the {part} would not train; "
                f"set use_lora: false, or leave {name} out"
            )


def _no_rejected_image(args: Any) -> bool:
    return not args.negatives


def _keeps_nothing(args: Any) -> bool:
    # The embeddings by which nearest_image finds its pictures are the same in every epoch.
    return args.negative_per_epoch and "nearest_image" not in args.negative


def _no_adapter(run: Any) -> bool:
    return not run.use_lora


_NO_IMAGE = "there is no rejected image: no term of the objective reads one"
_NOT_CACHED = "negative_per_epoch asks for the reference anew in every epoch"
# Without effect when the condition holds: said once, when given.
OBJECTIVE: dict[str, tuple[Condition, str]] = {
    "negative": (_no_rejected_image, _NO_IMAGE),
    "negative_per_epoch": (lambda args: args.negative_per_epoch and _no_rejected_image(args), _NO_IMAGE),
    "cache_reference": (lambda args: args.cache_reference and _keeps_nothing(args), _NOT_CACHED),
    "reference_cache_dir": (_keeps_nothing, _NOT_CACHED),
}
ADAPTER: dict[str, tuple[Condition, str]] = dict.fromkeys(
    ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"), (_no_adapter, "use_lora is false")
)


def idle_settings(config: Any, table: dict[str, tuple[Condition, str]]) -> list[str]:
    """A line for each setting of ``table`` that was given (``config.given``) and has no effect in this run."""
    return [
        f"{name}: no effect, {reason}"
        for name, (condition, reason) in table.items()
        if name in config.given and getattr(config, name) is not None and condition(config)
    ]
