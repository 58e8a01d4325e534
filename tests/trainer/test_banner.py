"""What a run says before its first step: one block, and nothing that its user cannot act on."""

import re
import subprocess
import sys

import pytest

from mdpo.cli import main
from tests import tiny

pytestmark = pytest.mark.slow

SETTINGS = "--use_cpu --lora_r 2 --report_to none --disable_tqdm --max_steps 3 --examples_per_step 2".split()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("world"), count=8)


def test_one_block_says_what_the_run_is(world, tmp_path, caplog, capsys):
    out = str(tmp_path / "out")
    assert main(["train", *map(str, world), "--output_dir", out, "--eval_fraction", "0.25", *SETTINGS]) == 0
    (block,) = [text for record in caplog.records if (text := record.getMessage()).startswith("training\n")]
    lines = block.splitlines()[1:]
    assert all(len(line) <= 78 or out in line for line in lines)  # the log indents them by two
    said = {line.split()[0]: " ".join(line.split()[1:]) for line in lines if line[0] != " "}
    assert said["rows"] == "6 with 6 images; 2 held out"
    assert re.fullmatch(r"[\d,]+ of [\d,]+ parameters: [\d,]+ in the language model", said["trained"])
    assert said["device"] == "cpu, weights in float32; plain PyTorch"
    assert said["branches"].startswith("packed, 2P+3R tokens an example (separately 3P+3R;") and "segmentwise" in block
    assert said["reference"].startswith("the model with its adapter off; cached in") or "cached in" in block
    assert said["steps"] == "3, each of 2 examples" and said["output_dir"] == out
    # Each of these is said there, and once.
    told = [record.getMessage() for record in caplog.records]
    assert not [text for text in told if text.startswith(("packed: ", "reference: ", "trains ", "packed attention"))]


@pytest.mark.parametrize("command", ["train", "generate"])
def test_nothing_is_said_that_a_user_cannot_act_on(world, tmp_path, command):
    own = ["--output_dir", str(tmp_path / "out"), *SETTINGS]
    words = own if command == "train" else ["--output", str(tmp_path / "a.jsonl"), "--max-new-tokens", "2"]
    ran = subprocess.run(
        [sys.executable, "-m", "mdpo", command, *map(str, world), *words], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "Warning" not in ran.stderr and "new PAD/BOS/EOS" not in ran.stderr
    assert ("\ntraining\n  rows " in ran.stderr) == (command == "train")
