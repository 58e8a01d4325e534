"""The tiny models a little wider: what 4-bit blocks of 64 and a count of bytes need to mean something."""

from transformers import PreTrainedModel

from tests import tiny

FAMILIES = {
    "llava-llama": tiny.llava,
    "llava-llama-gqa": lambda: tiny.llava("llama-gqa"),
    "bunny": tiny.bunny,
    "qwen2_5_vl": tiny.qwen2_5_vl,
}


def model(kind: str, *, hidden_size: int = 64, layers: int = 2) -> PreTrainedModel:
    """The family's tiny model with ``hidden_size`` channels, twice as many in the MLP, and heads of 16."""
    config = FAMILIES[kind]().config
    text = config.text_config
    groups = text.num_attention_heads // text.num_key_value_heads
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = hidden_size, 2 * hidden_size, layers
    text.num_attention_heads = hidden_size // 16
    text.num_key_value_heads = text.num_attention_heads // groups
    if getattr(text, "head_dim", None) is not None:
        text.head_dim = 16
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = text.layer_types[:1] * layers
    if config.model_type == "qwen2_5_vl":
        config.vision_config.out_hidden_size = hidden_size
    text._attn_implementation = None
    return tiny._build(type(FAMILIES[kind]()), config, 0)
