"""mDPO: preference training that makes a vision-language model look at the image."""

from mdpo.config import MDPOConfig
from mdpo.errors import InputError, TrainingError
from mdpo.trainer import MDPOTrainer

__version__ = "0.1.0"
__all__ = ["InputError", "MDPOConfig", "MDPOTrainer", "TrainingError", "__version__"]
