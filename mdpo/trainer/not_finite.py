"""A Trainer that stops where numbers are no numbers any more: before the optimizer steps, and after an evaluation."""

# transformers types a Trainer's attributes as all they could be.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false

from typing import Any, NoReturn

from torch import Tensor, nn

from .finite import SMALLEST_SCALE, is_finite, printable
from .ranks import from_all_ranks, raised_by_all
from .stoppable import Stoppable


class StopsWhereNotFinite(Stoppable):
    """``transformers.Trainer`` that ends in TrainingError, on every rank, with the state before the fault kept.

    A subclass sets ``_examples``, the ids of the step in progress on this rank, and ``_bad_rows``, the ids of an
    evaluation's rows without a finite loss, on all ranks.
    """

    _examples: tuple[str, ...] = ()
    _bad_rows: tuple[str, ...] = ()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # Both versions of the base class come here once a step, after clipping and before the optimizer steps.
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is not None and not self._over_ranks(int(is_finite(norm)), "min"):
            self._stop_at_gradients(model)
        return norm

    def _stop_at_gradients(self, model: nn.Module) -> None:
        what = "are not finite"
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None:
            if scaler.get_scale() > SMALLEST_SCALE:
                return  # fp16: this step is left out, and the next one's loss is scaled by less
            what = f"have not been finite for many steps: fp16's loss scale has fallen to {scaler.get_scale():g}"
        self.stop_at(f"the gradients of step {self.state.global_step + 1} {what}", list(self._examples), model)

    def stop_at(self, fault: str, ids: list[str], model: nn.Module) -> NoReturn:
        """ids: of this rank's rows with the fault. Called by all ranks; the weights are the last good ones."""
        names = printable(from_all_ranks(self.args, ids))
        raise raised_by_all(
            self.args,
            f"{fault}, with examples {names}; {self.keep_state(model)}. Lower the learning rate, or look at those rows",
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the base class. Rows whose loss is not finite: outside of training, the metrics are NaN, with a warning
        that names them; while training, TrainingError is raised, after a checkpoint has been written; with
        eval_skip_not_finite, the means are over the other rows."""
        self._bad_rows = ()
        metrics = super().evaluate(*args, **kwargs)
        if self._bad_rows and self.is_in_train:
            rows, step = printable(self._bad_rows), self.state.global_step
            raise raised_by_all(
                self.args,
                f"evaluation after step {step}: the loss is not finite, with examples {rows}; "
                f"{self.keep_state(self.model_wrapped)}. Look at those rows, or set eval_skip_not_finite: true to "
                "leave them out",
            )
        return metrics


def losses_not_finite(ids: list[tuple[str, ...]], losses: Tensor) -> list[str]:
    """The ids of the micro-batches without a finite loss. ids: of each micro-batch. losses: (M,), one each."""
    return [id for each, good in zip(ids, losses.isfinite().tolist(), strict=True) if not good for id in each]
