"""A run's files to a repository of the hub: named files and no others."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled

from mdpo.errors import InputError, OutputError

from .refusals import reason

_NO_NETWORK = (HTTPError, OfflineModeIsEnabled, ConnectionError, TimeoutError)
_LOGIN = "log in with a token that may write (hf auth login, HF_TOKEN or hub_token)"


def make_repository(name: str, *, token: str | None, private: bool | None) -> str:
    """Makes a model repository unless there is one. Returns its ``owner/name``.

    Args:
        name: ``owner/name``, or a name in the account of whom the token belongs to.
        token: None: huggingface_hub's own.
        private: Whether a new one is private; None: as the account's settings say.

    Raises InputError where the name cannot be one, or the hub does not let it be written to.
    """
    try:
        return HfApi().create_repo(name, token=token, private=private, exist_ok=True).repo_id
    except HFValidationError as error:
        raise InputError(f"hub_model_id: {reason(error)}; give OWNER/NAME") from error
    except HfHubHTTPError as error:
        raise InputError(f"push_to_hub: {name}: {_refused(error)}") from error
    except _NO_NETWORK as error:
        raise InputError(
            f"push_to_hub: the hub cannot be reached ({reason(error)}); leave it out, and upload later"
        ) from error


def upload(
    repository: str, folder: Path, files: Sequence[Path], *, message: str, token: str | None, revision: str | None
) -> str:
    """Commits files of a folder to a repository, all or none. Returns the commit's address.

    Raises OutputError where the hub does not take them.
    """
    operations = [CommitOperationAdd(file.relative_to(folder).as_posix(), str(file)) for file in files]
    try:
        done = HfApi().create_commit(repository, operations, commit_message=message, token=token, revision=revision)
    except HfHubHTTPError as error:
        raise OutputError(f"push_to_hub: {repository}: {_refused(error)}") from error
    except (*_NO_NETWORK, OSError, ValueError, RuntimeError) as error:  # hf_xet raises the last
        raise OutputError(f"push_to_hub: {repository}: nothing was uploaded ({reason(error)})") from error
    return done.commit_url


def upload_command(repository: str, folder: Path, files: Sequence[Path], *, revision: str | None) -> str:
    """What to type to commit the same files later."""
    options = [("include", file.relative_to(folder).as_posix()) for file in files]  # hf takes one pattern after each
    if revision is not None:
        options.append(("revision", revision))
    given = [text for name, value in options for text in (f"--{name}", value)]
    return shlex.join(["hf", "upload", repository, str(folder), *given])


def _refused(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status in (401, 403):
        return f"the hub does not let it be written to ({status}); {_LOGIN}, or give another hub_model_id"
    return f"{constants.ENDPOINT} answers {status} ({reason(error)}); try again later"
