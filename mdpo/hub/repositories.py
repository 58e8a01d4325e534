"""Repositories of the hub: looked at, fetched into huggingface_hub's cache, or found there without a network."""

import errno
import functools
import glob
import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
)

from mdpo.errors import InputError
from mdpo.reading import parse_json, read_bytes
from mdpo.stops import is_main_process

from .names import Name, hub_name, no_folder
from .refusals import reason, refusal

Part = Literal["config", "settings", "weights"]

_log = logging.getLogger(__name__)

_CONFIGS = ("config.json", "adapter_config.json")
_SETTINGS = (".json", ".jinja", ".txt", ".model")  # .model: SentencePiece's vocabulary, which is no pickle
_TEMPLATES = "additional_chat_templates"
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
_INDEX = "model.safetensors.index.json"
_ANY = ".gitattributes"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SNAPSHOT = re.compile(
    r"/models--(?P<repo>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})$"
)  # no repository has -- in its name
_NO_NETWORK = (HTTPError, OfflineModeIsEnabled, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class _Seen:
    """The files of a repository at one commit. folder: where the cache keeps them, if the hub could not be asked."""

    commit: str
    files: tuple[str, ...]
    folder: Path | None = None


def folder_of(path: str | Path, part: Part = "weights", *, called: str = "model") -> Path:
    """The folder of a model or an adapter: ``path`` itself if it is one, else the one in huggingface_hub's cache.

    Args:
        path: Folder, or ``owner/name`` or ``owner/name@revision`` on the hub.
        part: How much of a repository is fetched: its config; all settings, vocabularies and templates too; or the
            safetensors weights as well.
        called: What messages call it, "model" or "adapter".

    Raises InputError if there is no such folder, if the hub has no such repository or does not hand it out, if neither
    the hub can be reached nor the cache has it, and, for weights, if the repository has no safetensors.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    name = hub_name(path)
    if name is None:
        raise InputError(no_folder(folder, called))
    seen = _look(name)
    settings = tuple(file for file in seen.files if _is_setting(file))
    if part == "config":
        return _fetch(name, seen, tuple(file for file in _CONFIGS if file in seen.files))
    folder = _fetch(name, seen, settings)
    weights = () if part == "settings" else _weight_files(name, seen, folder)
    return _fetch(name, seen, weights) if weights else folder


def check_weights_there(path: str | Path) -> None:
    """Raises InputError if ``path`` is a name on the hub whose repository has no safetensors weights; without a
    network, if the cache does not have them."""
    name = None if Path(path).expanduser().is_dir() else hub_name(path)
    if name is None:
        return
    seen = _look(name)
    _check_safetensors(name, seen)
    if seen.folder is not None:
        _weight_files(name, seen, seen.folder)


def cached_config(path: str | Path) -> Path | None:
    """The folder on this machine that has the config.json of ``path``: the folder itself, or the one in the cache for a
    name on the hub; None if there is none. Never uses the network."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        name = hub_name(path)
        found = name and try_to_load_from_cache(name.repo, "config.json", revision=name.revision)
        return Path(found).parent if isinstance(found, str) else None
    return folder if (folder / "config.json").is_file() else None


def base_of(folder: str | Path) -> Name | None:
    """The name on the hub, with its commit, of a model's folder in huggingface_hub's cache; None for any other
    folder.
    """
    match = _SNAPSHOT.search(Path(folder).as_posix())
    return None if match is None else Name(match["repo"].replace("--", "/"), match["commit"])


def look_at_dataset(name: Name) -> tuple[str | None, bool]:
    """The commit of a data set on the hub, and whether the hub was asked. If it cannot be reached, the commit is the
    one that the name stood for when it was last asked, or None.

    Raises InputError if the hub has no such data set, or does not hand it out.
    """
    api, where = HfApi(), {"repo_type": "dataset", "revision": name.revision}
    try:
        info = api.dataset_info(name.repo, revision=name.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        if info.gated:  # everybody may read about it
            api.auth_check(name.repo, repo_type="dataset")
        # Every repository has this small file. In the cache it says which commit the name stood for.
        with suppress(EntryNotFoundError):
            api.hf_hub_download(name.repo, _ANY, **where)
        return info.sha, True
    except HfHubHTTPError as error:
        if error.response.status_code < 500:
            raise refusal(name, "dataset", error) from error
    except _NO_NETWORK:
        pass
    found = try_to_load_from_cache(name.repo, _ANY, **where)
    return Path(found).parent.name if isinstance(found, str) else None, False


@functools.lru_cache
def _look(name: Name) -> _Seen:
    """Asked once a process, so that config, processor and weights are of one commit."""
    try:
        info = HfApi().model_info(name.repo, revision=name.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except HfHubHTTPError as error:
        if error.response.status_code < 500:
            raise refusal(name, "model", error) from error
        return _cached(name, error)
    except _NO_NETWORK as error:
        return _cached(name, error)
    return _Seen(str(info.sha), tuple(file.rfilename for file in info.siblings or ()))


def _cached(name: Name, error: Exception) -> _Seen:
    """The repository as the cache has it. error: why the hub could not be asked."""
    found: Any = [try_to_load_from_cache(name.repo, file, revision=name.revision) for file in _CONFIGS]
    paths = [Path(path) for path in found if isinstance(path, str)]
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"the hub cannot be reached ({reason(error)})"
    if not paths:
        raise InputError(
            f"{name} is not a folder here and not in the cache {constants.HF_HUB_CACHE}, and {why}; fetch it "
            f"where there is a network: {name.download}"
        )
    folder = paths[0].parent
    if is_main_process():
        _log.warning("%s: %s, so it is taken as the cache has it, commit %s", name, why, folder.name[:12])
    files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    return _Seen(folder.name, tuple(files), folder)


@functools.lru_cache
def _fetch(name: Name, seen: _Seen, files: tuple[str, ...]) -> Path:
    if seen.folder is not None:
        return seen.folder
    if not files:
        raise InputError(
            f"{name} on the hub has neither {' nor '.join(_CONFIGS)}: not a model in transformers' layout, nor a "
            "PEFT adapter"
        )
    try:
        folder = snapshot_download(
            name.repo, revision=name.revision, allow_patterns=[glob.escape(file) for file in files]
        )
    except HfHubHTTPError as error:
        raise refusal(name, "model", error) from error
    except _NO_NETWORK as error:
        raise _not_whole(name, error) from error
    except OSError as error:
        if error.errno is None:  # fewer bytes than were announced
            raise _not_whole(name, error) from error
        remedy = (
            "make room, or set HF_HOME to a larger disk" if error.errno == errno.ENOSPC else "set HF_HOME to a folder"
        )
        raise InputError(
            f"{name} cannot be kept in the cache {constants.HF_HUB_CACHE}: {reason(error)}; {remedy}"
        ) from error
    if Path(folder).name != seen.commit:
        raise InputError(
            f"{name} changed on the hub while it was read; run again, or name a commit: {name.repo}@COMMIT"
        )
    return Path(folder)


def _not_whole(name: Name, error: Exception) -> InputError:
    return InputError(f"{name} could not be fetched to its end: {reason(error)}; run again, it goes on where it was")


def _is_setting(file: str) -> bool:
    path = PurePosixPath(file)
    return path.suffix in _SETTINGS and (len(path.parts) == 1 or str(path.parent) == _TEMPLATES)


def _weight_files(name: Name, seen: _Seen, folder: Path) -> tuple[str, ...]:
    """The safetensors that the model or adapter is read from. folder: where its settings are.

    Raises InputError if the repository has none, and if the cache has only some of them.
    """
    _check_safetensors(name, seen)
    whole = [file for file in _WEIGHTS if file in seen.files]
    files = whole or (_indexed(folder / _INDEX) if _INDEX in seen.files else list(_WEIGHTS[:1]))
    missing = [file for file in files if file not in seen.files]
    if missing and seen.folder is not None:
        raise InputError(
            f"{name}: the cache lacks {missing[0]}, so the download was not completed; fetch the rest where there "
            f"is a network: {name.download}"
        )
    return tuple(file for file in files if file in seen.files)


def _indexed(index: Path) -> list[str]:
    """The files that an index names; none if it is damaged, which is said when the folder is read."""
    try:
        table = parse_json(read_bytes(index))["weight_map"]
        return sorted({file for file in table.values() if isinstance(file, str) and file.endswith(".safetensors")})
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _check_safetensors(name: Name, seen: _Seen) -> None:
    if any(file in (*_WEIGHTS, _INDEX) for file in seen.files):
        return
    pickles = [file for file in seen.files if file.endswith(_PICKLES)]
    if pickles:
        raise InputError(
            f"{name} has its weights as {pickles[0]} alone, a pickle, which is not read; look among its pull "
            f"requests for one that adds safetensors, and give it as {name.repo}@refs/pr/NUMBER, or ask for one: "
            "https://huggingface.co/spaces/safetensors/convert"
        )
    if seen.folder is None:
        raise InputError(
            f"{name} on the hub has no {_WEIGHTS[0]} (or {_INDEX}): weights in another layout are not read"
        )
