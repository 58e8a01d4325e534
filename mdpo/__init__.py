"""mDPO: preference training that makes a vision-language model look at the image."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mdpo.errors import InputError, TrainingError

if TYPE_CHECKING:
    from mdpo.config import MDPOConfig
    from mdpo.trainer import MDPOTrainer

__version__ = "0.1.0"
__all__ = ["InputError", "MDPOConfig", "MDPOTrainer", "TrainingError", "__version__"]
_MODULES = {"MDPOConfig": "mdpo.config", "MDPOTrainer": "mdpo.trainer"}


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import, which the command line spends where a Ctrl-C can end it.
    if name not in _MODULES:
        raise AttributeError(f"module 'mdpo' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
