"""Settings by the names that other trainers have for them.

From TRL 1.x (DPOConfig, ModelConfig, ScriptArguments), LLaMA-Factory (hparams/*_args.py) and ms-swift 4
(arguments/*_args.py), and from versions of transformers before 5.
"""

import difflib
from collections.abc import Collection

# What to set here. Several names for one thing stand together.
_HERE: dict[str, tuple[str, ...]] = {
    "model_name_or_path": ("model", "model_id", "model_path", "model_name", "base_model"),
    "train_data": ("dataset", "dataset_name", "datasets", "train_dataset", "train_file", "data", "data_path"),
    "eval_data": ("eval_dataset", "val_dataset", "dataset_test_split", "eval_file", "validation_data"),
    "eval_fraction": ("val_size", "split_dataset_ratio", "test_split_size", "eval_size"),
    "image_dir": ("media_dir", "image_folder", "images_dir"),
    "max_pixels": ("image_max_pixels",),
    "min_pixels": ("image_min_pixels",),
    "learning_rate": ("lr",),
    "num_train_epochs": ("epochs", "num_epochs", "n_epochs"),
    "dtype": ("torch_dtype", "infer_dtype", "compute_dtype", "model_dtype"),
    "lora_r": ("lora_rank", "rank"),
    "lora_target_modules": ("lora_target", "target_modules", "target_regex"),
    "load_in_4bit": ("use_qlora",),
    "max_length": ("cutoff_len", "max_seq_length", "max_seq_len", "max_model_len", "model_max_length"),
    "beta": ("pref_beta", "dpo_beta"),
    "cache_reference": ("precompute_ref_log_probs", "precompute_ref_batch_size"),
    "freeze_vision_tower": ("freeze_vit",),
    "freeze_multi_modal_projector": ("freeze_aligner",),
    "use_liger_kernel": ("enable_liger_kernel", "use_liger", "use_liger_loss"),
    "eval_strategy": ("evaluation_strategy",),
    "use_cpu": ("no_cuda",),
    "adapter_name_or_path": ("adapters", "adapter", "adapter_path", "resume_adapter"),
    "system_prompt": ("system", "default_system"),
    "seed": ("random_seed",),
    "include_num_input_tokens_seen": ("include_tokens_per_second", "include_effective_tokens_per_second"),
}
# What to do instead, where no setting here does the same.
_INSTEAD: dict[str, str] = {
    "batch_size": "set examples_per_step (pairs of an optimizer step) and token_budget (tokens of a micro-batch)",
    "train_batch_size": "set examples_per_step (pairs of an optimizer step) and token_budget (tokens of a micro-batch)",
    "per_gpu_train_batch_size": "set examples_per_step and token_budget",
    "gradient_accumulation": "set examples_per_step, the pairs of an optimizer step",
    "lora": "set use_lora: true",
    "use_peft": "set use_lora",
    "finetuning_type": "set use_lora: true (LoRA) or false (full fine-tuning); freeze and OFT are not supported",
    "tuner_type": "set use_lora: true (LoRA) or false (full fine-tuning)",
    "train_type": "set use_lora: true (LoRA) or false (full fine-tuning)",
    "sft_type": "set use_lora: true (LoRA) or false (full fine-tuning)",
    "quantization_bit": "set load_in_4bit: true; 8-bit training is not supported",
    "quant_bits": "set load_in_4bit: true; 8-bit training is not supported",
    "load_in_8bit": "set load_in_4bit: true; 8-bit training is not supported",
    "bnb_4bit_quant_type": "load_in_4bit is NF4 with nested quantization; leave it out",
    "warmup_ratio": "set warmup_steps to a share below 1, such as 0.1",
    "early_stopping_patience": "stop early from Python: MDPOTrainer(callbacks=[EarlyStoppingCallback(PATIENCE)])",
    "early_stopping_steps": "stop early from Python: MDPOTrainer(callbacks=[EarlyStoppingCallback(PATIENCE)])",
    "freeze_llm": "mDPO trains the language model; leave it out",
    "freeze_language_model": "mDPO trains the language model; leave it out",
    "group_by_length": "steps are planned by token_budget, so that nothing is padded; leave it out",
    "disable_shuffling": "rows are shuffled from data_seed in every epoch; leave it out",
    "packing": "rows are always packed; leave it out",
    "neat_packing": "rows are always packed; leave it out",
    "padding_free": "rows are always packed without padding; leave it out",
    "stage": "mDPO trains on preferences alone; leave it out",
    "rlhf_type": "mDPO trains on preferences alone; leave it out",
    "dataset_dir": "give the path of the data file as train_data",
    "max_samples": "draw a sample first: mdpo data sample DATA --count N",
    "max_steps_per_epoch": "set max_steps",
    "max_prompt_length": "set max_length, which cuts responses; prompts, with their images, are never cut",
    "max_completion_length": "set max_length, which cuts responses",
    "truncation_mode": "max_length cuts the end of a response; leave it out",
    "truncation_strategy": "max_length cuts the end of a response; leave it out",
    "template": "prompts are rendered by the chat template in the model's folder; leave it out",
    "trust_remote_code": "code of a model's folder never runs; leave it out",
    "streaming": "rows are checked before training, so data is read whole; leave it out",
    "dataset_streaming": "rows are checked before training, so data is read whole; leave it out",
    "dataset_config": (
        "give the subset's files: hf download NAME --repo-type dataset --local-dir FOLDER, then "
        "train_data: FOLDER/SUBSET"
    ),
    "dataset_train_split": "name it behind the data: train_data: NAME:SPLIT",
    "dataset_num_proc": "several processes read and tokenise large data by default; leave it out",
    "preprocessing_num_workers": (
        "several processes read and tokenise large data by default; set dataloader_num_workers for the images"
    ),
    "attn_implementation": "packed attention uses FlashAttention if it is installed; leave it out",
    "attn_impl": "packed attention uses FlashAttention if it is installed; leave it out",
    "flash_attn": "packed attention uses FlashAttention if it is installed; leave it out",
    "ref_model": "the reference is the model that training starts from; leave it out",
    "resize_vocab": "the vocabulary stays as it is; leave it out",
    "use_unsloth": "mDPO has kernels of its own; leave it out",
    "activation_offloading": "set gradient_checkpointing or checkpoint_layers",
    "disable_gradient_checkpointing": "set gradient_checkpointing",
    "logging_dir": "transformers reads it from the environment variable TENSORBOARD_LOGGING_DIR",
    "save_safetensors": "safetensors are always written; leave it out",
    "split_batches": "the planner deals the rows to the devices; leave it out",
    "dispatch_batches": "the planner deals the rows to the devices; leave it out",
    "include_inputs_for_metrics": "compute_metrics is not supported; leave it out",
    "past_index": "a packed row keeps no past; leave it out",
    "tpu_num_cores": "mDPO trains on CUDA and on CPUs; leave it out",
    "tpu_metrics_debug": "mDPO trains on CUDA and on CPUs; leave it out",
    "use_mps_device": "mDPO trains on CUDA and on CPUs; leave it out",
    "use_ipex": "it left transformers; leave it out",
    "jit_mode_eval": "it left transformers; leave it out",
    "half_precision_backend": "it left transformers; set bf16 or fp16",
    "fp16_backend": "it left transformers; set fp16",
    "fp16_opt_level": "it left transformers; set fp16",
    "torchdynamo": "set torch_compile_backend",
    "push_to_hub_model_id": "set hub_model_id",
    "push_to_hub_token": "set hub_token, or HF_TOKEN",
    "push_to_hub_organization": "name it in hub_model_id: OWNER/NAME",
    "plot_loss": "draw it afterwards: mdpo report OUTPUT_DIR",
}
_COLUMNS = (
    "image_column",
    "images_column",
    "text_column",
    "prompt_column",
    "chosen_column",
    "rejected_column",
    "columns",
    "column_mapping",
    "dataset_text_field",
    "dataset_image_field",
)
# What chooses or shapes the loss.
_LOSSES = (
    "loss_type", "pref_loss", "loss_weights", "label_smoothing", "dpo_label_smoothing", "ld_alpha", "use_weighting",
    "f_divergence_type", "f_alpha_divergence_coef", "discopop_tau", "simpo_gamma", "cpo_alpha", "orpo_beta",
    "reference_free", "sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps",
)  # fmt: skip
_SFT_TERMS = ("rpo_alpha", "pref_ftx", "sft_alpha")
_LORA = ("use_rslora", "use_dora", "lora_bias", "lora_modules_to_save", "modules_to_save", "additional_target",
         "lora_target_parameters", "lora_task_type", "loraplus_lr_ratio", "pissa_init",
         "init_lora_weights")  # fmt: skip


def unknown_key(key: object, known: Collection[str]) -> str:
    """What to say of a key that is none of ``known``: what it is called here, what does not exist, or the
    nearest key.
    """
    name = str(key)
    return f"unknown key {_shortened(name)!r}; {_advice(name.lower(), known)}"


def _advice(name: str, known: Collection[str]) -> str:
    for ours, theirs in _HERE.items():
        if name in theirs and ours in known:
            return f"here it is {ours!r}"
    if name in _INSTEAD:
        return _INSTEAD[name]
    if name in _COLUMNS:
        return (
            "columns are found by their names in the data (images, prompt, chosen, rejected and others); rename them "
            "there"
        )
    if name in _LOSSES:
        return "the loss is chosen by objective: set it to a preset, such as symmpo, or to a list of terms"
    if name in _SFT_TERMS:
        return (
            "set objective: mpo, whose generation term keeps the chosen response likely, or a list of terms of which "
            "one is {name: sft, rows: {chosen: 1}, link: linear, weight: 0.03}; mdpo's anchor (anchors: [chosen]) "
            "does so too"
        )
    if name in _LORA:
        return "adapters other than plain LoRA are given from Python: MDPOTrainer(peft_config=LoraConfig(...))"
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if nearest:
        return f"the nearest valid key is {nearest[0]!r}"
    return "mdpo train --help lists the settings; those of transformers' TrainingArguments are read too"


def _shortened(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:57]}..."
