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
    for name, module, attribute in _probabilities(model):
        switched_off[f"{name}={getattr(module, attribute):g}"] = None
        setattr(module, attribute, 0.0)
    return list(switched_off)


def attention_dropout(model: nn.Module) -> str | None:
    """The text model's first dropout that is no module of its own, as ``name=probability``, or None."""
    found = _probabilities(unwrap(model).get_decoder())
    inside = (f"{name}={getattr(module, name):g}" for name, module, attribute in found if attribute != "p")
    return next(inside, None)


def _probabilities(model: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """(name for messages, module, attribute) of every dropout probability above 0."""
    for path, module in model.named_modules():
        if isinstance(module, _DROPOUTS):
            if module.p > 0:
                # Below peft's lora_dropout the module is named after the adapter.
                parts = [part for part in path.split(".") if not part.isdigit()]
                name = next((part for part in reversed(parts) if "drop" in part), path)
                yield name, module, "p"
            continue
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and value > 0 and name.endswith(_NAMES):
                yield name, module, name
