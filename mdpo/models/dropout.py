"""Dropout off in a whole model: it would make the policy random where its reference is not."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from .logps import unwrap

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
# How modules name a probability that they pass to functional dropout, as attention layers do.
_NAMES = ("dropout", "dropout_p", "drop_prob", "drop_path", "pdrop", "layerdrop")


def disable_dropout(model: nn.Module) -> list[str]:
    """Sets every dropout probability in ``model`` to 0: modules, attention dropout, stochastic depth, adapters' own.

    The config keeps its values, so that what is saved is the model that was loaded.

    Returns what was on, as ``name=probability``, each once: ``["attention_dropout=0.1", "resid_dropout=0.1"]``.
    """
    switched_off: dict[str, None] = {}
    for name, holder, key in list(_probabilities(model)):
        if isinstance(holder, dict):
            switched_off[f"{name}={holder[key]:g}"] = None
            holder[key] = 0.0
        else:
            switched_off[f"{name}={getattr(holder, key):g}"] = None
            setattr(holder, key, 0.0)
    return list(switched_off)


def attention_dropout(model: nn.Module) -> str | None:
    """The text model's first dropout that is no module of its own, as ``name=probability``, or None."""
    found = _probabilities(unwrap(model).get_decoder())
    inside = (f"{name}={getattr(module, name):g}" for name, module, key in found if key == name)
    return next(inside, None)


def _probabilities(model: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """(name for messages, holder, key) of every dropout probability above 0: a module's attribute, or an entry of a
    dict by adapter, as LoHa and LoKr have it."""
    for path, module in model.named_modules():
        if isinstance(module, _DROPOUTS) or "Dropout" in type(module).__name__:  # peft's BOFT has a class of its own
            if getattr(module, "p", 0.0) > 0:
                # Below peft's lora_dropout the module is named after the adapter.
                parts = [part for part in path.split(".") if not part.isdigit()]
                name = next((part for part in reversed(parts) if "drop" in part), path)
                yield name, module, "p"
            continue
        for name, value in list(vars(module).items()):
            if not name.endswith(_NAMES):
                continue
            if isinstance(value, float) and value > 0:
                yield name, module, name
            elif isinstance(value, dict):
                yield from ((name, value, key) for key, each in value.items() if isinstance(each, float) and each > 0)
