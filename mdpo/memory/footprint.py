"""What a training step takes at its fullest, part by part, in bytes.

The step has five moments that can be the fullest: the tower reading the images, the head at the end of the forward,
the backward in the norm behind the layers and reaching the layers, and the optimizer. Each part is counted at each; the
largest sum is the peak.

    weights         bf16, or NF4 with double quantisation
    adapter, gradients, optimizer      fp32; AdamW's states in 32 or 8 bits, or paged, where they are on the host
    casts           under autocast, fp32 weights in bf16: the adapter's, which fused layers do not keep unless compiled
    boundaries      the inputs of the checkpointed layers
    kept layers     what the other layers keep for their backward
    recomputed      what the layer whose backward is running keeps once more
    in flight       gradients on their way through one layer, and a weight out of its 4 bits
    head            last hidden states, the scored rows and their unit gradient; workspace: tiles of the logits
    inputs          embeddings, image features and pixels, and what all layers read: masks, positions
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .counted import LayerBytes
from .layer import boundary_bytes_per_token, layer_bytes
from .precision import Precision
from .shapes import LayerShape, ModelShape

# A weight in NF4: half a byte, a byte of scale for 64 of them, and four bytes for 256 of those scales.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
ADAM_BYTES = {
    "adamw_torch": 8,
    "adamw_torch_fused": 8,
    "adamw_8bit": 2 + 8 / 256,
    "adamw_bnb_8bit": 2 + 8 / 256,
    "paged_adamw_8bit": 0,
}
# What linear_token_logps holds of tiles of the logits at the most: its default.
WORKSPACE_BYTES = 256 * 2**20
# Of a tile of logits in fp32, that plain PyTorch holds at once on a CPU.
_PLAIN_TEMPORARIES = 5
# cuBLAS's own workspace goes through PyTorch's allocator: 32 MiB on Hopper, some 8 before.
CUBLAS_BYTES = 32 * 2**20
# Not in PyTorch's allocator: the context, the kernels' code, the driver's share.
DRIVER_BYTES = 768 * 2**20
# Of it, what is taken as soon as a process has touched the card. Not measured: on the small side.
CONTEXT_BYTES = 448 * 2**20
# Of what comes and goes: what the allocator has reserved and cannot use. Computed nowhere, so on the safe side.
SLACK = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How the model is run. tokens: of a micro-batch, the most, what fills sequences up included. longest: of them, in
    one sequence; 0 where nothing depends on it. scored: rows that reach the head. images: in the micro-batch.
    checkpointed: layers. driver_bytes: what the device keeps for itself."""

    precision: Precision
    quantized: bool
    optimizer: str
    checkpointed: int
    tokens: int
    scored: int
    images: int
    longest: int = 0
    driver_bytes: int = DRIVER_BYTES


@dataclass(frozen=True, slots=True)
class Footprint:
    """parts: bytes by name, at the peak. moment: when that is. slack, driver: bytes on top of what is allocated."""

    parts: dict[str, float]
    moment: str
    slack: float
    driver: float

    @property
    def allocated(self) -> float:
        """What torch.cuda.max_memory_allocated should say."""
        return sum(self.parts.values())

    @property
    def total(self) -> float:
        return self.allocated + self.slack + self.driver


def footprint(shape: ModelShape, setup: Setup) -> Footprint:
    """The peak of one step after the first, whose gradients and optimizer states are there already."""
    constant = _constant(shape, setup)
    moments = {
        "the images": _images(shape, setup),
        "the head": _head(shape, setup),
        "the backward of the last norm": _norm_backward(shape, setup),
        "the backward of the last layer": _backward(shape, setup, first=True),
        "the backward of a checkpointed layer": _backward(shape, setup, first=False),
        "the optimizer": {"in flight": 4.0 * shape.trained if setup.optimizer == "adamw_torch" else 0.0},
    }
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    names = ("casts", "boundaries", "kept layers", "recomputed layer", "in flight", "head", "workspace", "inputs")
    parts = constant | {name: moments[moment].get(name, 0.0) for name in names}
    slack = SLACK * sum(moments[moment].values())
    return Footprint(parts, moment, slack, setup.driver_bytes)


def _constant(shape: ModelShape, setup: Setup) -> dict[str, float]:
    weight = setup.precision.weight_bytes
    trained_bytes = weight if shape.trained_base else 4  # adapters are fp32, the model's own weights what they are
    states = ADAM_BYTES[setup.optimizer]
    if shape.trained_base and states == 8:
        states = 2 * weight
    return {
        "language weights": shape.language_linear * (NF4_BYTES if setup.quantized else weight),
        "other weights": float(shape.other * weight),
        "reference weights": float(shape.kept * trained_bytes),
        "adapter": float(shape.trained * trained_bytes if not shape.trained_base else 0),
        "gradients": float(shape.trained * trained_bytes),
        "optimizer": float(shape.trained * states),
        "cuBLAS": float(CUBLAS_BYTES if setup.precision.cuda else 0),
    }


def _casts(shape: ModelShape, setup: Setup) -> float:
    """Copies of weights in bf16 that autocast makes of those in fp32, and the graph keeps."""
    if not setup.precision.autocast:
        return 0.0
    own = shape.language_linear if setup.precision.weight_bytes == 4 and not setup.quantized else 0
    return 2.0 * (own + (0 if shape.trained_base else shape.trained))


def _inputs(shape: ModelShape, setup: Setup, *, backward: bool = False) -> float:
    stream = shape.hidden_size * setup.precision.weight_bytes
    # transformers makes the embeddings a leaf of the graph when it switches checkpointing on.
    embeddings = setup.tokens * stream if setup.checkpointed else 0
    # What all layers read is held for those that are computed again.
    is_held = setup.checkpointed or not backward
    shared = layer_bytes(shape, setup.precision).shared.of(setup.tokens, setup.longest) if is_held else 0
    return 4.0 * setup.images * shape.pixels + setup.images * shape.image_tokens * stream + embeddings + shared


def _images(shape: ModelShape, setup: Setup) -> dict[str, float]:
    tower = setup.images * shape.image_patches * shape.tower_width * setup.precision.output_bytes
    return {"inputs": _inputs(shape, setup), "in flight": float(tower)}


def _layers(shape: ModelShape, setup: Setup) -> tuple[float, float, float]:
    """Boundaries, kept layers, and the checkpointed layer that takes most when it is computed again, in bytes."""
    layers = layer_bytes(shape, setup.precision).layers
    kept = [layer.kept.of(setup.tokens, setup.longest) for layer in layers]
    boundaries = setup.checkpointed * setup.tokens * boundary_bytes_per_token(shape, setup.precision)
    return float(boundaries), sum(kept[setup.checkpointed :]), max(kept[: setup.checkpointed], default=0.0)


def _in_flight(layers: Sequence[LayerBytes], shape: ModelShape, setup: Setup) -> float:
    """Of the layer whose backward takes most."""
    most = max(layer.in_flight.of(setup.tokens, setup.longest) for layer in layers)
    return most + (shape.largest_linear * setup.precision.output_bytes if setup.quantized else 0)


def _last_norm(shape: ModelShape, setup: Setup) -> float:
    """What the norm behind the layers keeps, and what it puts out."""
    return float(setup.tokens * shape.hidden_size * (4 + setup.precision.weight_bytes))


def _head(shape: ModelShape, setup: Setup) -> dict[str, float]:
    boundaries, kept, _ = _layers(shape, setup)
    weight = setup.precision.weight_bytes
    scored = 2.0 * setup.scored * shape.hidden_size * weight  # the rows and their unit gradient
    logit_bytes = 4 + weight if setup.precision.cuda else 4 * _PLAIN_TEMPORARIES
    head = float(shape.vocabulary * shape.hidden_size * (4 + weight)) if shape.trained_head and shape.rank else 0.0
    return {
        "casts": _casts(shape, setup),
        "boundaries": boundaries,
        "kept layers": kept,
        "head": _last_norm(shape, setup) + scored + head,
        "workspace": float(min(WORKSPACE_BYTES, setup.scored * shape.vocabulary * logit_bytes)),
        "inputs": _inputs(shape, setup),
    }


def _norm_backward(shape: ModelShape, setup: Setup) -> dict[str, float]:
    """Nothing of the layers is free yet. An RMSNorm's gradient passes five steps in fp32, a LayerNorm's one."""
    boundaries, kept, _ = _layers(shape, setup)
    plain = isinstance(shape.layer, LayerShape) and not shape.layer.rms
    steps = setup.precision.output_bytes if plain else 5 * 4
    return {
        "casts": _casts(shape, setup) * (shape.layers - setup.checkpointed) / shape.layers,
        "boundaries": boundaries,
        "kept layers": kept,
        "head": 4.0 * setup.tokens * shape.hidden_size,
        "in flight": float(setup.tokens * shape.hidden_size * steps),
        "inputs": _inputs(shape, setup, backward=True),
    }


def _backward(shape: ModelShape, setup: Setup, *, first: bool) -> dict[str, float]:
    """At the last layer nothing of the kept layers is free yet; at a checkpointed one all of it is."""
    boundaries, kept, one = _layers(shape, setup)
    recomputes = setup.checkpointed == shape.layers if first else setup.checkpointed > 0
    kept_layers = shape.layers - setup.checkpointed if first else 0
    layers = layer_bytes(shape, setup.precision).layers
    running = layers[-1:] if first else layers[: setup.checkpointed] or layers
    return {
        "casts": _casts(shape, setup) * (kept_layers + recomputes) / shape.layers,
        "boundaries": boundaries,
        "kept layers": kept if first else 0.0,
        "recomputed layer": one if recomputes else 0.0,
        "in flight": _in_flight(running, shape, setup),
        "inputs": _inputs(shape, setup, backward=True),
    }
