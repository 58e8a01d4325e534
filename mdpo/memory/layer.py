"""What the language layers keep for their backward, and of most families the equation for it, per packed token.

Followed through the forward of transformers' layers tensor by tensor; the tests hold it against counted tensors.
Letters: H hidden size, Q and K widths of query and key, I of the MLP, r the rank; s, a bytes of the residual stream
and of what a linear layer puts out (under autocast the two differ where the weights are fp32).
"""

from .counted import Bytes, Counted, CountedLayers, LayerBytes
from .precision import Precision
from .shapes import LayerShape, ModelShape

# Tensors of width I that the activation keeps. gelu_new is written out in PyTorch: input, tanh, and both factors.
_ACTIVATION_KEEPS = {"silu": 1, "gelu": 1, "gelu_pytorch_tanh": 1, "quick_gelu": 2, "gelu_new": 4}
_FP32 = 4


def layer_bytes(shape: ModelShape, precision: Precision) -> Counted:
    """Of every layer of the language model. Raises Unplanned where they cannot be counted."""
    if isinstance(shape.layer, CountedLayers):
        return shape.layer.by(precision)
    kept, in_flight = (
        Bytes(per_token=of(shape.layer, precision)) for of in (kept_bytes_per_token, gradient_bytes_per_token)
    )
    return Counted((LayerBytes(kept, in_flight),) * shape.layers, Bytes())


def kept_bytes_per_token(shape: LayerShape, precision: Precision) -> float:
    """Bytes that a layer which is not checkpointed keeps from its forward to its backward."""
    a = precision.output_bytes
    norms, norm_out = _norms(shape, precision)
    attention = a * 2 * (shape.query_size + shape.key_size) + 4 * shape.heads  # query, key, value, out; log-sum-exp
    if shape.head_norms:
        attention += _FP32 * (shape.query_size + shape.key_size)
    inputs = (
        _inputs("attention", norm_out, shape, precision)
        + _inputs("attention_out", a, shape, precision)
        - (
            a * shape.query_size if _shared("attention_out", a, shape, precision) else 0
        )  # the attention keeps it already
        + _inputs("mlp", norm_out, shape, precision)
        + _inputs("mlp_out", a, shape, precision)
    )
    if shape.pre_norms == 1 and _shared("attention", norm_out, shape, precision):
        inputs -= norm_out * shape.hidden_size  # attention and MLP read one and the same
    return norms + attention + inputs + _mlp(shape, precision)


def boundary_bytes_per_token(shape: ModelShape, precision: Precision) -> int:
    """Bytes that a checkpointed layer keeps: its input."""
    return shape.hidden_size * precision.weight_bytes


def gradient_bytes_per_token(shape: LayerShape, precision: Precision) -> float:
    """Bytes of the gradients in flight where a layer's backward is at its fullest, which is in the MLP."""
    a = precision.output_bytes
    # Of the MLP's last input, by way of the weight and of the adapter; of the stream, past the MLP and through it.
    return 2 * a * shape.intermediate_size + (a + precision.weight_bytes) * shape.hidden_size


def _norms(shape: LayerShape, precision: Precision) -> tuple[float, int]:
    """Bytes per token that a layer's norms keep, and the bytes of an element they put out."""
    s, width = precision.weight_bytes, shape.hidden_size
    if shape.rms:
        kept = (s if precision.liger else _FP32) * width + 4
        if shape.trains:
            kept += s * width  # the normalised input, for the gradient of the norm's weight
        return shape.pre_norms * kept, s
    # CUDA's autocast computes a LayerNorm in fp32, and its input is kept so; what it puts out is cast down once for its
    # readers (mdpo/models/norms.py).
    fp32 = precision.autocast and precision.cuda
    return shape.pre_norms * ((_FP32 if fp32 else s) * width + 8), precision.output_bytes if fp32 else s


def _shared(group: str, input_bytes: int, shape: LayerShape, precision: Precision) -> bool:
    """Whether a group's layers keep one input, as it is. Adapters are fp32: without autocast peft casts to that."""
    _, trained = shape.groups[group]
    if precision.autocast:
        return trained > 0 and input_bytes == precision.output_bytes
    return trained > 0 and (shape.rank == 0 or input_bytes == _FP32)


def _inputs(group: str, input_bytes: int, shape: LayerShape, precision: Precision) -> float:
    """Inputs of the linear layers that train, and what their A puts out."""
    width, trained = shape.groups[group]
    mid = trained * shape.rank * (precision.output_bytes if precision.autocast else _FP32)
    if _shared(group, input_bytes, shape, precision):
        return input_bytes * width + mid
    return trained * (precision.output_bytes if precision.autocast else _FP32) * width + mid


def _mlp(shape: LayerShape, precision: Precision) -> float:
    """What lies between the MLP's linear layers; the input of the last counts with the inputs."""
    a, width = precision.output_bytes, shape.intermediate_size
    if shape.gated:
        return a * (2 if precision.liger else 3) * width  # gate, up, and without Liger the activated gate
    if shape.activation == "gelu_new" and precision.autocast and precision.cuda:
        return (3 * _FP32 + a) * width  # CUDA's autocast takes powers in fp32, and the rest follows
    return a * _ACTIVATION_KEEPS.get(shape.activation, 1) * width
