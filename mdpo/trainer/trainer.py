"""mDPO on transformers.Trainer: what a dataloader yields is a whole optimizer step, planned into micro-batches."""

# transformers types a Trainer's attributes as all they could be, and a batch as a dict; here they are this trainer's
# own.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportIncompatibleMethodOverride=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false

import logging
import math
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from peft import PeftConfig, PeftModel
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback, set_seed
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from mdpo.config import MDPOConfig
from mdpo.data import PreferenceDataset
from mdpo.data.text_options import read_template
from mdpo.errors import InputError
from mdpo.evaluation.row_checks import check_rows
from mdpo.models import PackedPolicy, ReferenceCache, establish_reference, fingerprint, reference_weights
from mdpo.models.fused_lora import describe_lora
from mdpo.models.load import check_processor
from mdpo.models.lora_targets import adapted
from mdpo.models.policy import PolicyOutput
from mdpo.models.reference import Reference, in_mode
from mdpo.models.start_check import first_examples
from mdpo.objectives import objective_of
from mdpo.packing import Batch, PreferenceTokens, Separate, family_of

from .arguments import (
    check_fsdp,
    check_run,
    check_warmup,
    check_weights,
    eval_names,
    say_what_has_no_effect,
    settle_evaluation,
)
from .banner import banner
from .checkpoints import recover
from .datasets import EvalRows, Rows, cache_folder, dataset_of, eval_datasets_of, find_neighbours
from .evaluation import Evaluation, predictions
from .folder import RunFolder
from .host_copy import HostCopy, to_device
from .layers import COMPILED, CheckpointLayers, prepare_layers
from .metrics import Metrics
from .not_finite import StopsWhereNotFinite, losses_not_finite
from .preflight import check_arguments, check_saving, check_settings
from .publishes import Publishes
from .resume import check_for_model, checkpoint_to_resume, saved_settings
from .run_settings import check_same_run, recorded, run_settings
from .samples import SampleAnswers
from .start import check_start, switch_dropout_off
from .steps import MicroBatches, Step, StepSampler, collate
from .terminal import use_lines
from .workers import begin_worker

_log = logging.getLogger(__name__)


class MDPOTrainer(Publishes, StopsWhereNotFinite):
    """Trains a vision-language model on preference pairs.

    model: a supported Hugging Face model, or a PEFT model whose adapter is to be trained. The reference is the model as
        it is given, frozen: see ``mdpo.models.reference``.
    args: the settings.
    train_dataset, eval_dataset: ``PreferenceRow``s from ``mdpo.data.read_rows``, or dicts of any format in
        ``mdpo.data.formats`` with PIL images or paths (relative to the working directory), as a list, a generator, a
        ``datasets.Dataset`` or a ``datasets.IterableDataset``. Images of the last two stay encoded until they are read.
        eval_dataset may be a dict of several, by name: transformers logs eval_NAME_loss and so on.
    processing_class: the model's processor; saved beside every checkpoint.
    peft_config: the adapter to train, where the model has none yet.

    Raises InputError before any step for rows, images or settings that can't be trained on.
    """

    args: MDPOConfig

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: MDPOConfig,
        train_dataset: Rows | None = None,
        eval_dataset: EvalRows | None = None,
        processing_class: ProcessorMixin | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
    ) -> None:
        rows = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
        check_arguments(model, args, processing_class, peft_config, **rows)
        if args.chat_template is not None:  # so that the processor which is saved renders as this run does
            processing_class.chat_template = read_template(args.chat_template)
        if args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3:
            raise InputError(
                "DeepSpeed: ZeRO-3 shards the head, whose weight the log-probs read outside of its module; take ZeRO-2 "
                "(configs/accelerate/deepspeed_zero2.yaml), or FSDP2 for weights that do not fit one card"
            )
        check_settings(args, optimizer=optimizers[0] is not None)
        check_run(args, eval_names(eval_dataset))
        check_weights(args, model)
        self.family = family_of(model)
        self.objective = objective_of(args)
        check_processor(model.config, processing_class, "processing_class")
        if peft_config is not None:
            if isinstance(model, PeftModel):
                raise InputError("peft_config: the model already has an adapter; give only one of them")
            set_seed(args.seed)  # the base class seeds too, but only after the adapter has drawn its weights
            model = adapted(model, peft_config, fused=args.fused_lora)
        eval_datasets = eval_datasets_of(eval_dataset, processing_class, args)
        if train_dataset is not None:
            named = eval_datasets if isinstance(eval_datasets, dict) else {"": eval_datasets}
            settle_evaluation(args, sum(len(dataset) for dataset in named.values() if dataset is not None))
            say_what_has_no_effect(args)
        super().__init__(
            model=model,
            args=args,
            train_dataset=dataset_of(train_dataset, processing_class, args, "train_dataset"),
            eval_dataset=eval_datasets,
            processing_class=processing_class,
            callbacks=[*(callbacks or []), _SetEpoch(self)],
            optimizers=optimizers,
        )
        if self.is_fsdp_enabled:
            check_fsdp(self.accelerator.state.fsdp_plugin)
        for dataset in (self.train_dataset, self.eval_dataset):
            for part in dataset.values() if isinstance(dataset, dict) else [dataset]:
                find_neighbours(part, self.model, args)
                check_rows(model, processing_class, part)
        if args.should_save:
            check_saving(model, processing_class, args.output_dir)
        self._makes_optimizer = self.optimizer is None
        self.tokens_trained = 0  # by this process
        self.run_folder = RunFolder(args, self.model.name_or_path)
        use_lines(self)
        self.add_callback(self.run_folder)
        self.add_callback(CheckpointLayers(model))
        if args.sample_prompts:
            self.add_callback(SampleAnswers(self))
        self._may_stop()
        switch_dropout_off(model, args)
        reference = establish_reference(
            model,
            args.reference,
            fresh=peft_config is not None,
            examples=self._first_examples,
            whole=not self.is_fsdp_enabled,
        )
        lora = describe_lora(model, self.step_dtype)
        if lora is not None:
            _log.info(lora)
        self.layers = prepare_layers(model, reference.frozen, args)
        self.policy = PackedPolicy(
            model,
            reference=reference,
            terms=self.objective.terms,
            beta=args.beta,
        )
        self._metrics = self._new_metrics()
        self.sampler: StepSampler | None = None
        self._reference_weights = self.weights_digest(reference)
        self._cache = self._open_cache()
        self._start_is_checked = False
        self._run_settings: dict[str, Any] | None = None

    # Data: a dataloader yields optimizer steps

    def get_train_dataloader(self) -> DataLoader:
        if self.train_dataset is None:
            raise InputError("train_dataset is missing")
        self.sampler = self._sampler(self.train_dataset)
        return self._dataloader(self.train_dataset, self.sampler)

    def get_eval_dataloader(self, eval_dataset: Rows | str | None = None) -> DataLoader:
        """eval_dataset: rows, or a name in the dict of data sets that the trainer was given."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]
        dataset = dataset_of(dataset, self.processing_class, self.args)
        if dataset is None:
            raise InputError("eval_dataset is missing")
        find_neighbours(dataset, self.model, self.args)
        return self._dataloader(dataset, self._sampler(dataset))

    def get_test_dataloader(self, test_dataset: Rows) -> DataLoader:
        return self.get_eval_dataloader(test_dataset)

    def _sampler(self, dataset: PreferenceDataset) -> StepSampler:
        dataset.check_budget(self.args.token_budget, self.family)
        return StepSampler(
            dataset.lengths_for(self.family),
            self.args.token_budget,
            examples_per_step=self.args.examples_per_step,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            negative_per_epoch=self.args.negative_per_epoch,
            padded=isinstance(self.family, Separate),
        )

    def _dataloader(self, dataset: PreferenceDataset, sampler: StepSampler) -> DataLoader:
        workers = self.args.dataloader_num_workers
        return DataLoader(
            MicroBatches(dataset, self.family, self.objective.branches),
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=workers,
            worker_init_fn=begin_worker,
            # so that neither a new epoch nor an evaluation draws from what dropout draws from
            generator=torch.Generator(),
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            multiprocessing_context=self.args.dataloader_multiprocessing_context if workers else None,
        )

    def _open_cache(self) -> ReferenceCache | None:
        """The reference's log-probs on disk; None with negative_per_epoch, whose keys never repeat."""
        folder = cache_folder(self.args)
        if folder is None or self.args.negative_per_epoch:
            return None
        key = fingerprint(
            self._reference_model,
            self.step_dtype,
            reference=self.policy.reference,
            weights=self._reference_weights,
            compiled=self.layers == COMPILED or self.args.torch_compile,
            liger=self.args.use_liger_kernel,
        )
        return ReferenceCache(folder, key, writes=self.is_world_process_zero())

    def weights_digest(self, reference: Reference) -> str:
        """Of the reference's weights, read once, for the cache's key and for checkpoints. Who knows them can say so
        here.
        """
        return reference_weights(self._reference_model, reference)

    @property
    def _reference_model(self) -> nn.Module:
        frozen = self.policy.reference.frozen
        return self.model if frozen is None else frozen

    @property
    def step_dtype(self) -> torch.dtype | None:
        """The dtype that steps run under, None where that is the weights' own."""
        return torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None

    def step_autocast(self) -> torch.autocast:
        """For a forward outside of what accelerate has wrapped."""
        return torch.autocast(self.args.device.type, self.step_dtype, enabled=self.step_dtype is not None)

    def _first_examples(self) -> list[PreferenceTokens]:
        dataset = self.eval_dataset if self.train_dataset is None else self.train_dataset
        if isinstance(dataset, dict):
            dataset = next(iter(dataset.values()), None)
        return [] if dataset is None else first_examples(dataset.lengths, dataset.__getitem__)

    def num_examples(self, dataloader: DataLoader) -> int:
        return len(dataloader.dataset.dataset)

    def get_total_train_batch_size(self, args: MDPOConfig) -> int:
        return args.examples_per_step

    def set_initial_training_values(self, args: MDPOConfig, dataloader: DataLoader) -> tuple:
        # transformers counts every step of max_steps as a full one.
        epochs, steps_per_epoch, num_examples, _, *rest = super().set_initial_training_values(args, dataloader)
        check_warmup(args, rest[-1])
        whole, partial = divmod(rest[-1], steps_per_epoch)
        samples = whole * num_examples + min(partial * args.examples_per_step, num_examples)
        return epochs, steps_per_epoch, num_examples, samples, *rest

    # Training

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: DataLoader | None = None) -> nn.Module:
        # DDP has to wrap the module whose forward holds head and loss, while checkpoints stay the model's own.
        if model is not self.model:
            return model
        if training and self.is_deepspeed_enabled:  # its engine takes both at once
            policy, self.optimizer = self.accelerator.prepare(self.policy, self.optimizer)
            return policy
        return self.accelerator.prepare_model(self.policy, evaluation_mode=not training)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # DeepSpeed's state has the policy's names; under ZeRO-2 the model's own weights are whole.
        super()._save(output_dir, None if self.is_deepspeed_enabled else state_dict)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        """As ``Trainer.train``. resume_from_checkpoint: a checkpoint's folder, or True for the newest whole one.

        Raises InputError for a torn checkpoint, or one of another run, with the difference named, and where output_dir
        holds a run that this one does not go on with.
        """
        with self.run_folder.held(resume_from_checkpoint):
            if resume_from_checkpoint:
                resume_from_checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
            elif self.args.should_save:
                recover(self.args.output_dir)
            if self.args.should_save:
                self.settings_of_checkpoints()  # by its first checkpoint, some of its files may be gone
            self._check_start()
            if self.is_world_process_zero() and self.train_dataset is not None:
                _log.info(banner(self, self._planned_steps()))
            if self._makes_optimizer and self.state.global_step:
                # An earlier training's has made more steps than a checkpoint of this one could go on from.
                self.optimizer = self.lr_scheduler = None
            output = super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        if self._cache is not None:
            counts = torch.tensor([self._cache.found, self._cache.computed], device=self.args.device)
            self._cache.found, self._cache.computed = map(int, self._sum_over_ranks(counts))
            _log.info(self._cache.line)
        return output

    def _check_start(self) -> None:
        """Once, and before a checkpoint is loaded: a resumed run too has to start from what its reference is."""
        if self._start_is_checked or not self.args.check_start or self.train_dataset is None:
            return
        self._start_is_checked = True
        if self.is_fsdp_enabled:
            _log.info("start check: not made, since FSDP shards the model's own forward; one process makes it")
            return
        if self.is_deepspeed_enabled:  # whose engine would move the model later
            self.model.to(self.args.device)
        examples, branches = self._first_examples(), self.objective.branches
        with disable_input_dtype_casting(self.model, active=self.step_dtype is not None), self.step_autocast():
            line = check_start(self.model, self.args, examples, branches, self.step_dtype, self._evaluate_batch)
        if self._cache is not None:
            self._cache.found = 0
        _log.info(line)

    def _evaluate_batch(self, batch: Batch) -> PolicyOutput:
        with in_mode(self.policy, training=False):
            return self._forward(self.policy, batch)

    def _checkpoint_to_resume(self, requested: str | bool) -> str:
        if self.train_dataset is None:
            raise InputError("train_dataset is missing")
        folder = Path(checkpoint_to_resume(self.args, requested))
        check_same_run(folder, saved_settings(folder), self.settings_of_checkpoints())
        check_for_model(
            folder,
            self.model,
            sharded=self.is_fsdp_enabled,
            max_steps=self._planned_steps(),
            steps_per_epoch=self._steps_per_epoch(),
        )
        return str(folder)

    def _steps_per_epoch(self) -> int:
        return -(-len(self.train_dataset) // self.args.examples_per_step)

    def _planned_steps(self) -> int:
        """Of the whole run, those before a checkpoint included."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        return math.ceil(self.args.num_train_epochs * self._steps_per_epoch())

    def settings_of_checkpoints(self) -> dict[str, Any]:
        if self._run_settings is None:
            settings = run_settings(self.args, self.model, self.train_dataset, self._reference_weights)
            self._run_settings = settings | recorded(self.args, self.layers)
        return self._run_settings

    def training_step(self, model: nn.Module, inputs: Step, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Forward and backward of every micro-batch. Returns the step's loss, its mean over examples."""
        # Under autocast peft's cast of a layer's input to fp32 is undone at once, and leaves a copy for the backward.
        with disable_input_dtype_casting(self.model, active=self.args.bf16 or self.args.fp16):
            return self._run_step(model, inputs)

    def _run_step(self, model: nn.Module, inputs: Step) -> Tensor:
        model.train()
        step = inputs
        self._examples = tuple(id for batch in inputs.micro_batches for id in batch.ids)
        losses, checked, references = [], [], []
        for number, (batch, weight) in enumerate(zip(step.micro_batches, step.weights, strict=True)):
            last = number == len(step.micro_batches) - 1
            self.accelerator.sync_gradients = last  # where DeepSpeed's engine steps
            # Ranks exchange gradients once a step.
            with nullcontext() if last else self.accelerator.no_sync(model):
                output = self._forward(model, batch, step.num_examples)
                losses.append(weight * output.loss.loss.detach())
                # Started here, and read when the last backward is queued: the device never waits for the host to look.
                checked.append(HostCopy(losses[-1]))
                references.append(HostCopy(output.reference))
                # DDP averages over ranks what is already a share of the step's mean.
                self.accelerator.backward(output.loss.loss * (self.args.world_size * weight))
            if weight:
                self._metrics.add(output)
                self.tokens_trained += batch.num_tokens
        values = torch.stack([loss.get() for loss in checked])
        if not self._over_ranks(int(values.isfinite().all()), "min"):
            bad = losses_not_finite([batch.ids for batch in step.micro_batches], values)
            self.stop_at(f"the loss of step {self.state.global_step + 1} is not finite", bad, model)
        self._keep_references(step, references)
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        return torch.stack(losses).sum() * self.args.world_size

    def _forward(self, model: nn.Module, batch: Batch, num_examples: int | None = None) -> PolicyOutput:
        """The micro-batch's output, with the cached reference where there is one."""
        reference, missing = (None, ()) if self._cache is None else self._cache.find(batch)
        # Sharded weights are gathered by all ranks together: all run the reference, or none.
        if reference is not None and self.is_fsdp_enabled and self._over_ranks(int(bool(missing)), "max"):
            reference, missing = None, ()
        if reference is not None:
            reference = to_device(reference, self.args.device)
        with self.compute_loss_context_manager():
            return model(batch.to(self.args.device, non_blocking=True), reference, num_examples, missing)

    def _keep_references(self, step: Step, references: list[HostCopy]) -> None:
        """references: of each micro-batch; read after the step's last one, since reading a number waits for
        the device.
        """
        if self._cache is None:
            return
        pairs = zip(step.micro_batches, references, strict=True)
        records = [record for batch, copy in pairs for record in self._cache.new_records(batch, copy.get())]
        self._cache.keep(self._from_all_ranks(records))  # the next epoch deals the examples to other ranks

    def floating_point_ops(self, inputs: Step) -> int:
        """6 × parameters × tokens, as transformers counts a training step."""
        tokens = sum(batch.num_tokens for batch in inputs.micro_batches)
        return 6 * tokens * self._num_parameters

    @cached_property
    def _num_parameters(self) -> int:
        return self.model.num_parameters(exclude_embeddings=True)

    def _track_num_input_tokens(self, inputs: Step) -> None:
        # The base class looks for input_ids, and would count padding.
        if self.args.include_num_input_tokens_seen != "no":
            pairs = zip(inputs.micro_batches, inputs.weights, strict=True)
            tokens = sum(batch.num_tokens for batch, weight in pairs if weight)
            self.state.num_input_tokens_seen += int(self._sum_over_ranks(torch.tensor(tokens, device=self.args.device)))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means since the last training log line."""
        if "loss" in logs:
            means = self._metrics.means(self._sum_over_ranks)
            logs |= {name: value for name, value in means.items() if name != "loss"}
            self._metrics = self._new_metrics()
        super().log(logs, start_time)

    def _new_metrics(self) -> Metrics:
        return Metrics(self.objective.branches, self.objective.terms)

    def _sum_over_ranks(self, totals: Tensor) -> Tensor:
        return self.accelerator.reduce(totals.to(self.args.device), "sum")

    # Evaluation

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The loss and the rewards' means over a data set; in ``predict`` also every row's numbers, see
        ``predictions``.

        Where a row's loss is not finite, so is every metric, see ``evaluate``; with eval_skip_not_finite the metrics
        are those of the other rows. A warning names the rows.
        """
        loss_only = self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        model = self.model_wrapped if self.is_in_train else self._wrap_model(self.model, training=False)
        model.eval()
        found = Evaluation(self._new_metrics(), keep_rows=not loss_only)
        for step, planned in self._evaluated_steps(dataloader):
            outputs = []
            for batch in step.micro_batches:
                self._leave_if_told()
                outputs.append(self._forward(model, batch))
            # What pads a step stands behind what was planned for it.
            for batch, micro_batch, output in zip(step.micro_batches, planned, outputs, strict=False):
                if micro_batch.weight:
                    found.add(batch, micro_batch.examples, output)
            self._keep_references(step, [HostCopy(output.reference) for output in outputs])
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        rows = self.num_examples(dataloader)
        bad = self._from_all_ranks(found.not_finite())
        means, self._bad_rows = found.means(
            self._sum_over_ranks, bad, rows, skip=self.args.eval_skip_not_finite, says=self.is_world_process_zero()
        )
        return EvalLoopOutput(
            predictions=None
            if loss_only
            else predictions(self._from_all_ranks(found.rows()), len(self.objective.branches)),
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in means.items()},
            num_samples=rows,
        )


class _SetEpoch(TrainerCallback):
    """Tells the sampler its epoch, also in a resumed run, where the trainer counts on from the checkpoint's step."""

    def __init__(self, trainer: MDPOTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        sampler = self.trainer.sampler
        sampler.set_epoch(state.global_step // len(sampler))
