"""Fine-tuning a run: what the checkpoint decides, masked losses, processes and interruptions."""

import contextlib
import io
import itertools
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import sample
import train
from inputcodes.checkpoint import load_model, read_checkpoint
from inputcodes.configurator import UserError
from inputcodes.data import DataSet, TrainingData
from inputcodes.documents import encode_turns
from inputcodes.loss import IGNORED
from inputcodes.tokenizer import Tokenizer
from prepare_data import prepare_missing
from tests.helpers import SMALL, Program, assert_same_run, metrics_of, write_data_set

BASE = {key: SMALL[key] for key in ("block_size", "n_layer", "n_head", "n_embd")}
SFT = {key: value for key, value in SMALL.items() if key not in BASE}
RATES = {
    key: SFT[key] for key in ("max_steps", "warmup_steps", "learning_rate", "min_lr") if key in SFT
}
SFT |= {"dataset": "sums", "weight_decay": 0.01, "gradient_accumulation_steps": 3}


@pytest.fixture(scope="module")
def data_dir(text_data, tmp_path_factory):
    """`tiny`, and `sums`: conversations whose responses are of very different lengths."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(text_data / "tiny", folder / "tiny")
    tokenizer, rng, parts = Tokenizer(256), np.random.default_rng(0), []
    for _ in range(300):
        prompt, response = "cc" * rng.integers(1, 4), str(rng.choice(["d", "d", "c" * 9]))
        ids = encode_turns(tokenizer, [("user", prompt), ("assistant", response)])
        parts += [[*ids, tokenizer.end_of_text]]
    train_tokens, val_tokens = np.concatenate(parts[:250]), np.concatenate(parts[250:])
    write_data_set(folder / "sums", [train_tokens], [val_tokens], chat=True)
    return folder


@pytest.fixture(scope="module")
def base(data_dir, tmp_path_factory):
    """A run to fine-tune, of the affine input layer with a code of its own."""
    out_dir = tmp_path_factory.mktemp("base")
    words = SMALL | {"data_dir": data_dir, "out_dir": out_dir, "max_steps": 8}
    words |= {"input_layer": "affine", "code_seed": 7}
    train.main([f"--{key}={value}" for key, value in words.items()])
    return out_dir


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    """A config file like config/sft_default.py: it says nothing about the architecture."""
    file = tmp_path_factory.mktemp("config") / "sft.py"
    file.write_text("".join(f"{key} = {value!r}\n" for key, value in SFT.items()))
    return file


@pytest.fixture(scope="module")
def words_for(config_file, data_dir, base):
    """Builds the command line of a fine-tuning, with changes."""

    def build(out_dir: Path, **changes) -> list[str]:
        settings = {"init_from": base, "data_dir": data_dir, "out_dir": out_dir} | changes
        return [str(config_file), *(f"--{key}={value}" for key, value in settings.items())]

    return build


@pytest.fixture
def words(words_for, tmp_path):
    return lambda name="run", **changes: words_for(tmp_path / name, **changes)


@pytest.fixture(scope="module")
def whole(words_for, tmp_path_factory):
    """A run of all steps, and what it printed."""
    out_dir = tmp_path_factory.mktemp("whole")
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        train.main(words_for(out_dir))
    return out_dir, shown.getvalue()


def plain_losses(base, data_dir, steps: int) -> list[float]:
    """Fine-tuning as a textbook would write it: one example at a time, one mean a step."""
    gpt = load_model(base / "best.pt")[0].train()
    data = DataSet(data_dir / "sums")
    order = TrainingData(rows := data.rows("train", 16), 4, seed=1).order
    matrices = [w for w in gpt.parameters() if w.dim() == 2]
    scales = [w for w in gpt.parameters() if w.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": scales, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=False, foreach=False)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = train.learning_rate(step, train.TrainConfig(**RATES))
        x, y, segments, _ = map(torch.from_numpy, rows.read(order.rows(12 * step, 12)))
        total, count = torch.zeros(()), 0
        for row, segment in {(b, int(s)) for b in range(12) for s in segments[b] if s > 0}:
            own = segments[row] == segment
            logits, targets = gpt(x[row, own][None])[0], y[row, own]
            total = total + torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
            count += int((targets != IGNORED).sum())
        loss = total / count
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_fine_tuning_is_the_plain_loop_over_responses(whole, base, data_dir):
    out_dir, shown = whole
    lines = metrics_of(out_dir)
    expected = plain_losses(base, data_dir, 10)
    assert [line["train_loss"] for line in lines[:10]] == pytest.approx(expected, rel=1e-5)
    assert lines[-1]["val_loss"] < lines[4]["val_loss"]
    record = read_checkpoint(out_dir / "best.pt")[1]
    was = read_checkpoint(base / "best.pt")[1]
    for name in (*BASE, "input_layer", "code_seed", "vocab_size"):
        assert record["config"][name] == was["config"][name], name
    assert record["config"]["input_layer"] == "affine"
    assert record["base"]["out_dir"] == str(base)
    assert record["base"]["step"] == was["step"]
    assert record["tokenizer_sha256"] == was["tokenizer_sha256"]
    assert f"fine-tuning {base} as of step 8" in shown
    assert "conversations (" in shown
    assert "<|assistant|>" in shown


def test_validation_counts_responses_only(whole, data_dir):
    gpt = load_model(whole[0] / "last.pt")[0]
    rows = DataSet(data_dir / "sums").rows("val", 16)
    x, y, segments, _ = map(torch.from_numpy, rows.read(np.arange(rows.count)))
    nats, count, text_bytes = 0.0, 0, 0
    divided: dict[bool, list[float]] = {False: [], True: []}  # by whether the pair came before
    for row, segment in {(b, int(s)) for b in range(len(x)) for s in segments[b] if s > 0}:
        own = segments[row] == segment
        logits = gpt(x[row, own][None])[0]
        nats += torch.nn.functional.cross_entropy(logits, y[row, own], reduction="sum").item()
        count += int((y[row, own] != IGNORED).sum())
        text_bytes += sum(int((y[row, own] == ord(letter)).sum()) for letter in "cd")
        losses = torch.nn.functional.cross_entropy(logits, y[row, own], reduction="none").tolist()
        pairs = list(itertools.pairwise([*x[row, own].tolist(), int(y[row, own][-1])]))
        for i, target in enumerate(y[row, own].tolist()):
            if target != IGNORED:
                divided[pairs[i] in pairs[:i]].append(losses[i])
    last = metrics_of(whole[0])[-1]
    assert last["val_new"] == pytest.approx(np.mean(divided[False]), rel=1e-5)
    assert last["val_again"] == pytest.approx(np.mean(divided[True]), rel=1e-5)
    assert last["val_loss"] == pytest.approx(nats / count, rel=1e-5)
    assert last["val_bits_per_byte"] == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-5)


@pytest.mark.slow
def test_two_processes_fine_tune_like_one(words, tmp_path):
    process = Program(tmp_path / "log", words("two", max_steps=10), processes=2)
    train.main(words("one", max_steps=10))
    codes, output = process.finish()
    assert codes == [0, 0], output
    one, two = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two")
    assert len(one) == 10
    for a, b in zip(one, two, strict=True):
        for key in a:
            np.testing.assert_allclose(b[key], a[key], rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("again", ["resume", "resume,{base}"])
def test_a_fine_tuning_cut_short_goes_on_to_the_same_weights(words, whole, base, tmp_path, again):
    interrupt = train.Trainer.keep

    def keep(trainer):
        interrupt(trainer)
        if trainer.step == 10:
            raise train.Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Trainer, "keep", keep)
        train.main(words("cut", init_from=f"resume,{base}"))
    assert read_checkpoint(tmp_path / "cut" / "last.pt")[1]["step"] == 10
    train.main(words("cut", init_from=again.format(base=base)))
    assert_same_run(tmp_path / "cut", whole[0])
    ours, expected = (
        read_checkpoint(out_dir / "last.pt")[1]["base"] for out_dir in (tmp_path / "cut", whole[0])
    )
    assert ours == expected


def test_what_contradicts_the_checkpoint_is_named(words, base, data_dir, tmp_path):
    with pytest.raises(UserError) as caught:
        train.main(words(input_layer="fixed", n_layer=3, n_embd=16, code_seed=7))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert f"input_layer='fixed', but {base / 'best.pt'} has 'affine'" in str(caught.value)
    assert "n_layer=3" in str(caught.value)
    other = tmp_path / "other"
    sums = DataSet(data_dir / "sums")
    write_data_set(other / "sums", sums.train.shards, sums.val.shards, vocab_size=300, chat=True)
    with pytest.raises(UserError, match="has another tokenizer than") as caught:
        train.main(words(data_dir=other))
    tokenizer = data_dir / "tiny" / "tokenizer.json"
    assert f" with --tokenizer={tokenizer}, and" in str(caught.value)
    assert tokenizer.is_file()
    with pytest.raises(UserError, match=r"300 ids, expected 256: pass --dataset=stdlib-256"):
        train.main(words(data_dir=tmp_path / "new", dataset="stdlib-300"))
    with pytest.raises(UserError, match=r"prepare_data.py --chat --dataset=NAME --tokenizer=FILE`"):
        prepare_missing(str(tmp_path / "new"), "docstrings", 300)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "new").exists()


def test_starts_that_make_no_sense_are_refused(words, base, data_dir, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"init_from='nowhere': expected scratch, resume or"):
        train.main(words(init_from="nowhere"))
    with pytest.raises(UserError, match="no checkpoint to resume yet: say what to fine-tune"):
        train.main(words(init_from="resume"))
    train.main(words(max_steps=5))
    with pytest.raises(UserError, match=r"holds a run already.*--init_from=resume"):
        train.main(words(max_steps=5))
    shutil.copytree(base, tmp_path / "copy")
    with pytest.raises(UserError, match=f"it started from {base}, not .*--init_from=resume goes"):
        train.main(words(max_steps=5, init_from=f"resume,{tmp_path / 'copy'}"))
    for same in (os.path.relpath(base), f"~/{base.name}"):
        monkeypatch.setenv("HOME", str(base.parent))
        train.main(words(max_steps=5, init_from=f"resume,{same}"))
    with pytest.raises(UserError, match=r"seed=2, but .*last\.pt has 1: resuming cannot change it"):
        train.main(words(max_steps=5, init_from="resume", seed=2))


def test_a_chat_goes_on_until_the_input_ends(words, tmp_path, capsys, monkeypatch):
    """Replies against greedy decoding by hand, the second with the first turn in view."""
    train.main(words(max_steps=60, learning_rate=1e-2))
    gpt, _, tokenizer = load_model(tmp_path / "run" / "last.pt")
    special, context, expected = tokenizer.special, [], []
    for line in ("ab", "b"):
        context += [special["<|user|>"], *line.encode(), special["<|endofturn|>"]]
        context += [special["<|assistant|>"]]
        said = []
        for token in gpt.generate(torch.tensor([context]), 40, temperature=0):
            if token.item() == special["<|endofturn|>"]:
                break
            said.append(token.item())
        context += [*said, special["<|endofturn|>"]]
        expected.append(f"assistant: {tokenizer.decode(said)}\n")
    assert expected[0] == "assistant: d\n"
    lines = iter(["ab", "\ufeff  ", "b"])  # as a file begins that has a byte order mark

    def read(prompt: str) -> str:
        assert prompt == "user: "
        if (line := next(lines, None)) is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", read)
    capsys.readouterr()
    argv = ["--chat", "--temperature=0", "--max_new_tokens=40", "--checkpoint=last"]
    sample.main([f"--out_dir={tmp_path / 'run'}", *argv])
    assert capsys.readouterr().out == "".join(expected) + "\n"


def test_a_chat_needs_a_run_of_conversations(base):
    with pytest.raises(UserError, match=r"not fine-tuned on conversations: docs.finetuning\.md"):
        sample.main([f"--out_dir={base}", "--chat"])
