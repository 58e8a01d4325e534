"""TRL's two-branch DPO step on a batch of ours: its trainer's own loss, reference pass included, at its best settings."""

import tempfile
from collections.abc import Callable

import numpy as np
from datasets import Dataset
from peft import PeftModel
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportMissingImports]  (an optional peer)


def two_branch_loss(model: PeftModel, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
    """A call of DPOTrainer.compute_loss on ``inputs``: input_ids, attention_mask, completion_mask (2B, L), pixel_values.

    The trainer wants a dataset and a processor to be built with; the one row it gets is never trained on. Checkpointing
    off, max_length none, bf16 on a GPU: equal to what ours runs with.
    """
    on_gpu = inputs["input_ids"].is_cuda
    row = {
        "images": [Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8))],
        "prompt": [{"role": "user", "content": "a"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(
                output_dir=folder, beta=0.1, max_length=None, gradient_checkpointing=False, bf16=on_gpu, use_cpu=not on_gpu,
                report_to=[], save_strategy="no", disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list([row]),
            processing_class=_processor(model),
        )  # fmt: skip
    trainer.model.train()
    return lambda: trainer.compute_loss(trainer.model, inputs)


def _processor(model: PeftModel) -> LlavaProcessor:
    """The smallest processor that DPOTrainer can be built with."""
    words = {"<pad>": 0, "</s>": 1, "<image>": 2, "a": 3, "b": 4, "USER": 5, "ASSISTANT": 6, "<unk>": 7}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    side = model.config.vision_config.image_size
    template = (
        "{% for m in messages %}{{ m['role'].upper() }} {% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT {% endif %}"
    )
    return LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        fast,
        patch_size=model.config.vision_config.patch_size,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=template,
    )
