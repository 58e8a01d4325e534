"""What holds for every test."""

import os

# Before huggingface_hub is imported: no test asks the network for anything. tests/test_hub.py has a hub of its own.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}

import pytest
import torch

# The models are tiny: a second thread costs more than it brings.
torch.set_num_threads(1)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on loopback, which this process asks from an empty folder."""
    from tests.hub import asked

    monkeypatch.chdir(tmp_path)
    with asked(monkeypatch, tmp_path) as server:
        yield server


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))
