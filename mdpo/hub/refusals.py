"""What to do about an answer of the hub's."""

from typing import Literal

from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from mdpo.errors import InputError
from mdpo.shown import shown

from .names import Name


def refusal(name: Name, kind: Literal["model", "dataset"], error: HfHubHTTPError) -> InputError:
    """The error for a repository that the hub does not hand out. kind: what it was to be."""
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name.repo}"
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return InputError(
            f"{name} is gated: accept its terms at {page}, then log in as who accepted them: hf auth login, or "
            "set HF_TOKEN"
        )
    if isinstance(error, RepositoryNotFoundError):
        return InputError(
            f"{name} is not a {'file or ' if kind == 'dataset' else ''}folder here, and the hub has no such "
            f"{kind}, or a private one: check the spelling at {page}, or log in as who may read it: hf auth "
            "login, or set HF_TOKEN"
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


def reason(error: BaseException) -> str:
    """A library's message on one line, shortened."""
    return shown(" ".join(str(error)[:800].split()))[:200] or type(error).__name__
