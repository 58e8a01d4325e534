"""Whether a folder of wheels is all that a bare machine lacks: `python -m bench.session.wheels DIR [--python VERSION]`.

Every requirement of every wheel has to be another wheel there or one of what the machine has; all of them together have
to be small enough to be sent along.
"""

import argparse
import re
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

MOST_BYTES = 60_000_000
# Of a machine with Python, PyTorch, transformers, peft and pytest, as far as a wheel asks for it.
THERE = {
    "torch", "triton", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "huggingface-hub", "numpy",
    "pandas", "pyarrow", "filelock", "fsspec", "httpx", "jinja2", "packaging", "psutil", "pyyaml", "requests", "tqdm",
    "xxhash", "pillow", "typing-extensions", "setuptools",
}  # fmt: skip


def missing(folder: Path, python: str = "3.12") -> list[str]:
    """ "WHEEL needs REQUIREMENT" for every one that would be missing there, or there in another version.

    python: of the machine. ValueError names a file that is no wheel.
    """
    wheels = {}
    for path in sorted(folder.glob("*.whl")):
        name, version, _, _ = parse_wheel_filename(path.name)
        if name in wheels:
            raise ValueError(f"{folder}: {name} is there in two versions; keep one")
        wheels[name] = (path, version)
    machine = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    machine |= {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    found = []
    for path, _ in wheels.values():
        for requirement in requirements(path):
            if requirement.marker is not None and not requirement.marker.evaluate(machine):
                continue
            name = canonicalize_name(requirement.name)
            fits = (
                requirement.specifier.contains(wheels[name][1], prereleases=True) if name in wheels else name in THERE
            )
            if not fits:
                found.append(f"{path.name} needs {requirement}")
    return found


def requirements(wheel: Path) -> list[Requirement]:
    """What a wheel's metadata asks for, extras included."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            (metadata,) = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
            headers = HeaderParser().parsestr(archive.read(metadata).decode("utf-8"))
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise ValueError(f"{wheel}: not a wheel ({type(error).__name__}); gather it again") from error
    return [Requirement(each) for each in headers.get_all("Requires-Dist") or []]


def main(arguments: list[str] | None = None) -> int:
    """0 if nothing is missing and all is small enough, else 1 with a line each."""
    parser = argparse.ArgumentParser(prog="bench.session.wheels", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", metavar="VERSION", help="of the machine (default: %(default)s)")
    args = parser.parse_args(arguments)
    folder = args.folder
    try:
        faults = missing(folder, args.python)
    except ValueError as error:
        faults = [str(error)]
    wheels = sorted(folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    if not wheels:
        faults.append(f"{folder}: holds no wheels")
    if size > MOST_BYTES:
        faults.append(f"{folder}: {size / 1e6:.1f} MB of wheels; more than {MOST_BYTES / 1e6:.0f} MB do not travel")
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{folder}: {len(wheels)} wheels, {size / 1e6:.1f} MB")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
