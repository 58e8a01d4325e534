"""Devices by the names that their drivers give them: the short name of a table's column, and the peak of bfloat16."""

import re

# Dense bfloat16 matrix products with fp32 accumulation, flop/s. Sources: NVIDIA's data sheets of the H100 (SXM, PCIe,
# NVL), the H200 (SXM, NVL) and the A100, halved where they count sparsity; for the RTX 4090 and 5090 the appendices of
# the Ada and of the RTX Blackwell architecture papers. GH200 is another card, and so are a laptop's 4090 and the 4090
# D.
_CARDS = {
    "H200": (r"\bH200(?! NVL)", 989e12),
    "H200 NVL": (r"\bH200 NVL", 835e12),
    "H100": (r"\bH100(?! (PCIe|NVL)\b)", 989e12),
    "H100 PCIe": (r"\bH100 PCIe", 756e12),
    "H100 NVL": (r"\bH100 NVL", 835e12),
    "A100": (r"\bA100\b", 312e12),
    "RTX 4090": (r"\bRTX 4090$", 165e12),
    "RTX 5090": (r"\bRTX 5090$", 210e12),
}
# Words that say what else has had a folder among those of the devices, and name no card.
_OTHERS = {"cpu", "digits", "host", "plots", "scenes", "study"}


def card_of(device: str) -> str:
    """The short name of a device, or its whole name where it is not one of these; a slice of a card is not the card."""
    found = (card for card, (pattern, _) in _CARDS.items() if re.search(pattern, device))
    return device if " MIG " in device else next(found, device)


def peak_of(device: str) -> float | None:
    """Its dense bfloat16 peak in flop/s, None where that is not known."""
    card = card_of(device)
    return _CARDS[card][1] if card in _CARDS else None


def folder_of(device: str, device_type: str) -> str:
    """The folder under bench/results of what was measured on it. Raises ValueError where a GPU's name makes none."""
    name = file_word(card_of(device))
    if device_type == "cuda" and (not name or name in _OTHERS):
        raise ValueError(f"{ascii(device)[:100]} is not the name of a GPU")
    return name or "cpu"


def file_word(text: str) -> str:
    """What a device or an operation is called in the name of a file: no marks, nothing that a path or a link reads."""
    plain = re.sub(r"\((r|tm|c)\)", "", text.lower())
    return re.sub(r"[^a-z0-9_]+", "-", plain).strip("-")
