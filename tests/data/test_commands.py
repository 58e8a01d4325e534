"""``mdpo data check | preview | sample`` as a user runs them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdpo.commands import program
from mdpo.data import DataOptions, PreferenceDataset, commands, read_rows
from mdpo.errors import InputError
from mdpo.objectives import PRESETS
from tests import tiny


def load_processor(path: Path):
    assert path.name == "model"
    return tiny.processor()


def run(*arguments: object) -> None:
    options = program().parse_args(["data", *map(str, arguments)])
    if arguments[0] == "check":
        commands.run_check(options, load_processor, PRESETS)
    else:
        options.run(options)


@pytest.fixture
def data(tmp_path) -> Path:
    rows = tiny.records(tmp_path, 8)
    rows[5]["rejected"] = rows[5]["chosen"]
    rows.append({**rows[0], "id": "again"})
    Image.new("RGB", (5, 50), "red").save(tmp_path / "6.png")
    return write(tmp_path / "train.jsonl", rows)


def write(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_sound_file_is_reported_on(data, capsys, tmp_path):
    run("check", data, "--model", "model", "--max-length", "30", "--picture", tmp_path / "lengths.png")
    output = capsys.readouterr().out
    assert "rows      9, usable 9 (mDPO 9)" in output
    assert "broken    0" in output
    assert "chosen = rejected: 1" in output and "row 5 (line 6): rejected" in output
    assert "duplicate: 1" in output and "row 8 (line 9): row: the same as train.jsonl, row 0 (line 1)" in output
    assert "tiny image: 1" in output and "5 x 50 pixels" in output
    assert "response cut" in output
    assert "lengths in tokens" in output and "packed" in output
    assert Image.open(tmp_path / "lengths.png").size > (100, 100)


def test_images_and_rows_without_one_are_counted(data, capsys):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[0].pop("img_path")
    rows[1] |= {"img_path": None, "images": ["1.png", "2.png"]}
    run("check", write(data, rows))
    assert "images    9 in 8 rows; 1 rows have none, text only\n" in capsys.readouterr().out
    run("check", write(data, [{**row, "img_path": None, "images": None} for row in rows]))
    output = capsys.readouterr().out
    assert "images    0 in 0 rows; 9 rows have none, text only: conditional: true" in output


def test_a_row_is_shown_as_the_model_will_see_it(data, capsys):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[3] |= {"prompt": "one\ntwo", "chosen": " a <image> </s>"}
    run("check", write(data, rows), "--model", "model")
    tokens = (tiny.SIDE // tiny.PATCH) ** 2
    output = capsys.readouterr().out.splitlines()
    start = next(at for at, line in enumerate(output) if line.startswith("train.jsonl, row 0 (line 1), as the model"))
    assert output[start + 1].startswith("  prompt    ")
    assert output[start + 1].endswith(f"USER: <image>×{tokens}\\nwhat is this? ASSISTANT:")
    assert output[start + 2 : start + 4] == [
        f"  chosen    « {rows[0]['chosen']}» </s>",
        f"  rejected  « {rows[0]['rejected']}» </s>",
    ]
    run("check", data, "--model", "model", "--show", "3", "--max-length", "40")
    output = capsys.readouterr().out
    assert f"<image>×{tokens}\\none\\ntwo ASSISTANT:" in output and "row 3 (line 4), as the model" in output
    assert "»cut by" not in output and "» cut by max_length, " in output
    with pytest.raises(InputError, match="--show 99: no such usable row; choose one of 0 to 8"):
        run("check", data, "--model", "model", "--show", "99")
    with pytest.raises(InputError, match="--show decodes"):
        run("check", data, "--show", "0")


def test_a_shown_row_is_what_training_reads(data, capsys):
    processor = tiny.processor()
    rows = read_rows(data)
    example = PreferenceDataset(rows, processor, DataOptions())[2]
    run("check", data, "--model", "model", "--show", "2")
    lines = capsys.readouterr().out.splitlines()
    start = next(at for at, line in enumerate(lines) if "as the model" in line)
    prompt, chosen = (line.partition("    ")[2] for line in lines[start + 1 : start + 3])
    decode = processor.tokenizer.decode
    assert prompt.replace("×16", "") == decode(example.prompt_ids).replace("<image>" * 16, "<image>").replace(
        "\n", "\\n"
    )
    assert chosen.replace("«", "").replace("» ", "") == decode(example.chosen_ids)


def test_columns_can_be_ignored(data, capsys, tmp_path):
    rows = [json.loads(line) | {"videos": ["a.mp4"], "weight": 2} for line in data.read_text().splitlines()]
    write(data, rows)
    with pytest.raises(InputError, match="9 of 9 rows are broken"):
        run("check", data)
    assert "--ignore-columns videos,weight" in capsys.readouterr().out
    run("check", data, "--ignore-columns", "videos,weight")
    run("preview", data, "--ignore-columns", "videos, weight", "--output", tmp_path / "sheet.png")
    run("sample", data, "--ignore-columns", "videos,weight", "--output", tmp_path / "sample.jsonl")
    with pytest.raises(InputError, match="row 0 .*: weight: "):
        run("sample", data, "--ignore-columns", "videos", "--output", tmp_path / "other.jsonl")


def test_an_image_dir_that_is_not_there_is_one_line(data, capsys):
    with pytest.raises(InputError, match=r"^image_dir: .*nowhere does not exist; give the folder of the images$"):
        run("check", data, "--image-dir", "nowhere")
    assert not capsys.readouterr().out


def test_without_a_model_lengths_are_characters(data, capsys):
    run("check", data)
    output = capsys.readouterr().out
    assert "lengths in characters" in output and "packed" not in output


def test_every_broken_row_is_listed_and_the_exit_is_an_error(data, capsys):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    del rows[1]["chosen"]
    rows[2]["img_path"] = "gone.png"
    rows[3]["prompt"] = "<image><image>"
    rows[4]["id"] = "row0"
    (data.parent / "5.png").write_text("no image")
    rows.insert(0, "{not json")
    write(data, rows)
    with pytest.raises(InputError, match=r"train.jsonl: 6 of 10 rows are broken"):
        run("check", data)
    output = capsys.readouterr().out
    table = output.split("\n\n")[0]
    for row, field, problem in [
        (0, "line", "not JSON"),
        (2, "chosen", "is missing"),
        (3, "images", "does not exist"),
        (4, "prompt", "2 <image>"),
        (5, "id", "is also that of"),
        (6, "images", "does not decode"),
    ]:
        (line,) = [line for line in table.splitlines() if f"row {row} (line {row + 1}) " in line]
        assert field in line and problem in line
    assert "usable 4" in output


def test_what_is_wrong_with_every_row_is_said_some_times_and_counted(data, capsys):
    rows = [
        json.loads(line) | {"id": index, "videos": ["a.mp4"]}
        for index, line in enumerate(data.read_text().splitlines())
    ]
    rows = [{**row, "id": f"{row['id']}.{copy}"} for copy in range(5) for row in rows]
    rows[7]["rejected"] = ""
    with pytest.raises(InputError, match="45 of 45 rows are broken"):
        run("check", write(data, rows))
    output = capsys.readouterr().out
    assert sum("videos  " in line for line in output.splitlines()) == 20
    assert "  and 25 more rows with videos: is video or sound" in output


def test_training_stops_at_the_first_with_the_same_message(data, capsys):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[3]["chosen"] = " "
    write(data, rows)
    with pytest.raises(InputError) as error:
        read_rows(data)
    with pytest.raises(InputError, match="1 of 9"):
        run("check", data)
    line = capsys.readouterr().out.splitlines()[2]
    assert [cell in line for cell in str(error.value).replace(": ", "; ").split("; ")] == [True] * 4


def test_prompts_that_leave_no_room_are_broken(data):
    with pytest.raises(InputError, match="9 of 9 rows are broken"):
        run("check", data, "--model", "model", "--max-length", "20")


def test_dropped_rows_and_own_negatives_are_counted(tmp_path, capsys):
    annotations = {"Helpfulness": {"Rating": "3"}}
    tie = {"prompt": "q?", "completions": [{"response": text, "annotations": annotations} for text in "ab"]}
    rows = tiny.records(tmp_path, 2)
    rows[0]["rejected_images"] = ["1.png"]
    run("check", write(tmp_path / "mixed.jsonl", [tie, tie, *rows]))
    output = capsys.readouterr().out
    assert "dropped   2: all completions are rated the same" in output
    assert "negatives 1 rows bring rejected_images" in output
    with pytest.raises(InputError, match="contains no rows that can be used"):
        run("check", write(tmp_path / "ties.jsonl", [tie]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "gone.jsonl"), "does not exist"),
        (("check", "train.jsonl", "--max-length", "5"), "give --model"),
        (("check", "train.jsonl", "--picture", "x.nothing"), "--picture"),
        (("preview", "train.jsonl", "--output", "x.png", "--rows", "0"), "--rows is 0; expected"),
        (("preview", "train.jsonl", "--output", "x.nothing"), "--output"),
        (("preview", "train.jsonl", "--output", "x.png", "--negative", "own"), "rejected_images: is missing"),
        (("preview", "text.jsonl", "--output", "x.png"), "no row has an image"),
        (("sample", "train.jsonl", "--output", "x.json"), "ends in .jsonl"),
        (("sample", "train.jsonl", "--output", "x.jsonl", "--count", "0"), "--count is 0; expected"),
        (("sample", "train.jsonl", "--output", "train.jsonl"), "train.jsonl is the file that is read as data"),
        (
            ("sample", "train.jsonl", "--output", "./train.jsonl", "--count", "2"),
            "train.jsonl is the file that is read as data; give another",
        ),
        (
            ("sample", "train.jsonl", "--output", "text.jsonl"),
            "--output: text.jsonl exists; give another file, or remove it",
        ),
        (("sample", "train.jsonl", "--output", "old.jsonl"), "--output: old.record.json exists; give another"),
        (("sample", "train.jsonl", "--output", "x.jsonl", "--count", "99"), "9 usable rows, fewer than --count 99"),
    ],
)
def test_bad_arguments_are_named(data, monkeypatch, arguments, message):
    monkeypatch.chdir(data.parent)
    write(data.parent / "text.jsonl", [{"prompt": "q?", "chosen": "a", "rejected": "b"}])
    (data.parent / "old.record.json").write_text("{}")
    before = {path: path.read_bytes() for path in data.parent.iterdir()}
    with pytest.raises(InputError, match=message):
        run(*arguments)
    assert {path: path.read_bytes() for path in data.parent.iterdir()} == before


def test_control_characters_in_data_do_not_reach_the_terminal(tmp_path, capsys):
    rows = [
        {"img_path": "\x1b[31m.png", "prompt": "q?", "chosen": "a", "rejected": "b", "id": "\ud800"},
        {"\x1b[2J": 1, "\ud800": 2},
    ]
    with pytest.raises(InputError, match="2 of 2"):
        run("check", write(tmp_path / "bad.jsonl", rows))
    output = capsys.readouterr().out
    assert "\x1b" not in output and output.encode()


def test_the_preview_shows_images_beside_their_negatives(data, tmp_path):
    run("preview", data, "--output", tmp_path / "sheet.png", "--rows", "2")
    everything = Image.open(tmp_path / "sheet.png")
    run(
        "preview",
        data,
        "--output",
        tmp_path / "two.png",
        "--rows",
        "2",
        "--negative",
        "black",
        "--negative",
        "black:1+moco_v2:1",
    )
    two = Image.open(tmp_path / "two.png")
    assert everything.height == two.height and everything.width > two.width
    cell = np.asarray(two)[22 + 10 : 22 + 200, 8 + 232 + 20 : 8 + 232 + 180]
    assert cell.max() == 0, "the second column is black"


def test_a_sample_is_seeded_recorded_and_readable(data, tmp_path):
    run("sample", data, "--output", tmp_path / "out" / "four.jsonl", "--count", "4", "--seed", "3")
    rows = read_rows(tmp_path / "out" / "four.jsonl", data.parent)
    source = {row.id: row for row in read_rows(data)}
    assert [(row.prompt, row.chosen, row.images) for row in rows] == [
        (source[row.id].prompt, source[row.id].chosen, source[row.id].images) for row in rows
    ]
    record = json.loads((tmp_path / "out" / "four.record.json").read_text())
    assert record["seed"] == 3 and record["rows"] == 4 and len(record["sha256"]) == 64
    run("sample", data, "--output", tmp_path / "again.jsonl", "--count", "4", "--seed", "3")
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "out" / "four.jsonl").read_text()
    run("sample", data, "--output", tmp_path / "other.jsonl", "--count", "4", "--seed", "4")
    assert (tmp_path / "other.jsonl").read_text() != (tmp_path / "again.jsonl").read_text()
    shorter = write(tmp_path / "shorter.jsonl", data.read_text().splitlines()[:-1])
    run("sample", shorter, "--output", tmp_path / "less.jsonl", "--count", "3", "--seed", "3", "--image-dir", tmp_path)
    kept = {row.id for row in read_rows(tmp_path / "less.jsonl", tmp_path)}
    assert len(kept & {row.id for row in rows}) >= 3 - ("again" in {row.id for row in rows})


def test_a_sample_of_a_table_brings_its_images(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = tiny.records(tmp_path, 3)
    cells = [
        {
            "image": {"bytes": (tmp_path / f"{i}.png").read_bytes()},
            "question": "q?",
            "chosen": row["chosen"],
            "rejected": row["rejected"],
        }
        for i, row in enumerate(rows)
    ]
    features = {name: datasets.Value("string") for name in ("question", "chosen", "rejected")} | {
        "image": datasets.Image()
    }
    datasets.Dataset.from_list(cells, features=datasets.Features(features)).to_parquet(str(tmp_path / "r.parquet"))
    run("sample", tmp_path / "r.parquet", "--output", tmp_path / "out" / "all.jsonl")
    copies = read_rows(tmp_path / "out" / "all.jsonl")
    assert [row.chosen for row in copies] == [row["chosen"] for row in rows]
    assert [row.images[0].read_bytes() for row in copies] == [(tmp_path / f"{i}.png").read_bytes() for i in range(3)]
