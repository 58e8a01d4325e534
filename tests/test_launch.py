"""--accelerate: the launch line it becomes is one that accelerate takes, with our profile and the user's own words."""

import os

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from mdpo import InputError, launch
from mdpo.cli import main

WORDS = ["train", "run.yaml", "--beta", "0.2", "--output_dir=a b"]


@pytest.mark.parametrize("profile", launch.PROFILES)
@pytest.mark.parametrize("written", [lambda name: ["--accelerate", name], lambda name: [f"--accelerate={name}"]])
def test_the_command_becomes_a_launch_of_itself_on_every_gpu(profile, written, monkeypatch, capsys):
    class Replaced(Exception):
        pass

    replaced = []

    def execv(path, command):
        replaced.append((path, command))
        raise Replaced

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(Replaced):
        main([*WORDS[:2], *written(profile), *WORDS[2:]])
    ((path, command),) = replaced
    assert command[:3] == [path, "-m", "accelerate.commands.launch"]
    taken = launch_command_parser().parse_args(command[3:])
    assert taken.num_processes == 4 and taken.module and taken.training_script == "mdpo"
    assert taken.training_script_args == WORDS
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED"}
    assert load_config_from_file(taken.config_file).distributed_type.value == kinds[profile]
    assert "accelerate launch --config_file" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gpus", "around", "problem"),
    [
        (0, {}, "no GPU is visible"),
        (1, {}, "one GPU is visible"),
        (4, {"LOCAL_RANK": "0"}, "a launcher has started this process already"),
    ],
)
def test_where_there_is_nothing_to_launch_it_is_said(gpus, around, problem, monkeypatch, capsys):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in around.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert main([*WORDS, "--accelerate", "ddp"]) == 2
    said = capsys.readouterr().err
    assert f"error: --accelerate ddp: {problem}" in said and "leave --accelerate out" in said


def test_a_profile_without_its_package_is_named(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="--accelerate zero2: DeepSpeed is not installed; pip install deepspeed"):
        launch.launch_command("zero2", WORDS, 2)
