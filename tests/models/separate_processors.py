"""Real processors, tiny, of models whose branches are read separately, and of GLM-4V."""

import transformers
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests import tiny

SQUARE = {"size": {"height": 32, "width": 32}}
MARKED = tiny.TEMPLATE.replace("<image>\n", "<vision><image></vision>")


def tokenizer(**tokens: str) -> transformers.PreTrainedTokenizerFast:
    """The tiny tokenizer with some special tokens more, by the names that a processor has for them."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer().backend_tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"} | tokens,
    )


def gemma3() -> transformers.Gemma3Processor:
    text = tokenizer(boi_token="<boi>", eoi_token="<eoi>")
    template = tiny.TEMPLATE.replace("<image>\n", "<boi>")
    return transformers.Gemma3Processor(
        Gemma3ImageProcessorPil(**SQUARE), text, chat_template=template, image_seq_length=4
    )


class _GlmPictures(transformers.Glm4vProcessor):
    """Without its video processor, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


class _QwenPictures(transformers.Qwen3VLProcessor):
    """As above."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


def _grid() -> dict:
    return {
        "patch_size": 4,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 64, "longest_edge": 1024},
    }


def glm4v() -> transformers.Glm4vProcessor:
    text = tokenizer(vision_start_token="<vision>", vision_end_token="</vision>", video_token="<video>")
    return _GlmPictures(Glm4vImageProcessorPil(**_grid()), text, chat_template=MARKED)


def qwen3_5() -> transformers.Qwen3VLProcessor:
    text = tokenizer(vision_start_token="<vision>", vision_end_token="</vision>", video_token="<video>")
    return _QwenPictures(Qwen2VLImageProcessorPil(**_grid()), text, chat_template=MARKED)


def mistral3() -> transformers.PixtralProcessor:
    text = tokenizer(break_token="<break>", end_token="<end>")
    images = PixtralImageProcessorPil(size={"longest_edge": 48}, patch_size=8)
    return transformers.PixtralProcessor(
        images,
        text,
        patch_size=8,
        spatial_merge_size=2,
        image_token="<image>",
        image_break_token="<break>",
        image_end_token="<end>",
        chat_template=tiny.TEMPLATE,
    )


def idefics2() -> transformers.Idefics2Processor:
    text = tokenizer(image_boundary_token="<around>")
    images = Idefics2ImageProcessorPil(size={"shortest_edge": 16, "longest_edge": 32}, do_image_splitting=False)
    return transformers.Idefics2Processor(images, text, image_seq_len=4, chat_template=tiny.TEMPLATE)


def paligemma() -> transformers.PaliGemmaProcessor:
    images = SiglipImageProcessorPil(**SQUARE)
    images.image_seq_length = 16
    text = tokenizer()
    template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% elif m['role'] == "
        "'user' %}<s>{{ c['text'] }}\n{% else %}{{ c['text'] }}</s>{% endif %}{% endfor %}{% endfor %}"
    )
    return transformers.PaliGemmaProcessor(images, text, chat_template=template)


PROCESSORS = {
    "gemma3": gemma3,
    "paligemma": paligemma,
    "qwen3_5": qwen3_5,
    "glm4v": glm4v,
    "mistral3": mistral3,
    "idefics2": idefics2,
}
