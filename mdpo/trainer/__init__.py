"""Micro-batches → gradients, on transformers.Trainer."""

from .arguments import check_run
from .trainer import MDPOTrainer

__all__ = ["MDPOTrainer", "check_run"]
