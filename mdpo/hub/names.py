"""Which text is a name on the hub, and which a path on this machine."""

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from mdpo.errors import InputError
from mdpo.shown import shown

_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>(?!.*\.\.)\w[\w./+-]*))?", re.ASCII)


class Name(NamedTuple):
    """A repository on the hub. revision: branch, tag or commit; None: the default branch."""

    repo: str
    revision: str | None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"

    @property
    def download(self) -> str:
        """The command that fetches it, of a model or an adapter."""
        if self.revision is None:
            return f"hf download {self.repo}"
        return f"hf download {self.repo} --revision {self.revision}"


def hub_name(path: str | Path) -> Name | None:
    """``path`` as a name on the hub, or None if it is a path on this machine or no repository can have that name.

    A mistyped path must not become a request to the hub: if its parent folder exists, it is a path, unless the cache
    already has that repository.
    """
    match = _NAME.fullmatch(str(path))
    if match is None or Path(path).exists():
        return None
    if Path(match["repo"]).parent.exists() and not _is_cached(match["repo"]):
        return None
    try:
        validate_repo_id(match["repo"])
    except HFValidationError:
        return None
    return Name(match["repo"], match["revision"])


def _is_cached(repo: str) -> bool:
    names = [repo_folder_name(repo_id=repo, repo_type=kind) for kind in ("model", "dataset")]
    return any(Path(constants.HF_HUB_CACHE, name).is_dir() for name in names)


def with_revision(path: str | Path, revision: str | None) -> str:
    """``path`` at a revision.

    Raises InputError for a folder, for a name that has another revision already, and for text that cannot be a
    revision.
    """
    if revision is None:
        return str(path)
    name = hub_name(path)
    if name is not None and hub_name(f"{name.repo}@{revision}") is None:
        raise InputError(f"revision {shown(revision)[:80]!r}: not a branch, tag or commit; correct it")
    if name is None:
        raise InputError(
            f"revision {shown(revision)[:80]!r}: {path} is not a name on the hub, and only there are revisions; "
            "leave it out"
        )
    if name.revision not in (None, revision):
        raise InputError(f"revision {shown(revision)[:80]!r}: {path} has a revision already; keep one of them")
    return str(Name(name.repo, revision))


def no_folder(folder: Path, called: str) -> str:
    """What is wrong with a path that is not a folder, and that the hub is not asked for."""
    looked = "" if folder.is_absolute() else f" in {Path.cwd()}, where relative paths start"
    if folder.is_file():
        return f"{called} folder {folder} is a file; give the folder that holds it, or owner/name on the hub"
    match = _NAME.fullmatch(str(folder))
    if match is None:
        return f"{called} folder {folder} does not exist{looked}; give a folder, or owner/name on the hub"
    repo, owner = match["repo"], PurePosixPath(match["repo"]).parent
    return (
        f"{called} folder {folder} does not exist{looked}; the hub is not asked, because {owner} is a folder "
        f"here: check the path, or put the hub's there: hf download {repo} --local-dir {repo}"
    )
