"""The smallest processor that a trainer can be built with, and that images can be read with."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlavaProcessor, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


def processor_for(model: PreTrainedModel) -> LlavaProcessor:
    """For a LLaVA, which is given token ids: images of its own size, and its own placeholder, since a trainer holds the
    two against each other."""
    config = model.config
    return smallest_processor(
        config.vision_config.image_size,
        config.vision_config.patch_size,
        image_token_id=config.image_token_id,
        select=config.vision_feature_select_strategy,
    )


def smallest_processor(
    side: int, patch_size: int, *, image_token_id: int = 2, select: str = "default"
) -> LlavaProcessor:
    """A LLaVA's: CLIP's images of `side` pixels, eight words and a chat template. image_token_id: 2, or at least 8.
    select: the features that are taken of an image."""
    words = {"<pad>": 0, "</s>": 1, "a": 3, "b": 4, "USER": 5, "ASSISTANT": 6, "<unk>": 7, "<image>": image_token_id}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    template = (
        "{% for m in messages %}{{ m['role'].upper() }} {% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% "
        "endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT {% endif %}"
    )
    return LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        fast,
        patch_size=patch_size,
        vision_feature_select_strategy=select,
        num_additional_image_tokens=1,
        chat_template=template,
    )
