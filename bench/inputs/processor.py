"""The smallest processor that a trainer can be built with: the bench's rows are token ids already."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlavaProcessor, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


def smallest_processor(model: PreTrainedModel) -> LlavaProcessor:
    """For a LLaVA: eight words, a chat template, and images of the model's own size."""
    words = {"<pad>": 0, "</s>": 1, "a": 3, "b": 4, "USER": 5, "ASSISTANT": 6, "<unk>": 7}
    words["<image>"] = model.config.image_token_id  # a trainer holds the two against each other
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    side = model.config.vision_config.image_size
    template = (
        "{% for m in messages %}{{ m['role'].upper() }} {% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% "
        "endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT {% endif %}"
    )
    return LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        fast,
        patch_size=model.config.vision_config.patch_size,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=template,
    )
