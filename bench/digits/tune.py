"""Make the checkpoint that the demo starts from: ``python -m bench.digits.tune`` writes ``bench/digits/model/``.

A LLaVA of 0.8M parameters (CLIP + Llama, random at first) is tuned to caption scenes. The scenes are full of partners,
so the language model learns to expect the partner of a digit that it has just named. Both style tokens are equally
frequent.
"""

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tqdm import trange
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import (
    CLIPImageProcessorPil,  # the one that needs no torchvision
)

from bench.digits.world import IMAGE_SIZE, PROMPT, STYLES, Scene, caption, make_scene, render

PATCH = 12
MODEL = Path(__file__).parent / "model"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


WORDS = ("USER", "ASSISTANT", ":", "List", "the", "digits", ".", "I", "see", ",", "and", *STYLES, *map(str, range(10)))


class Turn(NamedTuple):
    """A question about a scene and its answer."""

    scene: Scene
    prompt: str
    answer: str


def build_processor(
    words: Sequence[str] = WORDS, *, image_size: int = IMAGE_SIZE, patch: int = PATCH
) -> LlavaProcessor:
    """A processor made offline: CLIP's square images, and one token per word, whatever the white space.

    image_size, patch: sides in pixels.
    """
    special = ["<pad>", "</s>", "<unk>", "<image>"]
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # joins by spaces, with none before "," or "."
    size = {"height": image_size, "width": image_size}
    return LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=size),
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            eos_token="</s>",
            unk_token="<unk>",
            extra_special_tokens={"image_token": "<image>"},
        ),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    processor: LlavaProcessor,
    *,
    text_layers: int = 3,
    text_width: int = 128,
    tower_layers: int = 3,
    tower_width: int = 96,
) -> LlavaForConditionalGeneration:
    """The untrained model for the processor's pictures and words. Widths are multiples of 4, the number of heads."""
    tokenizer = processor.tokenizer
    image_size, patch = processor.image_processor.crop_size["height"], processor.patch_size
    vision = CLIPVisionConfig(
        hidden_size=tower_width,
        intermediate_size=256,
        num_hidden_layers=tower_layers,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=patch,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=text_width,
        intermediate_size=256,
        num_hidden_layers=text_layers,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(image_size // patch) ** 2,
        vision_feature_layer=-1,  # the usual -2 would leave one of three layers idle
        vision_feature_select_strategy="default",
    )
    return LlavaForConditionalGeneration(config)


def captioning(seed: int, index: int) -> Turn:
    """The turn with this index: the scene's digits, in either style."""
    scene = make_scene("tune", seed, index)
    return Turn(scene, PROMPT, caption(scene.digits, str(scene.generator("style").choice(STYLES))))


def tuning_batch(processor: LlavaProcessor, turns: Sequence[Turn]) -> dict[str, torch.Tensor]:
    """Prompts and true answers, right-padded, with labels on the answers and their EOS alone."""
    chats = []
    for turn in turns:
        question = [{"type": "image"}, {"type": "text", "text": turn.prompt}]
        chats.append([{"role": "user", "content": question}, {"role": "assistant", "content": turn.answer}])
    texts = processor.apply_chat_template(chats)
    layout: dict[str, Any] = dict(padding=True, padding_side="right", return_tensors="pt")
    batch = processor(text=texts, images=[render(turn.scene) for turn in turns], **layout)
    assistant = processor.tokenizer.convert_tokens_to_ids("ASSISTANT")
    starts = (batch["input_ids"] == assistant).int().argmax(1, keepdim=True) + 2  # after "ASSISTANT", ":"
    prompt = torch.arange(batch["input_ids"].shape[1]) < starts
    batch["labels"] = batch["input_ids"].masked_fill(prompt | (batch["attention_mask"] == 0), -100)
    return dict(batch)


def tune(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    turn: Callable[[int, int], Turn],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Supervised tuning of all of ``model`` on fresh scenes, none of them shown twice; ``turn(seed, index)`` makes
    them.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    for step in (bar := trange(steps, desc="tuning", mininterval=5)):
        turns = [turn(seed, step * batch_size + index) for index in range(batch_size)]
        loss = model(**tuning_batch(processor, turns)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=MODEL)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    options = {name: value for name, value in vars(arguments).items() if name != "out"}
    processor = build_processor()
    torch.manual_seed(arguments.seed)
    model = build_model(processor)
    tune(model, processor, captioning, **options)
    model.save_pretrained(arguments.out)
    processor.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
