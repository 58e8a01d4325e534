"""The linear layers of a decoder layer, and what a LoRA on them costs, in bytes per token."""

from dataclasses import dataclass

RANK = 64


@dataclass(frozen=True, slots=True)
class Readers:
    """Linear layers that read one input: its width, the layers' names and output widths."""

    inputs: int
    outputs: dict[str, int]
    bias: bool = False


LAYERS = {
    "LLaVA-1.5-7B": (
        Readers(4096, {"q": 4096, "k": 4096, "v": 4096}),
        Readers(4096, {"o": 4096}),
        Readers(4096, {"gate": 11008, "up": 11008}),
        Readers(11008, {"down": 4096}),
    ),
    "Bunny-3B": (  # Phi's MLP reads what its attention reads
        Readers(2560, {"q": 2560, "k": 2560, "v": 2560, "fc1": 10240}, bias=True),
        Readers(2560, {"dense": 2560}, bias=True),
        Readers(10240, {"fc2": 2560}, bias=True),
    ),
    "Qwen2.5-VL-3B": (
        Readers(2048, {"q": 2048, "k": 256, "v": 256}, bias=True),
        Readers(2048, {"o": 2048}),
        Readers(2048, {"gate": 11008, "up": 11008}),
        Readers(11008, {"down": 2048}),
    ),
}


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes per token beside the base's products: written, and moved (written and read); kept: for the backward."""

    written: float = 0
    moved: float = 0
    kept: float = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.written + other.written, self.moved + other.moved, self.kept + other.kept)

    def times(self, factor: float) -> "Cost":
        return Cost(factor * self.written, factor * self.moved, factor * self.kept)
