"""What a user writes is taken as it is meant, whatever YAML 1.1 makes of it; what cannot be meant is one line."""

import dataclasses
import re
from enum import Enum
from pathlib import Path
from typing import Literal

import pytest

from mdpo import MDPOConfig
from mdpo.commands.train import settings_help
from mdpo.config import build_config, load_config, parse_overrides
from mdpo.errors import InputError
from mdpo.own_settings import OwnRunSettings, OwnTrainerSettings
from mdpo.settings import Written, coerce, plain, read_yaml
from mdpo.settings.yaml_text import MAX_ALIASES

REQUIRED = {"model_name_or_path": "m", "train_data": "d", "use_cpu": True}


@pytest.fixture
def load(tmp_path: Path):
    """A setting's value in a run whose file has these lines, with these words on the command line."""

    def read(lines: str = "", *words: str) -> dict:
        path = tmp_path / "run.yaml"
        path.write_text(f"model_name_or_path: m\ntrain_data: d\nuse_cpu: true\noutput_dir: {tmp_path}/out\n{lines}\n")
        if "output_dir:" in lines:
            path.write_text(path.read_text().replace(f"output_dir: {tmp_path}/out\n", ""))
        run, args = load_config(path, parse_overrides(words))
        return {**vars(args), **vars(run)}

    return read


@pytest.mark.parametrize("word", ["no", "off", "false", "No", "'no'"])
@pytest.mark.parametrize("name", ["save_strategy", "eval_strategy", "logging_strategy"])
def test_no_is_the_name_of_a_strategy(load, name, word):
    assert load(f"{name}: {word}")[name].value == "no"
    assert load("", f"--{name}", word.strip("'"))[name].value == "no"


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("run_name: 123", "run_name", "123"),
        ("run_name: 007", "run_name", "007"),
        ("run_name: 1e-4", "run_name", "1e-4"),
        ("run_name: 2024-13-45", "run_name", "2024-13-45"),
        ("run_name: on", "run_name", "on"),
        ("run_name: 12:30:00", "run_name", "12:30:00"),
        ("run_name: ~", "run_name", None),
        ("output_dir: 2024-01-01", "output_dir", "2024-01-01"),
        ("resume_from_checkpoint: true", "resume_from_checkpoint", True),
        ("resume_from_checkpoint: 2024", "resume_from_checkpoint", "2024"),
        ("chat_template_kwargs: {enable_thinking: off}", "chat_template_kwargs", {"enable_thinking": False}),
        ("report_to: no", "report_to", []),
        ("include_num_input_tokens_seen: yes", "include_num_input_tokens_seen", "all"),
        ("max_length: none", "max_length", None),
        ("learning_rate: 1e-4", "learning_rate", 1e-4),
        ("learning_rate: '1e-4'", "learning_rate", 1e-4),
        ("logging_steps: 2.0", "logging_steps", 2),
        ("max_steps: 3.0", "max_steps", 3),
        ("anchor: [1e-1]", "anchor", [0.1]),
        ("anchors: chosen", "anchors", ["chosen"]),
        ("anchors: chosen, rejected", "anchors", ["chosen", "rejected"]),
        ("lora_target_modules: [q_proj, v_proj]", "lora_target_modules", ["q_proj", "v_proj"]),
        ("learning-rate: 2", "learning_rate", 2.0),
        ("dtype: bf16", "dtype", "bfloat16"),
        ("dtype: fp16", "dtype", "float16"),
        ("dtype: torch.float32", "dtype", "float32"),
    ],
)
def test_a_value_is_what_was_written(load, line, name, value):
    assert load(line)[name] == value


def test_numbers_in_a_mapping_are_numbers(load):
    settings = load("lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1e-6, num_cycles: 0.5}")
    assert settings["lr_scheduler_kwargs"] == {"min_lr": 1e-6, "num_cycles": 0.5}
    assert load("lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: '{\"min_lr\": 1e-6}'")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--bf16", "--max_steps", "1"], "bf16", True),
        (["--bf16", "--max_steps", "1"], "max_steps", 1),
        (["--max-steps", "-1"], "max_steps", -1),
        (["--bf16=false"], "bf16", False),
        (["--anchors", "chosen", "rejected", "--seed", "3"], "anchors", ["chosen", "rejected"]),
        (["--lora_target_modules", "q_proj", "v_proj"], "lora_target_modules", ["q_proj", "v_proj"]),
        (["--lora_target_modules", "*.q_proj"], "lora_target_modules", "*.q_proj"),
        (["--train_data", "a.jsonl", "b.jsonl"], "train_data", ["a.jsonl", "b.jsonl"]),
        (["--train_data", "data/[0-9]*.parquet"], "train_data", "data/[0-9]*.parquet"),
        (["--run_name", "a: b: c"], "run_name", "a: b: c"),
        (["--conditional"], "conditional", True),
    ],
)
def test_the_command_line_says_what_it_looks_like(load, words, name, value):
    assert load("", *words)[name] == value


@pytest.mark.parametrize(
    "text",
    ["Answer. # be brief", "Be brief. ", " Be brief", "Line\nTwo", "# Rules", "Be brief: always", "[be brief]",
        "- be brief",
     "it's: fine", "'quoted'", "{a: b}", "7 # rules", " 7", "07", "&a *b", "%x", "---", "no", "true", "é\\n"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["system_prompt", "image_dir", "run_name", "output_dir", "reference_cache_dir"])
def test_text_on_the_command_line_is_taken_as_it_is(load, name, text):
    assert load("", f"--{name}={text}")[name] == text
    if not text.startswith("--"):
        assert load("", f"--{name}", text)[name] == text


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("resume_from_checkpoint", "runs/exp #2", "runs/exp #2"),
        ("resume_from_checkpoint", "true", True),
        ("resume_from_checkpoint", "'true'", "true"),
        ("lora_target_modules", "a #b", "a #b"),
        ("lora_target_modules", "[a, b]", ["a", "b"]),
        ("ignore_columns", "mark #1", ["mark #1"]),
        ("ignore_columns", "# of likes", ["# of likes"]),
        ("ignore_columns", "a: b, c", ["a: b", "c"]),
        ("ignore_columns", "[a, 2]", ["a", "2"]),
        ("system_prompt", "", None),
        ("run_name", "null", None),
    ],
)
def test_text_beside_another_type(load, name, text, value):
    assert load("", f"--{name}", text)[name] == value


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("save_strategy: yes", "save_strategy: yes is unknown; choose from no, steps, epoch, best"),
        ("optim: adam", "optim: 'adam' is unknown; choose from adamw_torch"),
        ("lr_scheduler_type: cos", "lr_scheduler_type: 'cos' is unknown; choose from linear"),
        ("beta: .nan", "beta is nan; expected a number above 0"),
        ("beta: yes", "beta is yes; expected a number"),
        ("anchor: .nan", "anchor is nan; expected a finite number"),
        ("anchors: [chosen, rejected]\nanchor: [0, .inf]", "anchor is inf; expected a finite number"),
        ("learning_rate: -1", "learning_rate is -1.0; expected a number of at least 0"),
        ("adam_beta1: 1", "adam_beta1 is 1.0; expected a number in [0, 1)"),
        ("seed: -1", "seed is -1; expected a number in [0, 4294967295]"),
        ("seed: .inf", "seed is .inf; expected a whole number"),
        (f"max_steps: 1{'0' * 400}.5", "max_steps is 1000"),
        ("max_steps: 0", "max_steps is 0; expected a number above 0, or -1"),
        ("lora_dropout: .inf", "lora_dropout is inf; expected a number in [0, 1)"),
        ("lora_r: 0", "lora_r is 0; expected a number above 0"),
        ("eval_fraction: .nan", "eval_fraction is nan; expected a number in [0, 1)"),
        ("dtype: int8", "dtype: 'int8' is unknown; choose from auto, bfloat16"),
        ("ddp_backend: carrier_pigeon", "ddp_backend: 'carrier_pigeon' is unknown; choose from nccl, gloo"),
        ("log_level: loud", "log_level: 'loud' is unknown; choose from"),
        ("torch_compile_mode: fast", "torch_compile_mode: 'fast' is unknown; choose from default"),
        ("torch_compile_backend: fast", "torch_compile_backend: 'fast' is unknown"),
        ("parallelism_config: {tp_size: 2}", "parallelism_config: tensor, context"),
        ("accelerator_config: {split_batches: true}", "accelerator_config.split_batches: the planner"),
        ("accelerator_config: {even_batches: false}", "accelerator_config.even_batches: the planner"),
        (
            "accelerator_config: {gradient_accumulation_kwargs: {num_steps: 2}}",
            "gradient_accumulation_kwargs: the planner",
        ),
        ("accelerator_config: {split: 1}", "accelerator_config: unknown key 'split'; choose from"),
        ("accelerator_config: [1]", "accelerator_config is [1]; expected a mapping or text or none"),
        (
            "accelerator_config: /",
            "accelerator_config is '/', and there is no such file; expected a mapping or a JSON file",
        ),
        ("fsdp_config: nowhere.json", "fsdp_config is 'nowhere.json', and there is no such file"),
        ("lr_scheduler_kwargs: fast", "lr_scheduler_kwargs is 'fast'; expected a mapping such as"),
        ("lr_scheduler_kwargs: {min_lr: 1}", "lr_scheduler_kwargs: cosine does not take {'min_lr': 1}"),
        (
            "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: low}",
            "cosine_with_min_lr does not take",
        ),
        ("gradient_checkpointing_kwargs: {reentrant: true}", "gradient_checkpointing_kwargs: unknown key 'reentrant'"),
        ("gradient_checkpointing_kwargs: {use_reentrant: 1}", "use_reentrant is 1; expected true or false"),
        ("optim: lomo", "optim: lomo is not supported: it steps inside the backward"),
        ("optim: galore_adamw_layerwise", "optim: galore_adamw_layerwise is not supported"),
        ("optim: schedule_free_adamw", "optim: schedule_free_adamw keeps two sets of weights"),
        ("optim_args: momentum", "optim_args is 'momentum'; expected name=value"),
        ("debug: tpu_metrics_debug", "debug: 'tpu_metrics_debug' is unknown; choose from underflow_overflow"),
        ("dataloader_persistent_workers: true", "dataloader_persistent_workers: there are no workers"),
        ("dataloader_multiprocessing_context: thread", "dataloader_multiprocessing_context: 'thread' is unknown"),
        ("logging_steps: 2.5", "logging_steps must be an integer"),
        ("do_train: no", "do_train: mdpo train trains"),
        ("do_eval: no\neval_strategy: steps", "do_eval: false, but eval_strategy is set"),
        ("per_device_train_batch_size: 8", "per_device_train_batch_size: micro-batches are counted in tokens"),
        ("per_device_eval_batch_size: 8", "per_device_eval_batch_size: micro-batches are counted in tokens"),
        ("beta: 0.1\nbeta: 0.2", "key 'beta' appears twice"),
        ("learning_rate: 1\nlearning-rate: 2", "key 'learning_rate' appears twice"),
        ("run_name: &a [*a]", "a value contains itself"),
        ("run_name: !!python/name:os.system x", "is not YAML: could not determine a constructor"),
        ("run_name: !!set {a, b}", "tag tag:yaml.org,2002:set is not read"),
        ("? [a, b]\n: 1", "a key is a list or a mapping"),
        (f"run_name: {'[' * 3000}{']' * 3000}", "is not YAML: it is nested too deeply"),
        (f"run_name: {'x' * 500}\nbeta: {'y' * 500}", "beta is 'yyyyyyyyyy"),
    ],
)
def test_what_cannot_be_meant_is_one_line_that_names_it(load, lines, message):
    with pytest.raises(InputError) as error:
        load(lines)
    assert message in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--beta", "--seed", "1"], "--beta has no value"),
        (["--beta"], "--beta has no value"),
        (["--learning_rate", "[1"], "--learning_rate is not YAML"),
        (["--seed", "1", "2"], "unexpected argument '2'"),
        (["--include_num_input_tokens_seen", "--bf16"], "--include_num_input_tokens_seen has no value"),
    ],
)
def test_a_command_line_that_cannot_be_meant(words, message):
    with pytest.raises(InputError, match=message.replace("[", "\\[")):
        parse_overrides(words)


def test_a_bomb_of_aliases_is_refused_before_it_grows():
    lines = ["a0: &a0 [lol, lol, lol]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 30)]
    with pytest.raises(InputError, match=f"87 YAML aliases .* at most {MAX_ALIASES}"):
        read_yaml("\n".join(lines), "config")


def test_a_few_aliases_and_merged_mappings_are_read():
    read = read_yaml("x: &x {a: 1, b: no}\ny: {<<: *x, b: 2}\nz: [*x]", "config")
    assert plain(read) == {"x": {"a": 1, "b": False}, "y": {"a": 1, "b": 2}, "z": [{"a": 1, "b": False}]}
    assert read["x"]["b"] == Written(False, "no")


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"run_name: \xe9")
    (tmp_path / "list.yaml").write_text("- a")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    cases = {
        "latin.yaml": "cannot be read as UTF-8",
        "list.yaml": "is a list; expected keys and values",
        ".": "is a folder",
        "empty.yaml": "'model_name_or_path' is missing",
        "none.yaml": "does not exist",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message) as error:
            load_config(tmp_path / name)
        assert "\n" not in str(error.value)


class Colour(Enum):
    RED, NO = "red", "no"


@pytest.mark.parametrize(
    ("value", "hint", "result"),
    [
        (Written(False, "off"), Colour | str, Colour.NO),
        ("red", Colour | str, Colour.RED),
        (Written(False, "false"), str | None | Literal[False], False),
        (Written(True, "true"), str | bool, True),
        (Written(5, "5"), str | list[str] | None, "5"),
        ([Written(5, "5"), "a"], list[str], ["5", "a"]),
        ({"a": Written(1, "1")}, dict | str | None, {"a": 1}),
        (10**30, int, 10**30),
    ],
)
def test_a_union_takes_the_type_that_was_meant(value, hint, result):
    found = coerce(value, hint, "x")
    assert found == result and type(found) is type(result)


def test_a_changed_copy_of_the_settings_is_as_good_as_they_are(tmp_path):
    args = MDPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to="none",
        gradient_checkpointing=True,
        eval_steps=3,
        include_num_input_tokens_seen=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    changed = dataclasses.replace(args, seed=7)
    assert {**changed.to_dict(), "seed": 42} == args.to_dict() and changed.seed == 7


def test_do_flags_mean_what_they_say():
    args = build_config({**REQUIRED, "do_eval": False, "do_train": True}, source="x")[1]
    assert args.eval_strategy.value == "no" and args.eval_strategy_given


def test_the_help_lists_every_setting_of_our_own():
    text = " ".join(settings_help().split())
    assert re.search(r"--token_budget [^-]*-batch \(default: 16384\)", text)
    assert re.search(r"--train_data .*?\(required\)", text)
    own = [name for kind in (OwnRunSettings, OwnTrainerSettings) for name in kind.__annotations__]
    assert re.findall(r"--(\w+)", text) == ["key", *own]


def test_yaml_of_strangers_is_bounded():
    from mdpo.settings.yaml_text import MAX_CHARACTERS

    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    for text, message in (
        (bomb, "72 YAML aliases"),
        ("[" * 100_000, "nested too deeply|is not YAML"),
        ("a: " + "x" * MAX_CHARACTERS, "characters of YAML; at most 262,144 are read"),
        ("- " * 50_000, "nested too deeply|is not YAML"),
    ):
        with pytest.raises(InputError, match=message) as refused:
            read_yaml(text, "config x.yaml")
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 600
