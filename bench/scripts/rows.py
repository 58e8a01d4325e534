"""A million rows: how long until they are ready to train, and how much memory that takes, the first time and the
second.

    python -m bench.scripts.rows [--rows 1000000] [--images 8] [--folder DIR] [--output bench/scripts/results/rows.json]

Writes JSONL rows of some 50 words and a tiny random model below DIR, then runs ``mdpo train`` with ``max_steps: 1``
twice. Time is of the whole process, one step and the final save included; CPU time and the peak of resident memory,
summed over its processes every 50 ms, are given beside it, since another program may share the processors.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from bench.suite.record import tell

WORDS = (
    "the a cat dog sits stands beside red blue small large table chair window street two three people with holding "
    "near under bright sky grass water old new wooden metal sign bus car train white black plate food looking smiling "
    "walking"
).split()


def write_rows(folder: Path, rows: int, images: int) -> Path:
    """JSONL in TRL's format, with ``images`` pictures in turn; 0 is text alone."""
    rng = random.Random(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in range(images):
        size = rng.choice([(224, 224), (240, 180), (320, 240)])
        noise = Image.effect_noise((size[0] // 8, size[1] // 8), 80)
        noise.resize(size).convert("RGB").save(folder / f"images/{number:05d}.jpg", quality=80)
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            asked, *answers = (
                " ".join(rng.choices(WORDS, k=rng.randint(*span))) for span in ((8, 16), (12, 24), (12, 24))
            )
            row: dict[str, object] = {
                "id": f"row-{number}",
                "prompt": f"{asked}?",
                "chosen": f"{answers[0]}.",
                "rejected": f"{answers[1]}.",
            }
            if images:
                row["images"] = [f"images/{rng.randrange(images):05d}.jpg"]
            file.write(json.dumps(row) + "\n")
    return path


def write_model(folder: Path) -> None:
    from tests import tiny  # torch comes with it: not before it is needed

    tiny.llava().save_pretrained(folder)
    tiny.processor().save_pretrained(folder)


def start(folder: Path, config: Path) -> dict[str, float]:
    """One start of ``mdpo train``: seconds, CPU seconds of its processes, and the peak of their memory in GiB."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        [sys.executable, "-m", "mdpo.cli", "train", str(config)], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(_resident, _family(process.pid))))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"mdpo train ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_gib": round(peak / 2**30, 3),
    }


def _family(process: int) -> list[int]:
    found = [process]
    for parent in found:
        try:
            found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
        except OSError:  # it ended
            continue
    return found


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=8, help="picture files, or 0 for text alone")
    parser.add_argument("--folder", type=Path, help="where to write the rows (default: a temporary folder)")
    parser.add_argument("--output", type=Path, help="where to write the record as JSON")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="mdpo-rows-"))
    data = write_rows(folder, options.rows, options.images)
    write_model(folder / "model")
    config = folder / "config.yaml"
    settings = {
        "model_name_or_path": str(folder / "model"),
        "train_data": str(data),
        "output_dir": str(folder / "run"),
        "max_steps": 1,
        "examples_per_step": 4,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "conditional": bool(options.images),
        "lora_r": 4,
    }
    config.write_text(json.dumps(settings))
    record = {
        "rows": options.rows,
        "images": options.images,
        "bytes": data.stat().st_size,
        "processors": len(os.sched_getaffinity(0)),
    }
    record |= {"first_start": start(folder, config), "second_start": start(folder, config), "load": os.getloadavg()}
    tell(record, options.output)
    if options.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
