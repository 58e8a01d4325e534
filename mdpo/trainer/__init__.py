"""Micro-batches → gradients, on transformers.Trainer."""

from .trainer import MDPOTrainer

__all__ = ["MDPOTrainer"]
