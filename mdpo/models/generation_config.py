"""A generation config that can be saved: transformers reads ones that it then refuses to write."""

import copy
import logging
from typing import Any

from torch import nn
from transformers import GenerationConfig

from mdpo.errors import InputError

from .folder import short
from .logps import unwrap

_log = logging.getLogger(__name__)

# What is read only when sampling, only when searching with beams, and only when a dict is returned, with the values
# that say nothing.
_SAMPLING = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
_BEAMS = {"early_stopping": False, "length_penalty": 1.0, "diversity_penalty": 0.0, "num_beam_groups": 1}
_EXTRA = dict.fromkeys(("output_attentions", "output_hidden_states", "output_scores", "output_logits"), False)


def repair_generation_config(model: nn.Module) -> None:
    """Unsets, in the model's generation config, what has no effect there and keeps it from being saved, such as
    Vicuna's temperature without do_sample, and says so. Answers stay what they were.

    model: bare or PEFT.

    Raises InputError where it could not be saved all the same.
    """
    config: Any = getattr(unwrap(model), "generation_config", None)
    if config is None or _problem(config) is None:
        return
    idle: dict[str, Any] = {} if config.do_sample is True else dict(_SAMPLING)
    idle |= {} if (config.num_beams or 1) > 1 else _BEAMS
    idle |= {} if config.return_dict_in_generate else _EXTRA
    values = {name: getattr(config, name, None) for name in idle}
    unset = {name: value for name, value in values.items() if value not in (None, idle[name])}
    if config.pad_token_id is not None and config.pad_token_id < 0:  # Llama's -1 stands for none
        unset["pad_token_id"] = config.pad_token_id
    repaired = copy.deepcopy(config)
    for name in unset:
        setattr(repaired, name, None)
    problem = _problem(repaired)
    if problem is not None:
        raise InputError(f"generation_config.json of the model cannot be saved again: {problem}; correct or delete it")
    for name in unset:
        setattr(config, name, None)
    said = ", ".join(f"{name}={value}" for name, value in unset.items())
    _log.warning("generation_config.json: unset %s, which has no effect there and keeps it from being saved", said)


def _problem(config: GenerationConfig) -> str | None:
    try:
        copy.deepcopy(config).validate(strict=True)
    except Exception as error:  # values of a foreign file: comparisons fail in their own ways
        return short(error)
    return None
