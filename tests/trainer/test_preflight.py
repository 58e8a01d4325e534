"""What would end a run late ends it before the first step, in one line: before the model is loaded where that
can be.
"""

import dataclasses
import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, TrainerCallback, TrainingArguments

from mdpo import InputError, MDPOConfig, MDPOTrainer, TrainingError, cli, training
from mdpo.data import read_rows
from mdpo.models import load, load_processor
from tests import tiny
from tests.trainer.runs import lora

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("world"), count=4)


@pytest.fixture
def config(world, tmp_path) -> Path:
    path = tmp_path / "config.yaml"
    settings = {
        "model_name_or_path": str(world[0]),
        "train_data": str(world[1]),
        "output_dir": str(tmp_path / "out"),
        "max_steps": 1,
        "lora_r": 2,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def error_line(capsys) -> str:
    """The one line that a command ends with."""
    captured = capsys.readouterr().err
    assert "Traceback" not in captured
    (line,) = [line for line in captured.splitlines() if line.startswith("error: ")]
    return line


# Before the model is loaded

OUTPUTS = {
    "a file": (lambda folder: folder / "file", "is a file; give a folder"),
    "below a file": (lambda folder: folder / "file" / "out", "is a file; give another folder"),
    "where nothing can be written": (lambda folder: Path("/proc/mdpo/out"), "cannot be written to"),
    "a name that is too long": (lambda folder: folder / ("x" * 300), "cannot be written to"),
}


@pytest.mark.parametrize("setting", ["output_dir", "reference_cache_dir"])
@pytest.mark.parametrize("place", OUTPUTS)
def test_training_needs_folders_that_can_be_written(config, tmp_path, capsys, monkeypatch, setting, place):
    (tmp_path / "file").touch()
    path, message = OUTPUTS[place]
    monkeypatch.setattr(training, "load", lambda *a, **k: pytest.fail("the model was loaded first"))
    assert cli.main(["train", str(config), f"--{setting}", str(path(tmp_path))]) == 2
    line = error_line(capsys)
    assert message in line and f"{setting}: " in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["score", "MODEL", "DATA", "--output", "OUTPUT"],
        ["generate", "MODEL", "DATA", "--output", "OUTPUT"],
        ["score", "MODEL", "DATA", "--output", "fine.jsonl", "--reference", "OUTPUT"],
        ["merge", "MODEL", "OUTPUT"],
        ["convert", "bunny", "MODEL", "OUTPUT"],
        ["report", "MODEL", "--output", "OUTPUT.html"],
        ["data", "check", "DATA", "--picture", "OUTPUT"],
        ["data", "preview", "DATA", "--output", "OUTPUT"],
        ["data", "sample", "DATA", "--output", "OUTPUT"],
        ["evaluate", "mmhal", "DATA", "--judge", "m", "--script", "DATA", "--output", "OUTPUT"],
        ["evaluate", "mmhal", "DATA", "--judge", "m", "--script", "DATA", "--cache", "OUTPUT"],
        ["evaluate", "human", "sheet", "DATA", "DATA", "DATA", "--output", "OUTPUT"],
    ],
    ids=lambda arguments: " ".join(part for part in arguments if not part.isupper()),
)
def test_every_command_needs_a_place_that_can_be_written(world, tmp_path, capsys, monkeypatch, arguments):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": world[0], "DATA": world[1], "OUTPUT": tmp_path / "file" / "out"}
    places["OUTPUT.html"] = tmp_path / "file" / "out.html"
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", lambda *a, **k: pytest.fail("loaded first"))
    assert cli.main([str(places.get(part, part)) for part in arguments]) == 2
    assert f"{tmp_path / 'file'} is a file" in error_line(capsys)


def test_a_folder_where_a_file_is_wanted(world, tmp_path, capsys):
    assert cli.main(["score", str(world[0]), str(world[1]), "--output", str(tmp_path)]) == 2
    assert "--output: " in (line := error_line(capsys)) and "is a folder; give a file" in line


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path):
    from mdpo.output_checks import check_output_file, check_output_folder

    check_output_folder(tmp_path / "new" / "folder", "x")
    check_output_file(tmp_path / "new" / "file", "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["wandb", "tensorboard", "mlflow", "comet_ml", "nosuch"])
def test_a_tracker_that_is_not_installed(config, capsys, monkeypatch, package):
    monkeypatch.setattr(training, "load", lambda *a, **k: pytest.fail("the model was loaded first"))
    available = transformers.integrations.get_available_reporting_integrations()
    if package in available:
        pytest.skip(f"{package} is installed")
    assert cli.main(["train", str(config), "--report_to", package]) == 2
    assert f"report_to: '{package}' cannot be used" in error_line(capsys)


@pytest.mark.parametrize(
    ("optimizer", "package"),
    [
        ("adamw_8bit", "bitsandbytes"),
        ("lion_8bit", "bitsandbytes"),
        ("paged_adamw_32bit", "bitsandbytes"),
        ("galore_adamw", "galore_torch"),
        ("apollo_adamw", "apollo_torch"),
        ("grokadamw", "grokadamw"),
        ("adamw_torch_4bit", "torchao"),
        ("adamw_anyprecision", "torchdistx"),
        ("stable_adamw", "optimi"),
    ],
)
def test_an_optimizer_that_is_not_installed(config, capsys, monkeypatch, optimizer, package):
    monkeypatch.setattr(training, "load", lambda *a, **k: pytest.fail("the model was loaded first"))
    try:
        __import__(package)
        pytest.skip(f"{package} is installed")
    except ImportError:
        pass
    assert cli.main(["train", str(config), "--optim", optimizer]) == 2
    assert f"optim: '{optimizer}' cannot be used" in error_line(capsys)


# Arguments from Python


def bare_arguments(world, output) -> dict:
    return {
        "model": load(world[0]),
        "args": MDPOConfig(output_dir=str(output), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=1),
        "train_dataset": read_rows(world[1]),
        "processing_class": load_processor(world[0]),
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model", lambda world: str(world[0]), r"model: .* is a path; pass the model: mdpo\.models\.load"),
        ("model", lambda world: Path(world[0]), "model: .* is a path"),
        ("model", lambda world: torch.nn.Linear(2, 2), "model is a Linear; expected a Hugging Face model"),
        ("model", lambda world: None, "model is a NoneType; expected a Hugging Face model"),
        ("model", lambda world: tiny.llava().model, "a LlavaModel has no language-model head"),
        (
            "train_dataset",
            lambda world: str(world[1]),
            r"train_dataset: .* is a path; pass the rows: mdpo\.data\.read_rows",
        ),
        ("eval_dataset", lambda world: Path(world[1]), "eval_dataset: .* is a path"),
        ("peft_config", lambda world: {"r": 4}, "peft_config is a dict; expected a peft.LoraConfig"),
        (
            "args",
            lambda world: TrainingArguments("x", report_to="none"),
            "args is a TrainingArguments; expected an mdpo.MDPOConfig",
        ),
        ("args", lambda world: None, "args is a NoneType; expected an mdpo.MDPOConfig"),
        ("processing_class", lambda world: None, "processing_class is missing"),
        (
            "processing_class",
            lambda world: tiny.tokenizer(),
            "is a tokenizer; expected .*; pass mdpo.models.load_processor",
        ),
        ("processing_class", lambda world: tiny.processor().image_processor, "is a CLIPImageProcessor"),
        ("processing_class", lambda world: str(world[0]), "processing_class: .* is a path"),
    ],
)
def test_an_argument_of_the_wrong_kind(world, tmp_path, name, value, message):
    arguments = bare_arguments(world, tmp_path) | {name: value(world)}
    with pytest.raises(InputError, match=message):
        MDPOTrainer(**arguments)


def test_weights_that_another_tool_quantised(world, tmp_path):
    arguments = bare_arguments(world, tmp_path)
    arguments["model"].quantization_method = "gptq"
    with pytest.raises(InputError, match="quantised with gptq"):
        MDPOTrainer(**arguments)


# The model, its processor and the rows


def add_tokens(arguments: dict) -> None:
    arguments["processing_class"].tokenizer.add_tokens([f"<loc{index}>" for index in range(200)])


def say_the_last_token(arguments: dict) -> None:
    add_tokens(arguments)
    rows = arguments["train_dataset"]
    arguments["train_dataset"] = [*rows[:-1], dataclasses.replace(rows[-1], rejected="a cat <loc199>")]


def evaluate_the_last_token(arguments: dict) -> None:
    say_the_last_token(arguments)
    arguments |= {"eval_dataset": arguments["train_dataset"], "train_dataset": read_rows_of(arguments)}


def read_rows_of(arguments: dict) -> list:
    return arguments["train_dataset"][:-1]


def processor(**changes):
    def change(arguments: dict) -> None:
        for name, value in changes.items():
            setattr(arguments["processing_class"], name, value)

    return change


def larger_images(arguments: dict) -> None:
    images = arguments["processing_class"].image_processor
    images.crop_size, images.size = {"height": 64, "width": 64}, {"shortest_edge": 64}


def other_image_token(arguments: dict) -> None:
    arguments["model"].config.image_token_id = 4


def no_end(arguments: dict) -> None:
    arguments["processing_class"].tokenizer.eos_token = None


def no_template(arguments: dict) -> None:
    arguments["processing_class"].chat_template = None
    arguments["processing_class"].tokenizer.chat_template = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (say_the_last_token, r"row 3 .*token '<loc199>' has id \d+, but the model's embeddings have 400 rows"),
        (evaluate_the_last_token, "token '<loc199>' has id"),
        (processor(patch_size=None), "processing_class: patch_size is not set.*set it to 8"),
        (processor(vision_feature_select_strategy=None), "select_strategy is not set.*'default'"),
        (processor(num_additional_image_tokens=0), "row 0 .*do not fit the model .*num_additional_image_tokens"),
        (other_image_token, "'<image>' has id 3, but the model's config says image_token_id 4"),
        (larger_images, "row 0 .*do not fit the model .*64"),
        (no_end, "EOS"),
        (no_template, "chat template"),
    ],
)
@pytest.mark.parametrize("peft", [True, False])
def test_a_processor_and_rows_that_do_not_fit_the_model(world, tmp_path, change, message, peft):
    arguments = bare_arguments(world, tmp_path) | {"peft_config": lora() if peft else None}
    change(arguments)
    with pytest.raises(InputError, match=message) as error:
        MDPOTrainer(**arguments)
    assert "\n" not in str(error.value)


def test_tokens_that_no_row_uses_are_said_and_let_be(world, tmp_path, caplog):
    arguments = bare_arguments(world, tmp_path)
    add_tokens(arguments)
    MDPOTrainer(**arguments).train()
    assert "the tokenizer has 536 tokens and the model has embeddings for 400" in caplog.text


def test_embeddings_that_were_resized_serve(world, tmp_path):
    arguments = bare_arguments(world, tmp_path)
    say_the_last_token(arguments)
    arguments["model"].resize_token_embeddings(len(arguments["processing_class"].tokenizer))
    MDPOTrainer(**arguments).train()


@pytest.mark.parametrize("peft", [True, False])
def test_training_and_saving_need_no_pad_token(world, tmp_path, peft):
    arguments = bare_arguments(world, tmp_path) | {"peft_config": lora() if peft else None}
    arguments["processing_class"].tokenizer.pad_token = None
    run = MDPOTrainer(**arguments)
    run.train()
    run.save_model()
    assert (tmp_path / ("adapter_model.safetensors" if peft else "model.safetensors")).is_file()


def test_the_check_of_the_images_leaves_the_run_as_it_was(world, tmp_path):
    arguments = bare_arguments(world, tmp_path)
    before = {name: tensor.clone() for name, tensor in arguments["model"].state_dict().items()}
    run = MDPOTrainer(**arguments)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".trial")]


# What is saved


def published(world, tmp_path, **changes) -> Path:
    """The model's folder with another generation_config.json."""
    folder = Path(shutil.copytree(world[0], tmp_path / "published"))
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("use_lora", ["true", "false"])
def test_vicunas_generation_config_does_not_lose_the_run(world, config, tmp_path, caplog, capsys, use_lora):
    model = str(published(world, tmp_path, temperature=0.9, top_p=0.6))
    assert cli.main(["train", str(config), "--model_name_or_path", model, "--use_lora", use_lora]) == 0
    if use_lora == "false":
        assert caplog.text.count("generation_config.json: unset temperature=0.9, top_p=0.6") == 1
        assert load(tmp_path / "out").generation_config.temperature is None
    else:
        assert cli.main(["merge", str(tmp_path / "out"), str(tmp_path / "merged"), "--base", model]) == 0
        assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_a_generation_config_that_cannot_be_repaired_ends_the_run_before_it_starts(world, config, tmp_path, capsys):
    model = str(published(world, tmp_path, max_new_tokens=-4))
    assert cli.main(["train", str(config), "--model_name_or_path", model, "--use_lora", "false"]) == 2
    assert "max_new_tokens" in error_line(capsys)
    arguments = bare_arguments(world, tmp_path)
    arguments["model"].generation_config.max_new_tokens = -4
    with pytest.raises(InputError, match="generation_config.json of the model cannot be saved again: .*max_new_tokens"):
        MDPOTrainer(**arguments)


@pytest.mark.parametrize(
    "changes",
    [
        {"pad_token_id": -1},
        {"num_beams": 1, "length_penalty": 2.0},
        {"output_scores": True},
        {"top_k": 5, "do_sample": None},
    ],
    ids=str,
)
def test_what_has_no_effect_is_unset_and_the_rest_kept(changes):
    from mdpo.models.generation_config import repair_generation_config

    model = tiny.llava()
    model.generation_config = GenerationConfig(eos_token_id=[1, 2], repetition_penalty=1.1)
    for name, value in changes.items():
        setattr(model.generation_config, name, value)
    repair_generation_config(model)
    model.generation_config.validate(strict=True)
    assert model.generation_config.eos_token_id == [1, 2] and model.generation_config.repetition_penalty == 1.1


def test_parts_that_cannot_be_saved_are_named_before_training(world, tmp_path):
    arguments = bare_arguments(world, tmp_path)
    spoil_processor(arguments["model"], arguments["processing_class"])
    with pytest.raises(InputError, match="processing_class cannot be saved: .*before training"):
        MDPOTrainer(**arguments)
    arguments = bare_arguments(world, tmp_path)
    arguments["model"].config.temperature = 0.3  # transformers refuses generation parameters in a model's config
    with pytest.raises(InputError, match="the model's config cannot be saved: .*temperature"):
        MDPOTrainer(**arguments)
    arguments = bare_arguments(world, tmp_path) | {"peft_config": lora()}
    arguments["peft_config"].revision = {object()}
    with pytest.raises(InputError, match="peft_config cannot be saved"):
        MDPOTrainer(**arguments)


class SpoilTheSave(TrainerCallback):
    """Something that cannot be written, set while training."""

    def __init__(self, spoil) -> None:
        self.spoil = spoil

    def on_train_end(self, args, state, control, **kwargs):
        self.spoil(kwargs["model"], kwargs["processing_class"])


def spoil_generation_config(model, processor) -> None:
    model.generation_config.max_new_tokens = -4


def spoil_config(model, processor) -> None:
    model.config.temperature = object()


def spoil_processor(model, processor) -> None:
    processor.image_processor.note = {1, 2}  # which JSON does not have


@pytest.mark.parametrize(
    ("peft", "spoil"),
    [(False, spoil_generation_config), (False, spoil_config), (False, spoil_processor), (True, spoil_processor)],
)
def test_the_weights_of_a_trained_run_are_saved_whatever_else_fails(world, tmp_path, peft, spoil):
    arguments = bare_arguments(world, tmp_path) | {"peft_config": lora() if peft else None}
    run = MDPOTrainer(**arguments, callbacks=[SpoilTheSave(spoil)])
    run.train()
    with pytest.raises(TrainingError, match="not everything could be saved .*the weights are in") as error:
        run.save_model()
    name = "adapter_model.safetensors" if peft else "model.safetensors"
    assert str(tmp_path / name) in str(error.value)
    saved = load_file(tmp_path / name)
    if peft:
        trained = {name.replace(".default", ""): p for name, p in run.model.named_parameters() if p.requires_grad}
    else:
        (tmp_path / "again").mkdir()
        for path in (tmp_path / name, world[0] / "config.json"):
            shutil.copy(path, tmp_path / "again")
        saved, trained = load(tmp_path / "again").state_dict(), run.model.state_dict()
    assert saved.keys() == trained.keys() and all(torch.equal(saved[name], trained[name]) for name in trained)


@pytest.mark.parametrize("peft", [True, False])
def test_a_checkpoint_that_cannot_be_written_leaves_the_steps_weights(world, tmp_path, peft):
    class SpoilTheSecond(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                (spoil_processor if peft else spoil_generation_config)(kwargs["model"], kwargs["processing_class"])

    arguments = bare_arguments(world, tmp_path) | {"peft_config": lora() if peft else None}
    arguments["args"] = dataclasses.replace(arguments["args"], max_steps=3, save_steps=1)
    run = MDPOTrainer(**arguments, callbacks=[SpoilTheSecond()])
    with pytest.raises(
        TrainingError, match="step 2 could not be written: .*weights-2.*last good state is .*checkpoint-1"
    ):
        run.train()
    saved = load_file(tmp_path / "weights-2" / ("adapter_model.safetensors" if peft else "model.safetensors"))
    own = {name.replace(".default", ""): tensor for name, tensor in run.model.state_dict().items()}
    assert saved and all(torch.equal(tensor, own[name]) for name, tensor in saved.items())


def test_a_full_disk_at_the_end_is_said(world, tmp_path):
    run = MDPOTrainer(**bare_arguments(world, tmp_path), peft_config=lora())
    run.train()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))  # fails a write as a full disk does
    try:
        with pytest.raises(
            TrainingError, match="could not be saved to .*: the disk is full; its weights are in .*checkpoint-1"
        ):
            run.save_model(str(tmp_path / "final"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def drop_a_weight(path: Path) -> None:
    weights = load_file(path)
    save_file({name: weights[name] for name in sorted(weights)[1:]}, path, {"format": "pt"})


def set_in(name: str, **changes):
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: cut_short(folder / "model.safetensors"), "model.safetensors is damaged"),
        (lambda folder: drop_a_weight(folder / "model.safetensors"), "lacks 1 of the weights"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{"), "tokenizer_config.json is damaged"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
        (set_in("processor_config.json", patch_size=None), "patch_size is not set"),
        (set_in("processor_config.json", num_additional_image_tokens=0), "do not fit the model"),
        (set_in("config.json", image_token_id=7), "image_token_id 7"),
        (set_in("config.json", quantization_config={"quant_method": "gptq", "bits": 4}), "quantised with gptq"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "chat template"),
        (set_in("tokenizer_config.json", eos_token=None), "EOS"),
    ],
)
@pytest.mark.parametrize("command", ["train", "score"])
def test_a_broken_model_folder_is_one_line(world, config, tmp_path, capsys, damage, message, command):
    model = Path(shutil.copytree(world[0], tmp_path / "broken"))
    damage(model)
    if command == "train":
        arguments = ["train", str(config), "--model_name_or_path", str(model)]
    else:
        arguments = ["score", str(model), str(world[1]), "--output", str(tmp_path / "scores.jsonl")]
    assert cli.main(arguments) == 2
    assert message in error_line(capsys)


@pytest.mark.parametrize("command", ["train", "score"])
def test_a_token_without_an_embedding_is_one_line(world, config, tmp_path, capsys, command):
    model = Path(shutil.copytree(world[0], tmp_path / "model"))
    larger = load_processor(model)
    add_tokens({"processing_class": larger})
    larger.save_pretrained(model)
    rows = [json.loads(line) for line in world[1].read_text().splitlines()]
    rows[1]["chosen"] = "a <loc199>"
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    images = str(world[1].parent)
    if command == "train":
        settings = ["--model_name_or_path", str(model), "--train_data", str(data), "--image_dir", images]
        arguments = ["train", str(config), *settings]
    else:
        output = str(tmp_path / "scores.jsonl")
        arguments = ["score", str(model), str(data), "--image-dir", images, "--output", output]
    assert cli.main(arguments) == 2
    assert "token '<loc199>' has id" in (line := error_line(capsys)) and "row 1" in line


def test_the_command_line_says_where_the_weights_are(world, config, tmp_path, capsys, monkeypatch):
    original = MDPOTrainer.train

    def train(self, *arguments, **keywords):
        output = original(self, *arguments, **keywords)
        spoil_processor(self.model, self.processing_class)
        return output

    monkeypatch.setattr(MDPOTrainer, "train", train)
    assert cli.main(["train", str(config)]) == 1
    assert str(tmp_path / "out" / "adapter_model.safetensors") in error_line(capsys)
