"""One vector per picture: the mean of the features that the model's own tower and projector make of it.

Kept on disk in one safetensors file per model, named for a digest of everything that makes features; in it a picture is
named by a digest that its caller gives. A file that is damaged is made again.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mdpo.errors import InputError, OutputError
from mdpo.outputs import whole_file
from mdpo.packing import Separate, family_of

from .folder import short
from .logps import unwrap, vision_parameters, without_adapter
from .reference import is_adapter_parameter
from .tensors_digest import tensors_digest
from .tower import tower_inputs

_log = logging.getLogger(__name__)

_BATCH = 8  # pictures, each of up to thousands of patches

# Shapes: N pictures, H hidden size of the text model


@torch.no_grad()
def image_embeddings(
    model: nn.Module,
    digests: Sequence[str],
    picture: Callable[[int], Mapping[str, Tensor]],
    *,
    folder: str | Path | None = None,
) -> Tensor:
    """The mean feature of every picture: (N, H) float32, on the CPU.

    Args:
        model: A supported Hugging Face model, bare or PEFT, whose adapter is then off.
        digests: Names each picture and how it was processed, in 32 hexadecimal digits.
        picture: What the image processor returns for the picture at this position; asked for what the file lacks.
        folder: Where the vectors are kept for the next run; None keeps nothing.

    Raises InputError for a family that is read separately, or not at all, and for features that are no numbers. A
    folder that cannot be written to is logged.
    """
    base, family = unwrap(model), family_of(model)
    if isinstance(family, Separate):
        raise InputError(
            f"negative: only families with a packed row can tell which images look alike ({family.reason}); "
            "choose another negative"
        )
    path = None if folder is None else Path(folder, f"image_embeddings-{_key(base)}.safetensors")
    known = {} if path is None else _read(path)
    missing = [at for at, digest in enumerate(digests) if digest not in known]
    device = next(iter(vision_parameters(base))).device
    training = base.training
    base.eval()
    try:
        with (
            without_adapter(model),
            tqdm(total=len(missing), desc="embedding pictures", leave=False, disable=None) as bar,
        ):
            for start in range(0, len(missing), _BATCH):
                batch = missing[start : start + _BATCH]
                splits = [family.split_images(picture(at)) for at in batch]
                images = _together([part for parts in splits for part in parts], family.host_inputs, device)
                found = base.model.get_image_features(**tower_inputs(base, images), return_dict=True).pooler_output
                rows = iter(found)
                for at, parts in zip(batch, splits, strict=True):
                    tokens = torch.cat([next(rows) for _ in parts])
                    known[digests[at]] = tokens.float().mean(0).cpu()
                    _check_finite(known[digests[at]])
                bar.update(len(batch))
    finally:
        base.train(training)
    if missing and path is not None:
        _write(path, known)
    return torch.stack([known[digest] for digest in digests]) if len(digests) else torch.zeros(0, 0)


def _check_finite(embedding: Tensor) -> None:
    if not embedding.isfinite().all():
        raise InputError(
            "the vision tower and projector make features that are not finite, so that no image is like another; a "
            "weight is not a number, or values overflow in this dtype (dtype: float32)"
        )


def _together(
    images: Sequence[Mapping[str, Tensor]], on_host: Sequence[str], device: torch.device
) -> dict[str, Tensor]:
    joined = {name: torch.cat([image[name] for image in images]) for name in images[0]}
    return {name: value if name in on_host else value.to(device) for name, value in joined.items()}


def _key(base: PreTrainedModel) -> str:
    """Of what makes the features: the weights in front of the text model, and the config without what only names it."""
    vision = {id(parameter) for parameter in vision_parameters(base)}
    named = []
    for name, parameter in base.named_parameters():
        if id(parameter) not in vision or is_adapter_parameter(base, name):
            continue
        named.append((name.replace(".base_layer", ""), parameter))
        state = getattr(parameter, "quant_state", None)
        if state is not None:  # 4-bit codes say nothing without their scales
            named += [(f"{name}.{part}", value) for part, value in state.as_dict(packed=True).items()]
    config = {
        name: value for name, value in base.config.to_dict().items() if name.startswith(("vision", "image", "mm_"))
    }
    text = json.dumps([config, base.config.model_type], sort_keys=True, default=str)
    return hashlib.blake2b((tensors_digest(sorted(named)) + text).encode(), digest_size=16).hexdigest()


def _read(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        return {}
    try:
        found = load_file(path)
        digests, embeddings = found["digests"], found["embeddings"]
        shapes = digests.ndim == embeddings.ndim == 2 and len(digests) == len(embeddings) and digests.shape[1] == 16
        if (
            not shapes
            or digests.dtype != torch.uint8
            or embeddings.dtype != torch.float32
            or not embeddings.isfinite().all()
        ):
            raise ValueError("its tensors are not those that were written")
        return {bytes(digest).hex(): row for digest, row in zip(digests.numpy(), embeddings, strict=True)}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        _log.warning("%s is damaged (%s): it is made again", path, short(error))
        return {}


def _write(path: Path, known: Mapping[str, Tensor]) -> None:
    digests = torch.tensor([list(bytes.fromhex(digest)) for digest in known], dtype=torch.uint8)
    try:
        with whole_file(path) as part:
            save_file({"digests": digests, "embeddings": torch.stack(list(known.values()))}, part)
    except OutputError as error:
        _log.warning("image embeddings are not kept (%s); the next run makes them again", error)
