"""A data set on disk, written here by hand rather than by prepare_data.py; one thread a test."""

import gc
import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import SMALL, write_data_set

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when `datasets` is first imported
os.environ.setdefault("HF_HOME", os.path.join(tempfile.gettempdir(), "input-codes-tests"))
os.fsync = lambda file: None  # no test pulls the plug, and waiting for disks takes seconds
torch.set_num_threads(1)  # the models are tiny, and CI may share its cores
for _number in (signal.SIGINT, signal.SIGHUP):  # ignored in background jobs, and inherited
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler)


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported by now stays, and need not be looked through again


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A test draws the same from PyTorch's own generator whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def text_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir with the data set `tiny`: 20,000 bytes that a model can learn from."""
    rng = np.random.default_rng(0)
    words = [b"table ", b"code ", b"bit ", b"token ", b"fixed ", b"input."]
    text = b"".join(words[i] for i in rng.integers(len(words), size=5000))[:20_800]
    tokens = np.frombuffer(text, dtype=np.uint8).astype(np.uint16)
    data_dir = tmp_path_factory.mktemp("data")
    write_data_set(data_dir / "tiny", [tokens[:9000], tokens[9000:20_000]], [tokens[20_000:]])
    return data_dir


@pytest.fixture
def words(text_data, tmp_path):
    """Builds a command line: the small run in tmp_path / NAME, with changes."""

    def build(name: str = "run", **changes) -> list[str]:
        settings = SMALL | {"data_dir": text_data, "out_dir": tmp_path / name} | changes
        return [f"--{key}={value}" for key, value in settings.items()]

    return build
