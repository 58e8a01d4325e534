"""A Trainer that never goes on with other weights than a checkpoint's, nor ends without the ones it trained."""

# transformers types a Trainer's attributes as all they could be.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from peft import PeftModel
from torch import nn
from transformers import Trainer

from mdpo.errors import InputError, TrainingError
from mdpo.models.folder import short

from .checkpoints import last_whole_checkpoint
from .weights import check_adapters, load_weights, save_weights_alone


class KeepsWeights(Trainer):
    """``transformers.Trainer`` with its loading and its last saving replaced; FSDP and DeepSpeed keep their own."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or isinstance(self.model, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_weights(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        folder = self.state.best_model_checkpoint
        try:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                super()._load_best_model()
            elif isinstance(self.model, PeftModel):
                check_adapters(self.model, folder)
                super()._load_from_checkpoint(folder)  # the other looks for an adapter called "default" alone
            else:
                load_weights(self.model, folder)
        except InputError as error:  # at the end of a training that is not to be lost for it
            last = last_whole_checkpoint(self.args.output_dir)
            raise TrainingError(f"the best checkpoint cannot be loaded: {error}; the last weights are in {last}") from error

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the base class; where a file beside the weights cannot be written, the weights are.

        Raises TrainingError that says where they are.
        """
        try:
            super().save_model(output_dir, _internal_call)
        except Exception as error:  # whatever it is, what was trained is worth more
            if _internal_call or self.is_fsdp_enabled or not self.args.should_save:
                raise
            folder = output_dir or self.args.output_dir
            try:
                path = save_weights_alone(self.model, folder)
            except Exception:  # a full disk: the first error says so
                last = last_whole_checkpoint(self.args.output_dir)
                raise TrainingError(
                    f"the model could not be saved to {folder}: {short(error)}; "
                    f"{'there is no checkpoint' if last is None else f'the last good state is {last}'}"
                ) from error
            raise TrainingError(
                f"not everything could be saved ({short(error)}); the weights are in {path}, without the files that belong "
                "to them"
            ) from error
