"""Chat templates and tokenizers as models have them, small: what a template writes, and what a tokenizer adds."""

import functools

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mdpo.models.official import _CHAT_TEMPLATE
from tests import tiny

_CONTENT = (
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
)
_CHATML = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% set thought = '<think>\n\n</think>\n\n' if thinking is defined and not thinking else '' %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ thought if m['role'] == 'assistant' and loop.last }}"
    + _CONTENT
    + "<|im_end|>END{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{{ thought }}{% endif %}"
)
TEMPLATES = {
    "vicuna": _CHAT_TEMPLATE,
    "llava-hf": tiny.TEMPLATE.replace("</s>", " "),
    "chatml": _CHATML.replace("END", "\n"),
    "chatml, one line": _CHATML.replace("END", ""),
    "llama-3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        + _CONTENT.replace("c['text']", "c['text'] | trim")
        + "<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "idefics": (
        "{% for m in messages %}{{ m['role'].capitalize() }}:"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %} {{ c['text'] }}{% endif %}{% "
        "endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
    "llama-2": (
        "{% for m in messages %}{% if m['role'] == 'user' %}<s>[INST] " + _CONTENT + " [/INST]"
        "{% else %} " + _CONTENT + " </s>{% endif %}{% endfor %}"
    ),
    "phi-3": (
        "{% for m in messages %}<|{{ m['role'] }}|>\n" + _CONTENT + "<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
    ),
    "hashes": (
        "{% for m in messages %}{% if m['role'] == 'user' %}###Human: {% else %}###Assistant: {% endif %}"
        + _CONTENT
        + "{{ '\n@@@\n' if m['role'] == 'assistant' else '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}###Assistant:{% endif %}"
    ),
}
# What an answer ends with, by the token or the text.
ENDS = {
    "vicuna": "</s>",
    "llava-hf": "</s>",
    "chatml": "<|im_end|>",
    "chatml, one line": "<|im_end|>",
    "llama-3": "<|eot_id|>",
    "idefics": "<end_of_utterance>",
    "llama-2": "</s>",
    "phi-3": "<|end|>",
    "hashes": "@@@",
}
_MARKS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<end_of_utterance>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
)
TOKENIZERS = ("bytes", "bytes, adds bos", "bytes, adds bos and eos", "words first", "words always")


def tokenizer(kind: str = "bytes", marks: tuple[str, ...] = _MARKS, *, special: bool = True):
    """kind: bytes as GPT-2 has them, or words with a blank in front as Llama has them, at a text's start or behind
    every special token."""
    made = Tokenizer.from_str(_trained(kind))
    made.add_tokens([AddedToken(mark, special=special, normalized=False) for mark in marks])
    if "adds" in kind or kind.startswith("words"):
        single = "<s> $A </s>" if kind.endswith("eos") else "<s> $A"
        made.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )


@functools.cache
def _trained(kind: str) -> str:
    return (tiny.tokenizer().backend_tokenizer if kind.startswith("bytes") else _words(kind)).to_str()


def _words(kind: str) -> Tokenizer:
    made = Tokenizer(models.BPE(byte_fallback=True))
    special = ["<s>", "</s>", "<pad>", "<image>"]
    letters = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=letters,
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz▁"),
        show_progress=False,
    )
    made.normalizer = normalizers.Replace(" ", "▁")
    if kind.endswith("always"):
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), made.normalizer])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.train_from_iterator([" ".join(tiny.WORDS)] * 8, trainer)
    # Bytes were trained as if they were special; they are ordinary.
    model = models.BPE(made.get_vocab(), [], byte_fallback=True)
    plain = Tokenizer(model)
    plain.normalizer, plain.pre_tokenizer, plain.decoder = made.normalizer, made.pre_tokenizer, made.decoder
    plain.add_special_tokens(special)
    return plain


def processor(template: str = tiny.TEMPLATE, kind: str = "bytes", **options) -> transformers.LlavaProcessor:
    """template: one of TEMPLATES by name, or a Jinja text."""
    return tiny.processor(tokenizer(kind, **options), TEMPLATES.get(template, template))
