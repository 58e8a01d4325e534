"""Models, adapters and data sets by the name under which the Hugging Face hub has them: ``owner/name``, or
``owner/name@revision`` for a branch, tag or commit.

Whatever stands on disk under a name comes first. Token, cache and endpoint are huggingface_hub's own (``HF_TOKEN``,
``HF_HOME``, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``). Of a repository only settings, vocabularies, chat templates and
safetensors are fetched: no pickle, no code.
"""

import errno
import functools
import glob
import logging
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from mdpo.errors import InputError
from mdpo.reading import parse_json, read_bytes
from mdpo.shown import shown
from mdpo.stops import is_main_process

Part = Literal["config", "settings", "weights"]

_log = logging.getLogger(__name__)

_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>\w[\w./+-]*))?", re.ASCII)
_CONFIGS = ("config.json", "adapter_config.json")
_SETTINGS = (".json", ".jinja", ".txt", ".model")  # .model: SentencePiece's vocabulary, which is no pickle
_TEMPLATES = "additional_chat_templates"
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NO_NETWORK = (HTTPError, OfflineModeIsEnabled, ConnectionError, TimeoutError)


class Name(NamedTuple):
    """A repository of the hub. revision: branch, tag or commit; None: the default branch."""

    repo: str
    revision: str | None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


@dataclass(frozen=True)
class _Seen:
    """What a repository holds at one commit. folder: where the cache keeps it, when the hub was not asked."""

    commit: str
    files: tuple[str, ...]
    folder: Path | None = None


def hub_name(path: str | Path) -> Name | None:
    """The name on the hub that ``path`` is; None for a path on this machine, and for text that the hub has no name like.

    A mistyped path must not become a request to the hub: where its folder exists, it is a path.
    """
    match = _NAME.fullmatch(str(path))
    if match is None or Path(path).exists() or Path(match["repo"]).parent.exists():
        return None
    try:
        validate_repo_id(match["repo"])
    except HFValidationError:
        return None
    return Name(match["repo"], match["revision"])


def with_revision(path: str | Path, revision: str | None) -> str:
    """``path`` at a revision. Raises InputError for a folder, and for a name that has another revision already."""
    if revision is None:
        return str(path)
    name = hub_name(path)
    if name is None:
        raise InputError(
            f"revision {shown(revision)[:80]!r}: {path} is not a name on the hub, and only there are revisions; leave it out"
        )
    if name.revision not in (None, revision):
        raise InputError(f"revision {shown(revision)[:80]!r}: {path} has a revision already; keep one of them")
    return str(Name(name.repo, revision))


def folder_of(path: str | Path, part: Part = "weights", *, called: str = "model") -> Path:
    """The folder of a model or an adapter: ``path`` itself where it is one, else where huggingface_hub's cache has it.

    Args:
        path: Folder, or ``owner/name`` or ``owner/name@revision`` on the hub.
        part: How much of a repository is fetched: its config; all settings, vocabularies and templates too; or the
            safetensors weights as well.
        called: What messages call it, "model" or "adapter".

    Raises InputError where there is no such folder, and where the hub has no such repository, does not hand it out or
    cannot be reached while the cache lacks it; for weights, where the repository holds no safetensors.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    name = hub_name(path)
    if name is None:
        raise InputError(_no_folder(folder, called))
    seen = _look(name)
    settings = tuple(file for file in seen.files if _is_setting(file))
    if part == "config":
        return _fetch(name, seen, tuple(file for file in _CONFIGS if file in seen.files))
    folder = _fetch(name, seen, settings)
    weights = () if part == "settings" else _weight_files(name, seen, folder)
    return _fetch(name, seen, weights) if weights else folder


def check_weights_there(path: str | Path) -> None:
    """Raises InputError where ``path`` is a name on the hub and its repository holds no safetensors weights; without a
    network, where the cache does not."""
    name = None if Path(path).expanduser().is_dir() else hub_name(path)
    if name is None:
        return
    seen = _look(name)
    _check_safetensors(name, seen)
    if seen.folder is not None:
        _weight_files(name, seen, seen.folder)


def cached_config(path: str | Path) -> Path | None:
    """The folder that has ``path``'s config.json on this machine, in the cache for a name on the hub; the network is not
    asked. None where there is none."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        name = hub_name(path)
        found = name and try_to_load_from_cache(name.repo, "config.json", revision=name.revision)
        return Path(found).parent if isinstance(found, str) else None
    return folder if (folder / "config.json").is_file() else None


def base_of(path: str | Path) -> tuple[str, str | None]:
    """What an adapter records as its base: name and commit on the hub, or the folder and None."""
    name = None if Path(path).expanduser().is_dir() else hub_name(path)
    return (str(path), None) if name is None else (name.repo, _look(name).commit)


def look_at_dataset(name: Name) -> str | None:
    """The commit of a data set of the hub; None where the hub cannot be reached.

    Raises InputError where the hub has no such data set, or does not hand it out.
    """
    try:
        info = HfApi().dataset_info(name.repo, revision=name.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        if info.gated:  # everybody may read about it
            HfApi().auth_check(name.repo, repo_type="dataset")
    except HfHubHTTPError as error:
        raise _refusal(name, "dataset", error) from error
    except _NO_NETWORK:
        return None
    return info.sha


def reason(error: BaseException) -> str:
    """A library's message on one line, shortened."""
    return shown(" ".join(str(error)[:800].split()))[:200] or type(error).__name__


@functools.lru_cache
def _look(name: Name) -> _Seen:
    """Asked once a process, so that config, processor and weights are of one commit."""
    try:
        info = HfApi().model_info(name.repo, revision=name.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except HfHubHTTPError as error:
        raise _refusal(name, "model", error) from error
    except _NO_NETWORK as error:
        return _cached(name, error)
    return _Seen(str(info.sha), tuple(file.rfilename for file in info.siblings or ()))


def _cached(name: Name, error: Exception) -> _Seen:
    """What the cache has. error: why the hub was not asked."""
    found: Any = [try_to_load_from_cache(name.repo, file, revision=name.revision) for file in _CONFIGS]
    paths = [Path(path) for path in found if isinstance(path, str)]
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"the hub cannot be reached ({reason(error)})"
    if not paths:
        raise InputError(
            f"{name} is not a folder here and not in the cache {constants.HF_HUB_CACHE}, and {why}; fetch it where there is a "
            f"network: hf download {name.repo}"
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
            f"{name} on the hub has neither {' nor '.join(_CONFIGS)}: not a model in transformers' layout, nor a PEFT adapter"
        )
    try:
        folder = snapshot_download(
            name.repo, revision=name.revision, allow_patterns=[glob.escape(file) for file in files]
        )
    except HfHubHTTPError as error:
        raise _refusal(name, "model", error) from error
    except (LocalEntryNotFoundError, *_NO_NETWORK) as error:
        raise InputError(
            f"{name} could not be fetched to its end: {reason(error)}; run again, it goes on where it was"
        ) from error
    except OSError as error:
        remedy = (
            "make room, or set HF_HOME to a larger disk"
            if error.errno == errno.ENOSPC
            else "set HF_HOME to another folder"
        )
        raise InputError(
            f"{name} cannot be kept in the cache {constants.HF_HUB_CACHE}: {reason(error)}; {remedy}"
        ) from error
    if Path(folder).name != seen.commit:
        raise InputError(
            f"{name} changed on the hub while it was read; run again, or name a commit: {name.repo}@COMMIT"
        )
    return Path(folder)


def _is_setting(file: str) -> bool:
    path = PurePosixPath(file)
    return path.suffix in _SETTINGS and (len(path.parts) == 1 or str(path.parent) == _TEMPLATES)


def _weight_files(name: Name, seen: _Seen, folder: Path) -> tuple[str, ...]:
    """The safetensors that the model or adapter is read from. folder: of its settings.

    Raises InputError where the repository holds none, and where the cache holds only part of them.
    """
    _check_safetensors(name, seen)
    whole = [file for file in _WEIGHTS if file in seen.files]
    files = whole or (_indexed(folder / _INDEX) if _INDEX in seen.files else list(_WEIGHTS[:1]))
    missing = [file for file in files if file not in seen.files]
    if missing and seen.folder is not None:
        raise InputError(
            f"{name}: the cache lacks {missing[0]}, so it was not fetched to its end; fetch the rest where there is a network: "
            f"hf download {name.repo}"
        )
    return tuple(file for file in files if file in seen.files)


def _indexed(index: Path) -> list[str]:
    """The files that a damaged index does not name are missed when the folder is read, by a message of its own."""
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
            f"{name} has its weights as {pickles[0]} alone, a pickle, which is not read; look among its pull requests for one that "
            f"adds safetensors, and give it as {name.repo}@refs/pr/NUMBER, or ask for one: "
            "https://huggingface.co/spaces/safetensors/convert"
        )
    if seen.folder is None:
        raise InputError(
            f"{name} on the hub has no {_WEIGHTS[0]} (or {_INDEX}): weights in another layout are not read"
        )


def _no_folder(folder: Path, called: str) -> str:
    looked = "" if folder.is_absolute() else f" in {Path.cwd()}, where relative paths start"
    if folder.is_file():
        return f"{called} folder {folder} is a file; give the folder that holds it, or owner/name on the hub"
    match = _NAME.fullmatch(str(folder))
    if match is None:
        return f"{called} folder {folder} does not exist{looked}; give a folder, or owner/name on the hub"
    repo, owner = match["repo"], PurePosixPath(match["repo"]).parent
    return (
        f"{called} folder {folder} does not exist{looked}; the hub is not asked, because {owner} is a folder here: check the "
        f"path, or put the hub's there: hf download {repo} --local-dir {repo}"
    )


def _refusal(name: Name, kind: Literal["model", "dataset"], error: HfHubHTTPError) -> InputError:
    """What to do about an answer of the hub's."""
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name.repo}"
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return InputError(
            f"{name} is gated: accept its terms at {page}, then log in as who accepted them: hf auth login, or set HF_TOKEN"
        )
    if isinstance(error, RepositoryNotFoundError):
        return InputError(
            f"{name} is not a {'file or ' if kind == 'dataset' else ''}folder here, and the hub has no such {kind}, or a private "
            f"one: check the spelling at {page}, or log in as who may read it: hf auth login, or set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(
            f"{name}: the hub has {name.repo}, but not the revision {name.revision}; see {page}/tree/main"
        )
    if status == 401:
        return InputError(
            f"{name}: the hub does not know the token (HF_TOKEN, or hf auth login); log in again: hf auth login"
        )
    if status == 403:
        return InputError(
            f"{name}: the token may not read it; give it that right at {constants.ENDPOINT}/settings/tokens"
        )
    return InputError(f"{name}: the hub answers {status} ({reason(error)}); try again later")
