"""Several data sets in shares: how many rows each gives, which ones, and that every row keeps its own pictures."""

import json
import logging

import pytest
import yaml

from mdpo import InputError
from mdpo.cli import main
from mdpo.config import build_config, load_config, parse_overrides
from mdpo.data import mix, read_rows
from mdpo.data.images import open_image
from tests import tiny

REQUIRED = {"model_name_or_path": "m", "output_dir": "out", "use_cpu": True}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small data set, a large one, and one of a table with its pictures inside."""
    import datasets

    folder = tmp_path_factory.mktemp("data")
    found = {}
    for number, (name, count) in enumerate((("small", 6), ("large", 40))):
        (folder / name).mkdir()
        rows = tiny.records(folder / name, count, seed=number)
        found[name] = folder / name / "train.jsonl"
        found[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = [
        {key: row[key] for key in ("prompt", "chosen", "rejected")}
        | {"image": {"bytes": (folder / "large" / row["img_path"]).read_bytes(), "path": None}}
        for row in rows[:10]
    ]
    found["table"] = folder / "table.parquet"
    datasets.Dataset.from_list(table).cast_column("image", datasets.Image()).to_parquet(str(found["table"]))
    return found


@pytest.mark.parametrize(
    ("shares", "counts"),
    [
        ({"small": 0.5, "large": 0.5}, [6, 6]),
        ({"large": 0.75, "small": 0.25}, [18, 6]),
        ({"small": 1, "large": 20}, [2, 40]),
        ({"small": 3}, [6]),
        ({"small": 1e-9, "large": 1}, [1, 40]),
        ({"small": 1, "large": 2, "table": 1}, [6, 12, 6]),
    ],
)
def test_as_many_rows_as_the_shares_allow_and_none_twice(files, caplog, shares, counts):
    names = {str(files[name]): share for name, share in shares.items()}
    with caplog.at_level(logging.INFO):
        rows = mix(names, read_rows, seed=3)
    assert [sum(row.id.startswith(f"{name}:") for row in rows) for name in names] == counts
    assert len({row.id for row in rows}) == len(rows) == sum(counts)
    (said,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("train_data: ")]
    assert all(f"{count} of " in said and name in said for count, name in zip(counts, names, strict=True))


def test_the_draw_is_the_seeds_and_a_rows_pictures_are_its_own(files):
    names = {str(files["small"]): 1.0, str(files["large"]): 1.0, str(files["table"]): 1.0}
    rows, again, other = (mix(names, read_rows, seed) for seed in (1, 1, 2))
    ids = [[row.id for row in drawn] for drawn in (rows, again, other)]
    assert ids[0] == ids[1] != ids[2]
    for row in rows:
        path, _, id = row.id.rpartition(":")
        of = {each.id: each for each in read_rows(path)}[id]
        assert (row.chosen, row.rejected, row.prompt) == (of.chosen, of.rejected, of.prompt)
        assert open_image(row.images[0], "here").tobytes() == open_image(of.images[0], "here").tobytes()


def test_a_run_goes_on_with_the_same_mixture_and_no_other(files, tmp_path, capsys):
    for make in (tiny.llava, tiny.processor):
        make().save_pretrained(tmp_path / "model")
    small, large = str(files["small"]), str(files["large"])
    settings = {
        "model_name_or_path": str(tmp_path / "model"),
        "train_data": {small: 0.5, large: 0.5},
        "output_dir": str(tmp_path / "out"),
        "examples_per_step": 4,
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "lora_r": 2,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "check_start": False,
    }
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(settings))
    assert main(["train", str(config)]) == 0
    assert "| rows | train.jsonl (0.5), train.jsonl (0.5) |" in (tmp_path / "out" / "README.md").read_text()
    go_on = ["train", str(config), "--resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-1")]
    assert main(go_on) == 0
    capsys.readouterr()
    assert main([*go_on, "--train_data", f"{{{small}: 0.4, {large}: 0.6}}"]) == 2
    assert "rows was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "the mapping is empty"),
        ({"a": 0}, "the share of 'a' is 0; expected a number above 0"),
        ({"a": -1}, "above 0"),
        ({"a": "much"}, "above 0"),
        ({"a": True}, "above 0"),
        ({"a": float("inf")}, "above 0"),
        ({"": 1}, "the path is empty"),
        ({3: 1}, "put it in quotes"),
    ],
)
def test_shares_that_are_none_are_refused_by_name(given, problem):
    with pytest.raises(InputError, match=f"^run.yaml: train_data: .*{problem}") as error:
        build_config({**REQUIRED, "train_data": given}, source="run.yaml")
    assert "\n" not in str(error.value)


def test_a_mapping_in_a_file_and_on_the_command_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model_name_or_path: m\ntrain_data:\n  a.jsonl: 0.7\n  owner/b@v1:train: 3\nuse_cpu: true\n")
    assert load_config(path)[0].train_data == {"a.jsonl": 0.7, "owner/b@v1:train": 3}
    run, _ = load_config(path, parse_overrides(["--train_data", "{a.jsonl: 1, b.jsonl: 2}"]))
    assert run.train_data == {"a.jsonl": 1, "b.jsonl": 2}
