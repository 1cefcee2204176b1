"""sample.py on a trained checkpoint, as a user runs it."""

import io
import os
import sys

import pytest
import torch

import sample
import train
from inputcodes.checkpoint import load_model
from inputcodes.configurator import UserError
from tests.helpers import SMALL


@pytest.fixture(scope="module")
def out_dir(text_data, tmp_path_factory):
    """A run that has learned a little."""
    out = tmp_path_factory.mktemp("out") / "run"
    settings = SMALL | {"data_dir": text_data, "out_dir": out, "max_steps": 60, "n_embd": 32}
    settings |= {"learning_rate": 1e-2, "eval_interval": 30}
    train.main([f"--{key}={value}" for key, value in settings.items()])
    return out


def write(out_dir, *argv: str) -> str:
    """What sample.py prints."""
    screen, sys.stdout = sys.stdout, io.StringIO()
    try:
        sample.main([f"--out_dir={out_dir}", "--device=cpu", *argv])
        return sys.stdout.getvalue()
    finally:
        sys.stdout = screen


def test_a_sample_continues_the_prompt(out_dir):
    text = write(out_dir, "--prompt=table ", "--max_new_tokens=300", "--temperature=0.5")
    assert text.startswith("table ")
    assert len(text.encode()) >= 300
    assert set(text[6:].split()) & {"table", "code", "bit", "token", "fixed", "input."}


def test_the_seed_decides_each_sample_alone(out_dir):
    three = write(out_dir, "--num_samples=3", "--max_new_tokens=40", "--seed=5")
    parts = three.split("-" * 40 + "\n")
    assert len(parts) == 3
    assert len(set(parts)) == 3
    assert write(out_dir, "--max_new_tokens=40", "--seed=6") == parts[1]


def test_greedy_text_goes_on_past_the_block(out_dir):
    """The context is 16 bytes; 100 more are written."""
    greedy = ("--temperature=0", "--max_new_tokens=100", "--prompt=code ")
    text = write(out_dir, *greedy)
    assert text == write(out_dir, *greedy, "--seed=9", "--top_k=3")
    assert len(text.encode()) == len("code ") + 100 + 1


def test_bytes_that_are_no_text_do_not_break_it(out_dir):
    text = write(out_dir, "--temperature=30", "--max_new_tokens=200")
    assert "�" in text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--prompt="], "prompt='': expected at least one character"),
        (["--top_p=0"], "top_p=0.0: expected above 0"),
        (["--temperature=-1"], "temperature=-1.0"),
        (["--temperature=1e-46"], "temperature=1e-46: expected 0 or"),
        (["--num_samples=0"], "num_samples=0"),
        (["--checkpoint=worst"], "checkpoint='worst'"),
        (["--chat", "--prompt=a"], "--chat reads what you type: leave out prompt"),
        (["--start=a"], "unknown setting 'start' .*: it is called prompt here"),
    ],
)
def test_bad_requests_are_refused(out_dir, argv, words):
    with pytest.raises(UserError, match=words):
        write(out_dir, *argv)


def test_a_prompt_with_a_lone_surrogate_is_refused(out_dir, capsys):
    with pytest.raises(UserError, match="surrogate"):
        sample.main([f"--out_dir={out_dir}", "--prompt=a\ud800"])
    assert not capsys.readouterr().out


def test_a_prompt_can_be_a_file(out_dir, tmp_path, monkeypatch):
    story = tmp_path / "story.txt"
    story.write_text("table of ", encoding="utf-8")
    greedy = ("--temperature=0", "--max_new_tokens=20")
    text = write(out_dir, f"--prompt=FILE:{story}", *greedy)
    assert text == write(out_dir, "--prompt=table of ", *greedy)
    with pytest.raises(UserError, match="cannot read the prompt"):
        write(out_dir, f"--prompt=FILE:{tmp_path / 'none.txt'}")
    story.write_bytes(b"a\r\nb")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sample.prompt_text("FILE:~/story.txt") == "a\r\nb"
    story.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        write(out_dir, f"--prompt=FILE:{story}")


def test_a_prompt_that_can_be_read_once_starts_every_sample(out_dir):
    there, here = os.pipe()
    os.write(here, b"table of ")
    os.close(here)
    settings = "--max_new_tokens=5", "--num_samples=2"
    text = write(out_dir, f"--prompt=FILE:/dev/fd/{there}", *settings)
    os.close(there)
    assert text == write(out_dir, "--prompt=table of ", *settings)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # of most locales, of C.UTF-8
def test_a_chat_line_that_is_no_text_is_refused(out_dir, monkeypatch, errors):
    model, _, tokenizer = load_model(out_dir / "best.pt")
    config = sample.SampleConfig()
    typed = io.TextIOWrapper(io.BytesIO(b"h\xe9llo\n"), "utf-8", errors)
    monkeypatch.setattr("sys.stdin", typed)
    with pytest.raises(UserError, match="the input is not utf-8 text: convert it"):
        sample.chat(model, tokenizer, config)


@pytest.mark.parametrize("count", [5, 60])
def test_the_loss_of_what_was_written_is_said_if_asked(out_dir, count):
    argv = "--temperature=0", f"--max_new_tokens={count}", "--prompt=co"
    text = write(out_dir, *argv)
    with_loss = write(out_dir, *argv, "--loss")
    model = load_model(out_dir / "best.pt")[0]
    ids = torch.tensor(list(text.removesuffix("\n").encode())[-17:])  # the block, and a target
    log_p = model(ids[None, :-1])[0].log_softmax(-1)
    nats = -log_p[torch.arange(len(ids) - 1), ids[1:]][-count:].mean().item()
    assert with_loss == f"{text}[{nats:.4f} nats per token]\n"
