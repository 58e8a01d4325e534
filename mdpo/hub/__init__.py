"""Models, adapters and data sets by the name under which the Hugging Face hub has them: ``owner/name``, or
``owner/name@revision`` for a branch, tag or commit.

Whatever stands on disk under a name comes first. Token, cache and endpoint are huggingface_hub's own (``HF_TOKEN``,
``HF_HOME``, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``). Of a repository only settings, vocabularies, chat templates and
safetensors are fetched: no pickle, no code.
"""

from .names import Name, hub_name, with_revision
from .repositories import base_of, cached_config, check_weights_there, folder_of, look_at_dataset

__all__ = [
    "Name",
    "base_of",
    "cached_config",
    "check_weights_there",
    "folder_of",
    "hub_name",
    "look_at_dataset",
    "with_revision",
]
