"""An adapter into the weights: a model folder that needs neither this package nor peft."""

import argparse
import json
from pathlib import Path

from peft import PeftModel

from mdpo.errors import InputError

from .generation_config import repair_generation_config
from .load import load, load_processor
from .model_card import model_card


def merge(adapter: str | Path, destination: str | Path, base: str | Path | None = None) -> Path:
    """Writes base plus adapter to ``destination``: safetensors weights, processor, generation config, model card.

    base: the base model's folder, where it is no longer the one that the adapter names. Merged in the base weights' own
    dtype, on the CPU: with fp32 weights the log-probs stay what they were up to rounding; with bf16 weights the sum is
    rounded to bf16. An adapter trained on 4-bit weights is merged into the whole ones.

    Raises InputError where a folder is missing or is not what it should be, the destination is not empty, or an
    adapted lm_head is tied to the embeddings, which would take the change too.
    """
    adapter, destination = Path(adapter).expanduser(), Path(destination).expanduser()
    path = adapter / "adapter_config.json"
    if not path.is_file():
        raise InputError(f"{adapter} has no adapter_config.json: not a PEFT adapter")
    if destination.exists() and any(destination.iterdir()):
        raise InputError(f"{destination} is not empty; give a new folder")
    base = Path(base or json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
    if not (base / "config.json").is_file():
        raise InputError(f"the base model {str(base)!r} that the adapter names is not here; give its folder with --base")
    model = load(base)
    repair_generation_config(model)  # one that is read is not always one that can be written
    model = PeftModel.from_pretrained(model, adapter)
    if model.config.tie_word_embeddings and "lora" in type(model.get_output_embeddings()).__module__:
        raise InputError("the adapter is on an lm_head that is tied to the embeddings; it can't be merged into one of them")
    merged = model.merge_and_unload(safe_merge=True)
    processor = load_processor(adapter if (adapter / "processor_config.json").is_file() else base)
    merged.save_pretrained(destination)
    merged.generation_config.save_pretrained(destination)
    processor.save_pretrained(destination)
    (destination / "README.md").write_text(model_card(adapter, base), encoding="utf-8")
    return destination


def run_merge(options: argparse.Namespace) -> None:
    """``mdpo merge``."""
    print(f"wrote {merge(options.adapter, options.destination, options.base)}")
