"""Files of a run: every bit of a checkpoint counts, and none is lost when something goes wrong."""

import io
import itertools
import json
import random
import resource
import signal
import zipfile

import pytest
import torch

from inputcodes.checkpoint import Metrics, load_model, read_checkpoint, write_checkpoint
from inputcodes.configurator import UserError
from inputcodes.files import PARTIAL, locked, read_json_lines
from inputcodes.resume import find_start
from model import GPT, GPTConfig
from tests.helpers import record_of

CONFIG = {"vocab_size": 16, "block_size": 8, "n_layer": 1, "n_head": 1, "n_embd": 8}
CONFIG["input_layer"] = "learned"


@pytest.fixture
def checkpoint(tmp_path):
    """A small checkpoint, last.pt."""
    path = tmp_path / "last.pt"
    write_checkpoint(path, {"model": GPT(GPTConfig(**CONFIG), 1).state_dict()}, record_of(CONFIG))
    return path


def test_what_is_written_is_read(checkpoint):
    tensors, record = read_checkpoint(checkpoint)
    expected = GPT(GPTConfig(**CONFIG), 1).state_dict()
    assert tensors["model"].keys() == expected.keys()
    assert all(torch.equal(tensors["model"][key], expected[key]) for key in expected)
    assert record["config"] == record_of(CONFIG)["config"]
    assert not list(checkpoint.parent.glob(f"*{PARTIAL}"))


def test_no_flipped_bit_passes(checkpoint):
    """Bits of everything: tensors, zip directory, record, and the line with the SHA-256."""
    whole = checkpoint.read_bytes()
    seed = random.randrange(2**32)
    print("seed", seed)
    draw = random.Random(seed).randrange
    places = [draw(len(whole)) for _ in range(200)] + [len(whole) - draw(75) - 1 for _ in range(75)]
    places += list(range(whole.index(b"PK\x01\x02"), len(whole) - 74, 7))  # the zip directory
    for place in places:
        raw = bytearray(whole)
        raw[place] ^= 1 << draw(8)
        checkpoint.write_bytes(raw)
        with pytest.raises(UserError, match=r"last\.pt is (damaged|refused)"):
            read_checkpoint(checkpoint)


def test_a_checkpoint_cut_short_is_refused(checkpoint):
    whole = checkpoint.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 74, len(whole) - 1):
        checkpoint.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"last\.pt is damaged"):
            read_checkpoint(checkpoint)


def test_no_pickle_is_run_and_the_refusal_is_one_line(tmp_path):
    class Evil:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    for path, options in ((tmp_path / "zip.pt", {}), (tmp_path / "old.pt", {})):
        torch.save(
            {"model": Evil()}, path, _use_new_zipfile_serialization=path.stem == "zip", **options
        )
        with pytest.raises(UserError) as caught:
            read_checkpoint(path)
        assert len(str(caught.value).splitlines()) == 1
        assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_checkpoints_of_before_load_with_the_names_of_today(tmp_path):
    """Format 1: a torch file alone, with settings that have other names now."""
    config = CONFIG | {"input_layer": "random", "random_width": 6, "tf32": True}
    weights = GPT(GPTConfig(**CONFIG | {"input_layer": "random", "code_length": 6}), 1).state_dict()
    record = json.dumps(record_of(config))
    torch.save({"model": weights, "record": record}, tmp_path / "best.pt")
    gpt, record = load_model(tmp_path / "best.pt")
    assert gpt.config.code_length == 6
    assert record["config"]["matmul_precision"] == "high"
    raw = bytearray((tmp_path / "best.pt").read_bytes())
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
    raw[entry.header_offset + 200] ^= 1
    (tmp_path / "best.pt").write_bytes(raw)
    with pytest.raises(UserError, match=r"damaged \(wrong checksum"):
        read_checkpoint(tmp_path / "best.pt")


# What the program of that time stored for 16 tokens and code_seed=1: see below.
AFFINE_COLUMNS, AFFINE_SHIFT = [6, 1, 12, 14], 12
RANDOM_CODES = [8, 36, 54, 51, 48, 4, 16, 7, 31, 28, 30, 41, 24, 50, 13, 6]


@pytest.mark.parametrize("layer", ["affine", "random"])
def test_codes_that_were_stored_are_those_that_follow_from_the_settings(tmp_path, layer):
    """Old checkpoints held the image of each bit and the shift, or the signs of every token."""
    if layer == "affine":
        stored = {"columns": torch.tensor(AFFINE_COLUMNS), "shift": torch.tensor(AFFINE_SHIFT)}
        codes = [AFFINE_SHIFT] * 16
        for token, bit in itertools.product(range(16), range(4)):
            codes[token] ^= AFFINE_COLUMNS[bit] * (token >> bit & 1)
        rows = torch.tensor([[code >> i % 4 & 1 for i in range(8)] for code in codes])
    else:
        signs = [[2 * (code >> i % 6 & 1) - 1 for i in range(8)] for code in RANDOM_CODES]
        rows = torch.tensor(signs)
        stored = {"codes": rows[:, :6].to(torch.int8)}
    learned = GPT(GPTConfig(**CONFIG), 1).state_dict()
    weights = {k: v for k, v in learned.items() if not k.startswith("input_layer.")}
    weights |= {f"input_layer.{name}": value for name, value in stored.items()}
    config = CONFIG | {"input_layer": layer, "random_width": 6, "code_seed": 1}
    write_checkpoint(tmp_path / "best.pt", {"model": weights}, record_of(config))
    gpt, _ = load_model(tmp_path / "best.pt")
    assert torch.equal(gpt.input_layer(torch.arange(16)), rows.float())


def test_without_best_the_last_is_loaded_and_said(checkpoint, capsys, monkeypatch):
    load_model(checkpoint.with_name("best.pt"))
    assert f"taking {checkpoint}" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    load_model(checkpoint.with_name("best.pt"))
    assert not capsys.readouterr().err  # one of several processes says it
    checkpoint.unlink()
    with pytest.raises(UserError, match=r"no checkpoint .*best\.pt: .*python train\.py") as caught:
        load_model(checkpoint.with_name("best.pt"))
    assert len(str(caught.value).splitlines()) == 1


def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint(checkpoint):
    """A limit on the size of files fails as a full disk does, within torch's writer."""
    before, (soft, hard) = checkpoint.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        write_checkpoint(checkpoint, {"model": {"w": torch.ones(10**6)}}, {})
    except UserError as error:
        message = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert message == f"cannot write {checkpoint}: File too large"
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == ["last.pt"]


def test_what_a_killed_run_left_half_written_is_removed_at_the_next_start(tmp_path):
    (tmp_path / f"last.pt{PARTIAL}").write_bytes(b"half")
    with locked(tmp_path, wait=False):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_metrics_keep_every_line_but_those_to_be_repeated(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path, 0, lambda line: None)
    for step in range(1, 6):
        metrics.write({"step": step})
    lines = path.read_text().splitlines()
    lines[1] = '{"step": '
    path.write_text("\n".join(lines) + '\n{"step": 6')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is damaged"):
        read_json_lines(path)
    metrics = Metrics(path, 4, lambda line: None)
    assert f"warning: {path}, line 2 is damaged" in capsys.readouterr().err
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n{"step": 4}\n'
    metrics.write({"step": 4, "val_loss": 2.0})  # the evaluation that the line lacked
    metrics.write({"step": 5})
    assert [line.get("val_loss") for line in read_json_lines(path)] == [None, None, 2.0, None]


def test_a_metrics_line_of_other_types_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "val_documents": [[1.0, 2]]}\n{"step": 2, "val_loss": "low"}\n')
    with pytest.raises(UserError, match=r"line 2 is damaged: val_loss='low' is no number: delete"):
        read_json_lines(path)
    for documents in ("5", "[[1.0, 2], 3]", '[["a", 2]]', "[[1.0]]"):
        path.write_text(f'{{"step": 1, "val_documents": {documents}}}\n')
        with pytest.raises(UserError, match=r"line 1 is damaged: val_documents has .*: delete"):
            read_json_lines(path)


def test_a_checkpoint_of_another_program_is_named_as_such(tmp_path):
    file = tmp_path / "best.pt"
    for foreign in ({"model": {}, "iter_num": 3}, {"model": 5, "record": "{}"}, torch.zeros(2)):
        torch.save(foreign, file)
        with pytest.raises(UserError, match=r"best\.pt is not a checkpoint of this program"):
            read_checkpoint(file)
    record = record_of({**CONFIG, "n_embd": 16})
    write_checkpoint(file, {"model": GPT(GPTConfig(**CONFIG), 1).state_dict()}, record)
    with pytest.raises(UserError, match=r"best\.pt is damaged: weights and settings differ"):
        load_model(file)


@pytest.mark.parametrize("name", [*record_of({}), *record_of({})["config"], "input_layer"])
def test_a_record_that_lacks_a_part_or_has_another_type_there_is_one_line(tmp_path, name):
    if name == "code_sha256":
        return  # write_checkpoint adds it
    file, weights = tmp_path / "last.pt", {"model": GPT(GPTConfig(**CONFIG), 1).state_dict()}
    records = [record_of(CONFIG), record_of(CONFIG)]
    if name in records[0]:
        records[0].pop(name)
        records[1][name] = None
    else:
        records = [record_of(CONFIG)]
        records[0]["config"].pop(name)
        name = f"config['{name}']"
    for record in records:
        write_checkpoint(file, weights, record)
        for use in (load_model, read_checkpoint, lambda path: find_start("resume", path.parent)):
            with pytest.raises(
                UserError, match=r"last\.pt is damaged \(its record lacks "
            ) as caught:
                use(file)
            assert name in str(caught.value)
            assert len(str(caught.value).splitlines()) == 1


def test_a_checkpoint_without_the_optimizer_is_not_resumed(checkpoint):
    with pytest.raises(UserError, match=r"last\.pt lacks the state of the optimizer; there is no"):
        find_start("resume", checkpoint.parent)
