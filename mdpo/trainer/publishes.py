"""A Trainer that writes a card beside what it trained, and uploads both where that is asked for."""

# transformers types a Trainer's attributes as all they could be.
# pyright: reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false, reportArgumentType=false

import logging
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import Trainer

from mdpo.errors import OutputError
from mdpo.hub.uploads import make_repository, upload, upload_command
from mdpo.models.logps import unwrap
from mdpo.models.model_card import CARD_NAME, FinishedRun, adapter_kind, write_run_card
from mdpo.objectives import Objective
from mdpo.run_folder import published_files

from .ranks import from_all_ranks, together

_log = logging.getLogger(__name__)


class Publishes(Trainer):
    """``transformers.Trainer`` whose card says what the model was trained on, and that uploads named files alone, once:
    ``output_dir`` also has paths of this machine, the optimizer's state and the reference cache in it."""

    objective: Objective

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository ``hub_model_id``, before training, so that a token that may not write is found now."""
        made = together(self.args, lambda: self._make_repository(token, private))
        (self.hub_model_id,) = from_all_ranks(self.args, made)  # all ranks have to know whether there is one

    def _make_repository(self, token: str | None, private: bool | None) -> list[str]:
        """Its name, on the main process."""
        if not self.is_world_process_zero():
            return []
        name = make_repository(
            self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name,
            token=token or self.args.hub_token,
            private=self.args.hub_private_repo if private is None else private,
        )
        return [name]

    def create_model_card(self, model_name: str | None = None) -> None:
        """Writes README.md into ``output_dir``, unless the user's own lies there.

        model_name: its title; None: the folder's name. Raises OutputError where it cannot be written.
        """
        if not self.is_world_process_zero():
            return
        run = FinishedRun(
            base=unwrap(self.model).config.name_or_path or type(unwrap(self.model)).__name__,
            adapter=adapter_kind(self.model.active_peft_config.to_dict())
            if isinstance(self.model, PeftModel)
            else None,
            settings=self.settings_of_checkpoints(),
            source=self.objective.source,
            history=self.state.log_history,
            steps=self.state.global_step,
            epochs=self.state.epoch,
        )
        if not write_run_card(str(self.args.output_dir), run, title=model_name):
            _log.info(
                "%s: it was not written by this program, and is kept",
                Path(str(self.args.output_dir), CARD_NAME),
            )

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        *,
        token: str | None = None,
        revision: str | None = None,
        **card: Any,
    ) -> str | None:
        """Saves the model and its card, and uploads them with the processor to ``hub_model_id`` in one commit.

        Args:
            commit_message: Of the commit.
            token: None: ``hub_token``, or huggingface_hub's own.
            revision: Branch; None: ``hub_revision``, or main.
            card: For ``create_model_card``.

        Returns the commit's address, on the main process. Raises OutputError where the hub does not take it, with the
        way on.
        """
        self.save_model(_internal_call=True)
        self.create_model_card(**card)
        return self.upload(commit_message, token=token, revision=revision)

    def upload(
        self, commit_message: str | None = None, *, token: str | None = None, revision: str | None = None
    ) -> str | None:
        """As ``push_to_hub``, of what has been saved already."""
        if self.hub_model_id is None:
            self.init_hf_repo(token=token)
        if not self.is_world_process_zero():
            return None
        folder = Path(str(self.args.output_dir))
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        repository, files, revision = (
            str(self.hub_model_id),
            published_files(folder),
            revision or self.args.hub_revision,
        )
        try:
            return upload(
                repository,
                folder,
                files,
                message=commit_message or "End of training",
                token=token or self.args.hub_token,
                revision=revision,
            )
        except OutputError as error:
            later = upload_command(repository, folder, files, revision=revision)
            raise OutputError(f"{error}; what was trained is whole in {folder}. Upload it later: {later}") from error

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: a run uploads once, at its end."""
