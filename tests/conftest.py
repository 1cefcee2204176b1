"""A data set on disk, written here by hand rather than by prepare_data.py; one thread a test."""

import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from inputcodes.tokenizer import Tokenizer
from tests.helpers import SMALL

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when `datasets` is first imported
os.environ.setdefault("HF_HOME", os.path.join(tempfile.gettempdir(), "input-codes-tests"))
torch.set_num_threads(1)  # the models are tiny, and CI may share its cores


def write_data_set(
    path: Path,
    train: list[np.ndarray],
    val: list[np.ndarray],
    vocab_size: int = 256,
    chat: bool = False,
) -> None:
    """A directory as prepare_data.py leaves it, of tokens in the given shards."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(vocab_size)
    tokenizer.save(path / "tokenizer.json")
    splits = {"train": write_split(path, "train", train), "val": write_split(path, "val", val)}
    hashes = [tokenizer.sha256, *(f["sha256"] for s in splits.values() for f in s["files"])]
    meta = {
        "format": 1,
        "vocab_size": vocab_size,
        "tokenizer_sha256": tokenizer.sha256,
        "data_sha256": hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
        "splits": splits,
        "settings": {"chat": chat},
    }
    (path / "meta.json").write_text(json.dumps(meta))


def write_split(path, name: str, shards: list[np.ndarray]) -> dict:
    """Shards as raw little-endian uint16, and their entry of meta.json."""
    files = []
    for i, shard in enumerate(shards):
        raw = b"".join(int(token).to_bytes(2, "little") for token in shard)
        (path / f"{name}_{i:06d}.bin").write_bytes(raw)
        digest = hashlib.sha256(raw).hexdigest()
        files.append({"name": f"{name}_{i:06d}.bin", "tokens": len(shard), "sha256": digest})
    return {"tokens": sum(map(len, shards)), "documents": 1, "bytes": 1, "files": files}


@pytest.fixture(scope="session")
def text_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir with the data set `tiny`: 20,000 bytes that a model can learn from."""
    rng = np.random.default_rng(0)
    words = [b"table ", b"code ", b"bit ", b"token ", b"fixed ", b"input."]
    text = b"".join(words[i] for i in rng.integers(len(words), size=5000))[:22_000]
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
