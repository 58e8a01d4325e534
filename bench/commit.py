"""Which code a record is of: `python -m bench.commit`.

The environment variable BENCH_COMMIT says it, else git, else a file that was written where git still was:

    python -m bench.commit --write FILE     with git: the commit, and a digest of the code
    python -m bench.commit --sent FILE      in the copy: the commit, if the code is still the one of that digest

Without any of them nothing is measured: numbers of different code would pass for the same.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_CODE = ("bench", "kernels", "mdpo", "tests")
# As git says it (64 digits in a repository of SHA-256), and after a + the digest of what tracked files differ by.
_COMMIT = r"[0-9a-f]{7,64}(\+[0-9a-f]{8})?"
_SENT = re.compile(rf"commit (?P<commit>{_COMMIT})\ncode (?P<code>[0-9a-f]{{32}})\n")


class UnknownCommit(ValueError):
    """Which code would be measured is not known. The message says how to tell it."""


def is_commit(text: object) -> bool:
    """Whether this is the name of a commit, as every record has one."""
    return isinstance(text, str) and re.fullmatch(_COMMIT, text) is not None


@lru_cache(maxsize=1)
def known_commit(sent_along: Path | None = None) -> str:
    """The commit, with a digest of what tracked files differ by. Raises UnknownCommit if nothing says it.

    sent_along: a file of `write`, which is believed if neither BENCH_COMMIT nor git says it.
    """
    told = os.environ.get("BENCH_COMMIT")
    if told and not is_commit(told):
        raise UnknownCommit(
            f"BENCH_COMMIT={ascii(told)[:80]} is not the name of a commit; set it to what git rev-parse HEAD says"
        )
    found = told or of_git(ROOT) or (None if sent_along is None else sent(sent_along))
    if not found:
        raise UnknownCommit(
            "the commit is not known: there is no git here; set BENCH_COMMIT=$(git rev-parse HEAD) where git is, or "
            "send a file that python -m bench.commit --write made there"
        )
    return found


def require_commit(parser: argparse.ArgumentParser) -> None:
    """For a command line that measures: ends it in one line, as for a wrong option, where the commit is not known."""
    try:
        known_commit()
    except UnknownCommit as error:
        parser.error(str(error))


def of_git(root: Path) -> str | None:
    """None where `root` is no repository's own folder: one further up is another project's."""
    top = git(root, "rev-parse", "--show-toplevel")
    head, changes = git(root, "rev-parse", "HEAD"), git(root, "diff", "HEAD")
    if top is None or head is None or changes is None or Path(top.decode().strip()).resolve() != root.resolve():
        return None
    commit = head.decode().strip()
    return f"{commit}+{hashlib.blake2b(changes, digest_size=4).hexdigest()}" if changes else commit


def git(root: Path, *arguments: str) -> bytes | None:
    """What git prints in `root`; None where it fails or is not there."""
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def code_digest(root: Path = ROOT) -> str:
    """Of every Python file and shell script of the project, by name and content."""
    digest = hashlib.blake2b(digest_size=16)
    files = [path for part in _CODE for path in (root / part).rglob("*") if path.suffix in (".py", ".sh")]
    for path in sorted(files, key=lambda each: each.relative_to(root).as_posix()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def write(file: Path) -> None:
    """UnknownCommit where nothing says the commit here either."""
    file.write_text(f"commit {known_commit()}\ncode {code_digest()}\n", encoding="utf-8")


def sent(file: Path) -> str:
    """The commit that `write` wrote. UnknownCommit for another file, or where the code has changed since."""
    try:
        found = _SENT.fullmatch(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UnknownCommit(
            f"{file}: cannot be read ({type(error).__name__}); write it with bench.commit --write"
        ) from error
    if found is None:
        raise UnknownCommit(f"{file}: not a file of bench.commit; write it with bench.commit --write")
    if found["code"] != code_digest():
        raise UnknownCommit(f"{file}: the code here is not the one it was written for; write it again and send both")
    return found["commit"]


def main(arguments: list[str] | None = None) -> int:
    """Prints the commit; 2 where it is not known."""
    parser = argparse.ArgumentParser(
        prog="bench.commit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the commit and a digest of the code")
    parser.add_argument(
        "--sent", type=Path, metavar="FILE", help="believe this file where neither the variable nor git says it"
    )
    args = parser.parse_args(arguments)
    try:
        if args.write is not None:
            write(args.write)
        print(known_commit(args.sent))
    except (UnknownCommit, OSError) as error:
        print(f"bench.commit: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
