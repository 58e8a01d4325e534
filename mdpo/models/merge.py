"""An adapter into the weights: a model folder that needs neither this package nor peft."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from mdpo.errors import InputError
from mdpo.hub import folder_of, hub_name, with_revision
from mdpo.outputs import whole_folder, write_part
from mdpo.packing import MDPO_BRANCHES, PreferenceTokens
from mdpo.shown import shown

from .adapters import adapter_config, load_adapter, run_record
from .folder import mapping, short
from .generation_config import repair_generation_config
from .load import load, load_processor
from .logps import check_adapter_kinds, unwrap
from .model_card import model_card
from .official import check_destination
from .plain import plain_branches, plain_token_logps
from .start_check import rounding_of


def merge(adapter: str | Path, destination: str | Path, base: str | Path | None = None) -> Path:
    """Writes base plus adapter to ``destination``: safetensors weights, processor, generation config, model card; all
    of it or nothing.

    adapter, base: folders, or names on the hub. base: where it is no longer the one that the adapter names. Merged in
    the base weights' own dtype, on the CPU: with fp32 weights the log-probs stay what they were up to rounding; with
    bf16 weights the sum is rounded to bf16. An adapter trained on 4-bit weights is merged into the whole ones.

    Raises InputError where a folder is missing or is not what it should be, the destination is not empty, the adapter
    was trained on another base, or merging would change what the adapter says: an adapter on embeddings that are tied
    to the head, a kind of adapter that cannot be merged. Raises OutputError where the disk is full or refuses.
    """
    destination = Path(destination).expanduser()
    config = adapter_config(adapter)
    check_destination(destination)
    adapter = folder_of(adapter, called="adapter")
    base = str(base) if base is not None else _named_base(adapter, config)
    loaded = load(base)
    repair_generation_config(loaded)  # one that is read is not always one that can be written
    model = load_adapter(loaded, adapter, base=base)
    check_adapter_kinds(model)
    merged = _merged(model, adapter)
    processor = load_processor(adapter if (adapter / "processor_config.json").is_file() else base)
    with whole_folder(destination) as part:
        merged.save_pretrained(part)
        merged.generation_config.save_pretrained(part)
        processor.save_pretrained(part)
        write_part(part / "README.md", model_card(adapter, Path(base)))
    return destination


def _named_base(adapter: Path, config: Mapping[str, Any]) -> str:
    """The base that the adapter names, or else the record of its run: a folder, or a name on the hub.

    Raises InputError where it is neither.
    """
    names = [config.get("base_model_name_or_path"), mapping(run_record(adapter).get("run")).get("model_name_or_path")]
    for name in names:
        if isinstance(name, str) and name and Path(name, "config.json").is_file():
            return name
        if isinstance(name, str) and hub_name(name) is not None:
            revision = config.get("revision") if name == names[0] else None
            return with_revision(name, revision if isinstance(revision, str) and revision else None)
    raise InputError(
        f"the base model {shown(names[0] or '')[:200]!r} that the adapter names is not here; give its folder with "
        "--base, or its name on the hub"
    )


def _merged(model: PeftModel, adapter: Path) -> Any:
    """The merged model, held to the adapter's own log-probs on a text."""
    model.eval()
    text = plain_branches([_text(model)], MDPO_BRANCHES, unwrap(model).config.image_token_id)
    expected = [plain_token_logps(model, branch) for branch in text]
    rounding = rounding_of(model)
    tuner: Any = model
    try:
        merged = tuner.merge_and_unload(safe_merge=True)
    except (AttributeError, NotImplementedError, ValueError, RuntimeError, TypeError) as error:
        kind = model.peft_config[model.active_adapters[0]].peft_type
        raise InputError(
            f"{adapter}: this adapter ({kind}) cannot be merged: {short(error)}; use it as an adapter"
        ) from error
    got = [plain_token_logps(merged, branch) for branch in text]
    off = float((torch.cat(got) - torch.cat(expected)).abs().mean())
    if not off <= rounding or _comes_apart(merged):
        tied = ": the adapter is on embeddings that are tied to lm_head" if merged.config.tie_word_embeddings else ""
        raise InputError(
            f"{adapter}: merging would change the model ({off:.2g} nats a token off){tied}; it can't be "
            "merged, use it as an adapter"
        )
    return merged


def _comes_apart(merged: Any) -> bool:
    """Whether embeddings and head, which loading will tie to one another, differ."""
    if not merged.config.tie_word_embeddings:
        return False
    return not torch.equal(merged.get_input_embeddings().weight, merged.get_output_embeddings().weight)


def _text(model: PeftModel) -> PreferenceTokens:
    """Some of every part of the vocabulary: an adapter of single tokens has to show."""
    config: Any = model.config
    embeddings: Any = unwrap(model).get_input_embeddings()
    vocabulary = len(embeddings.weight)
    ids = [token for token in range(0, vocabulary, -(-vocabulary // 512)) if token != config.image_token_id]
    middle = len(ids) // 2
    return PreferenceTokens("text", ids[:middle], ids[middle:], ids[:middle], None)
