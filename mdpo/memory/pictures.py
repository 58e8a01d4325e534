"""How large a picture is when the model sees it: asked of the processor, which may have been told so in the
configuration.
"""

import math
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig, ProcessorMixin

from mdpo.data.image_tokens import ImageTokens, image_settings

from .lengths import Picture

# Height and width of pictures large enough to take as many tokens as any: processors that cut tiles have favourite
# proportions.
_LARGE = [(3072, 3072), (3072, 1536), (1536, 3072), (4096, 1024), (1024, 4096)]


def picture_of(processor: ProcessorMixin, config: PreTrainedConfig, size: tuple[int, int]) -> Picture:
    """What the processor makes of a picture of this height and width, in pixels."""
    source: Any = processor
    settings = image_settings(processor) | {"return_tensors": "pt"}
    made = source.image_processor(images=[Image.new("RGB", (size[1], size[0]))], **settings)
    values = [value for value in made.values() if isinstance(value, Tensor) and value.is_floating_point()]
    pixels = sum(value.numel() for value in values)
    vision = getattr(config, "vision_config", None)
    patch = getattr(vision, "patch_size", None)
    times = getattr(vision, "temporal_patch_size", 1)
    patches = pixels // (3 * patch**2 * times) if isinstance(patch, int) and isinstance(times, int) else 0
    return Picture(len(ImageTokens(processor)(*size)), patches, pixels)


def largest_picture(processor: ProcessorMixin, config: PreTrainedConfig) -> Picture:
    """The most that the processor makes of any picture."""
    count = ImageTokens(processor)
    return picture_of(processor, config, max(_LARGE, key=lambda size: (len(count(*size)), -math.prod(size))))
