"""Scores against direct computation, chance and lm-evaluation-harness; tables and files."""

import json
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import train
from inputcodes.checkpoint import load_model, read_checkpoint, write_checkpoint
from inputcodes.configurator import UserError
from inputcodes.distributed import Processes
from inputcodes.files import file_sha256, read_json
from inputcodes.tasks import (
    TASKS,
    Item,
    Scores,
    TaskResult,
    make_prompts,
    read_items,
    score,
    summarize,
)
from inputcodes.tokenizer import Tokenizer
from model import GPT, GPTConfig
from tests.helpers import SMALL, Program, write_data_set

CPU = Processes(torch.device("cpu"))
TOKENIZER = Tokenizer(256)
CONTEXT = 96
CHOICES = ("arc_challenge", "hellaswag", "boolq")


def words(rng: np.random.Generator, least: int, most: int) -> str:
    count = rng.integers(least, most)
    return " ".join("".join(rng.choice(list("abdeinorst"), size=4)) for _ in range(count))


def random_rows(name: str, count: int, seed: int) -> list[dict]:
    """Rows of task `name` whose answers are drawn blindly; some are longer than the context."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        options = [words(rng, 1, 5) for _ in range(4)]
        gold = int(rng.integers(4))
        text, question = words(rng, 2, 22), words(rng, 1, 5)
        rows.append(
            {
                "arc_challenge": {
                    "id": str(number),
                    "question": text + "?",
                    "choices": {"text": options, "label": ["1", "2", "3", "4"]},
                    "answerKey": str(gold + 1),
                },
                "hellaswag": {
                    "activity_label": "Knots",
                    "ctx": f"{text}. {question}",
                    "ctx_a": f"{text} [title] knots [step]",
                    "ctx_b": question * int(rng.integers(2)),
                    "endings": [f"{option} [substeps]  and ." for option in options],
                    "label": str(gold),
                },
                "boolq": {"question": question, "passage": text, "answer": bool(gold % 2)},
                "squad": {
                    "title": "Knots",
                    "context": text,
                    "question": question,
                    "answers": {"text": options[:2], "answer_start": [0, 0]},
                },
            }[name]
        )
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with 24 rows of every task."""
    folder = tmp_path_factory.mktemp("rows")
    for seed, name in enumerate(TASKS):
        lines = [json.dumps(row) + "\n" for row in random_rows(name, 24, seed)]
        (folder / f"{name}_validation.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def out_dir(text_data, tmp_path_factory):
    """A run that has learned a little, with a context that some prompts exceed."""
    out = tmp_path_factory.mktemp("out") / "run"
    settings = SMALL | {"data_dir": text_data, "out_dir": out, "block_size": CONTEXT}
    settings |= {"n_embd": 32, "learning_rate": 1e-2, "max_steps": 30, "eval_interval": 30}
    train.main([f"--{key}={value}" for key, value in settings.items()])
    return out


@pytest.fixture(scope="module")
def gpt(out_dir):
    return load_model(out_dir / "best.pt")[0]


@torch.no_grad()
def direct_nats(gpt: GPT, prompt: str, option: str) -> float:
    """-log p(option | prompt) of one sequence, of whose prompt the end that fits is read.

    Spaces that end the prompt belong to the option, as in the harness.
    """
    text = prompt.rstrip()
    tokens = TOKENIZER.encode(prompt + option)
    answer = len(tokens) - len(TOKENIZER.encode(text))
    tokens = tokens[-(gpt.config.block_size + 1) :]
    log_p = gpt(torch.tensor([tokens[:-1]]))[0].double().log_softmax(-1)
    targets = torch.tensor(tokens[-answer:])
    return -log_p[-answer:].gather(1, targets[:, None]).sum().item()


@pytest.mark.parametrize("name", TASKS)
def test_batched_nats_are_those_of_a_direct_computation(gpt, data, name):
    items = read_items(name, str(data), 0)
    scores = score(gpt, TOKENIZER, items, 5, CPU)
    expected = [direct_nats(gpt, i.prompt, " " + option) for i in items for option in i.options]
    assert scores.nats.shape == (len(expected),)
    assert np.abs(scores.nats - expected).max() < 1e-4
    longest = [len(item.prompt) + 1 + max(map(len, item.options)) for item in items]
    assert 0 < scores.truncated == sum(length > CONTEXT + 1 for length in longest)
    assert min(scores.tokens) > 1


def test_a_prompt_is_read_once_for_all_its_options(gpt, data):
    """Every position computed is a token of a prompt, once an item, or of an option."""
    items = [item for item in read_items("arc_challenge", str(data), 0) if len(item.prompt) < 60]
    assert len(items) > 5
    seen = []
    handle = gpt.blocks[0].register_forward_hook(lambda *args: seen.append(args[2].shape[:2]))
    score(gpt, TOKENIZER, items, 1, CPU)
    handle.remove()
    wanted = [len(item.prompt) + sum(map(len, item.options)) for item in items]
    assert sorted(batch * length for batch, length in seen) == sorted(wanted)


def test_an_option_longer_than_the_context_keeps_its_end(gpt):
    item = Item("Question:", ("a" * 150, "b"), 0)
    prompts, tokens, truncated = make_prompts(TOKENIZER, [item], CONTEXT)
    assert truncated == 1
    assert tokens.tolist() == [CONTEXT, 2]
    assert sorted(len(prompt.tokens) for prompt in prompts) == [1, len("Question:")]
    assert np.isfinite(score(gpt, TOKENIZER, [item], 4, CPU).nats).all()


def test_the_formats_are_the_harnesses():
    row = {"question": "Why?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}}
    assert TASKS["arc_challenge"].item({**row, "answerKey": "B"}) == Item(
        "Question: Why?\nAnswer:", ("a", "b"), 1
    )
    assert TASKS["hellaswag"].item(
        {
            "activity_label": "Tie",
            "ctx": "Take it. then",
            "endings": ["[step] pull", "b"],
            "label": "1",
        }
    ) == Item("Tie: Take it. then", (" pull", "b"), 1)
    row = {"activity_label": "Tie", "ctx": "", "ctx_a": "Take [step] it.", "ctx_b": "then",
           "endings": ["a [title] b", "c"], "label": 0}  # fmt: skip
    assert TASKS["hellaswag"].item(row) == Item("Tie: Take it. Then", ("a. b", "c"), 0)
    for gold in ({"label": 1}, {"answer": True}):
        assert TASKS["boolq"].item({"passage": "P.", "question": "is it", **gold}) == Item(
            "P.\nQuestion: is it?\nAnswer:", ("no", "yes"), 1
        )
    row = {"title": "T", "context": "C", "question": "Q", "answers": {"text": ["first", "other"]}}
    assert TASKS["squad"].item(row) == Item(
        "Title: T\n\nBackground: C\n\nQuestion: Q\n\nAnswer:", ("first",), 0
    )


def test_a_model_that_knows_nothing_scores_at_chance():
    """Random weights on 400 items with blindly drawn answers: within 3.5 standard errors."""
    gpt = GPT(GPTConfig(vocab_size=256, block_size=256, n_layer=1, n_head=1, n_embd=16), seed=0)
    for number, name in enumerate(CHOICES):
        items = [TASKS[name].item(row) for row in random_rows(name, 400, seed=number)]
        result = summarize(TASKS[name], score(gpt, TOKENIZER, items, 64, CPU))
        assert result.chance == pytest.approx(0.5 if name == "boolq" else 0.25)
        spread = math.sqrt(result.chance * (1 - result.chance) / 400)
        for measure in ("acc", "acc_norm"):
            value, error = result.measures[measure]
            assert abs(value - result.chance) < 3.5 * spread, (name, measure)
            assert error == pytest.approx(spread, rel=0.2)


def test_a_model_that_guesses_has_the_perplexity_of_the_vocabulary():
    gpt = GPT(GPTConfig(vocab_size=256, block_size=256, n_layer=1, n_head=1, n_embd=16), seed=0)
    torch.nn.init.zeros_(gpt.head.weight)
    items = [TASKS["squad"].item(row) for row in random_rows("squad", 40, seed=0)]
    result = summarize(TASKS["squad"], score(gpt, TOKENIZER, items, 8, CPU))
    assert result.measures["perplexity"] == pytest.approx((256, 0), rel=1e-5, abs=1e-3)
    assert result.tokens == sum(len(" " + item.options[0]) for item in items)


def test_the_error_of_a_perplexity_is_that_of_resampling_the_items(gpt, data):
    scores = score(gpt, TOKENIZER, read_items("squad", str(data), 0), 8, CPU)
    rng = np.random.default_rng(0)
    drawn = rng.integers(24, size=(4000, 24))
    resampled = np.exp(scores.nats[drawn].sum(1) / scores.tokens[drawn].sum(1))
    error = summarize(TASKS["squad"], scores).measures["perplexity"].stderr
    assert error == pytest.approx(resampled.std(), rel=0.15)


def test_the_likeliest_option_wins_plain_or_by_the_byte():
    """By hand: 6 > 2 but 6/4 < 2/1 by the byte, 3 < 4 but 3/1 > 4/4, 3 < 8 and 3/2 < 8/4."""
    items = [Item("", pair, 0) for pair in (("aaaa", "b"), ("d", "cccc"), ("é", "cccc"))]
    nats = np.array([6.0, 2.0, 3.0, 4.0, 3.0, 8.0])
    both = summarize(TASKS["boolq"], Scores(items, nats, np.ones(6, dtype=int), 0))
    # The variance of 0, 1 and 1 is 1/3, that of their mean 1/9.
    assert both.measures["acc"] == both.measures["acc_norm"] == pytest.approx((2 / 3, 1 / 3))
    first = summarize(TASKS["boolq"], Scores(items[:1], nats[:2], np.ones(2, dtype=int), 0))
    assert first.measures == {"acc": (0, None), "acc_norm": (1, None)}


def test_the_first_of_equal_options_wins_whatever_their_nats_are_rounded_to():
    items = [Item("", ("b", "a", "a"), 1), Item("", ("a", "b"), 0)]
    scores = Scores(items, np.array([9, 2.000002, 2, 1, 2]), np.ones(5, dtype=int), 0)
    result = summarize(TASKS["boolq"], scores)
    assert result.measures["acc"].value == 1
    assert result.chance == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_one_table_sets_checkpoints_side_by_side(out_dir, data, text_data, capsys):
    argv = [f"--out_dir={out_dir},{out_dir}", f"--data_dir={text_data}", f"--data={data}",
            "--device=cpu", f"--tasks={','.join(TASKS)}", "--limit=10"]  # fmt: skip
    evaluate.main(argv)
    shown, said = capsys.readouterr()
    assert not said  # no bar where there is no terminal
    result = json.loads((out_dir / "evaluation.json").read_text())
    head, _, first, second = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines()[:4]
    ]
    assert head[2:] == ["val data", "val loss", "new", "again", "bigram", "val PPL",
                        "bits per byte", "ARC-C", "HellaSwag", "BoolQ", "SQuAD PPL"]  # fmt: skip
    assert len({len(line) for line in shown.splitlines()[:4]}) == 1  # aligned
    assert first == second
    record = load_model(out_dir / "best.pt")[1]
    assert first[:4] == [str(out_dir), "30", "tiny", f"{record['best_val_loss']:.4f}"]
    last = json.loads((out_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert first[4:7] == [f"{last[f'val_{name}']:.4f}" for name in ("new", "again", "bigram")]
    assert result["val_documents"] == last["val_documents"]
    assert f"{out_dir} is worse than a bigram of counts" in shown
    scores = result["tasks"]
    assert first[9:12] == [f"{100 * scores[name]['acc']:.2f}" for name in CHOICES]
    assert first[12] == f"{scores['squad']['perplexity']:.2f}"
    assert all(score["items"] == score["limit"] == 10 for score in scores.values())
    assert f"± {100 * scores['boolq']['acc_stderr']:.2f}" in shown
    evaluate.main([*argv, "--validation=False", "--tasks=boolq", "--dtype=bfloat16"])
    assert "val loss" not in capsys.readouterr().out
    again = json.loads((out_dir / "evaluation.json").read_text())
    boolq, before = again["tasks"].pop("boolq"), result["tasks"].pop("boolq")
    assert again == result  # the loss measured before stays
    assert (before["dtype"], boolq["dtype"], result["dtype"]) == ("float32", "bfloat16", "float32")
    assert result["checkpoint_sha256"] == file_sha256(out_dir / "best.pt")


def test_tasks_of_earlier_calls_stay_while_the_checkpoint_is_the_same(
    out_dir, data, text_data, tmp_path
):
    run = tmp_path / "run"
    copy_run(out_dir, run, "best.pt", lambda weights, record: None)
    argv = [f"--out_dir={run}", f"--data_dir={text_data}", "--device=cpu"]

    def limits(*words: str) -> dict[str, int]:
        evaluate.main([*argv, *words])
        tasks = json.loads((run / "evaluation.json").read_text())["tasks"]
        return {name: scores["limit"] for name, scores in tasks.items()}

    assert limits(f"--data={data}", "--tasks=boolq,squad", "--limit=2") == {"boolq": 2, "squad": 2}
    assert limits("--eval_tokens=200") == {"boolq": 2, "squad": 2}
    assert limits(f"--data={data}", "--tasks=boolq", "--limit=1") == {"boolq": 1, "squad": 2}
    tensors, record = read_checkpoint(run / "best.pt")
    write_checkpoint(run / "best.pt", tensors, record | {"elapsed_s": 0.0})  # trained again
    assert limits(f"--data={data}", "--tasks=boolq", "--limit=3") == {"boolq": 3}
    (run / "evaluation.json").write_text("{")
    assert limits(f"--data={data}", "--tasks=boolq", "--limit=4") == {"boolq": 4}


def test_two_evaluations_at_once_lose_nothing(out_dir, tmp_path, monkeypatch):
    copy_run(out_dir, tmp_path / "run", "best.pt", lambda weights, record: None)
    config = evaluate.EvaluateConfig(out_dir=str(tmp_path / "run"), validation=False)
    (target,) = evaluate.open_targets(config, True)

    def write(name: str) -> None:
        one = TaskResult(1, 1, 0, None, {})
        evaluate.write_evaluation(evaluate.Result(target, None, {name: one}), config)

    def read_slowly(file: Path):
        there = read_json(file)
        if not other.ident:
            other.start()
            other.join(timeout=0.2)  # the time to read and write, if it could
        return there

    write("boolq")
    other = threading.Thread(target=write, args=["squad"])
    monkeypatch.setattr(evaluate, "read_json", read_slowly)
    write("hellaswag")
    other.join()
    tasks = read_json(tmp_path / "run" / "evaluation.json")["tasks"]
    assert tasks.keys() == {"boolq", "squad", "hellaswag"}


@pytest.mark.slow
def test_two_processes_share_the_work(out_dir, data, tmp_path):
    argv = [f"--out_dir={out_dir}", f"--data={data}", "--device=cpu", "--validation=False"]
    argv += [f"--tasks={','.join(TASKS)}", "--batch_size=3"]
    (out_dir / "evaluation.json").unlink(missing_ok=True)  # an earlier loss would be kept
    evaluate.main(argv)
    one = (out_dir / "evaluation.json").read_text()
    (out_dir / "evaluation.json").unlink()
    codes, shown = Program(tmp_path / "log", argv, "evaluate.py", processes=2).finish()
    assert codes == [0, 0], shown
    assert shown.count(" boolq |") == 1  # only one process prints
    assert (out_dir / "evaluation.json").read_text() == one


def test_no_process_measures_before_the_first_has_verified(monkeypatch):
    """On GPUs a sum fails that waits for longer than 10 minutes."""
    events = []
    monkeypatch.setattr(evaluate, "end_with_torchrun", lambda _: events.append("watched"))
    monkeypatch.setattr(evaluate, "open_targets", lambda *_: events.append("opened") or [None])
    monkeypatch.setattr(evaluate.Processes, "wait", lambda _: events.append("waited"))
    monkeypatch.setattr(evaluate, "evaluate_run", lambda *_: events.append("measured") or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate.main(["--device=cpu"])
    assert events == ["watched", "opened", "waited", "measured"]


def test_items_come_from_the_hub_by_name(monkeypatch):
    asked = []

    def load_dataset(path, config, split):
        asked.append((path, config, split))
        return random_rows("boolq", 5, seed=0)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert len(read_items("boolq", "", 3)) == 3
    assert asked == [("aps/super_glue", "boolq", "validation")]
    monkeypatch.setattr("datasets.load_dataset", None)
    with pytest.raises(UserError, match=r"cannot load allenai/ai2_arc for arc_challenge.*--data"):
        read_items("arc_challenge", "", 0)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", r"boolq\.jsonl, line 2: not JSON in UTF-8, .*: Expecting"),
        ('{"question": "a"}', r"line 2 is not a row of boolq: answer is missing"),
        ('{"question": "a", "passage": "b", "label": 2}', "answer 2 of 2 options"),
        ('{"question": 1, "passage": "b", "label": 1}', "question is 1, expected text"),
        ('{"question": "a", "passage": "b", "answer": null}', "None, expected true or false"),
        ('{"question": "a", "passage": "b", "label": true}', "True, expected a whole number"),
        ('{"question": "\\ud800", "passage": "b", "label": 1}', "surrogates not allowed"),
        ("5", "line 2 is not a row of boolq: it is 5, expected an object"),
        ("[" * 100_000, "line 2: not JSON"),
    ],
)
def test_bad_rows_are_named(tmp_path, line, words):
    good = json.dumps(random_rows("boolq", 1, seed=0)[0])
    (tmp_path / "boolq.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(UserError, match=words):
        read_items("boolq", str(tmp_path), 0)
    assert len(read_items("boolq", str(tmp_path), 1)) == 1


def test_empty_lines_between_rows_are_skipped(tmp_path):
    rows = random_rows("boolq", 2, seed=0)
    (tmp_path / "boolq.jsonl").write_text("\n \n".join(map(json.dumps, rows)) + "\n\n")
    assert read_items("boolq", str(tmp_path), 0) == [TASKS["boolq"].item(row) for row in rows]


DAMAGE = {
    "arc_challenge": [
        ("question", None),
        ("question", " "),
        ("choices", []),
        ("choices", {"text": [], "label": []}),
        ("choices.text", ["a", "b", 3, "d"]),
        ("choices.text", ["a", "b", "c", " "]),
        ("choices.text", ["a"]),
        ("choices.label", ["A", "A", "C", "D"]),
        ("answerKey", "E"),
        ("answerKey", 1),
    ],
    "hellaswag": [
        ("activity_label", 3),
        ("ctx_a", ""),
        ("ctx_b", None),
        ("endings", "abcd"),
        ("endings", [["a"], "b"]),
        ("endings", ["a", "[header] [title]"]),
        ("label", ""),
        ("label", "4"),
        ("label", -1),
        ("label", True),
    ],
    "boolq": [("passage", 1.5), ("answer", None), ("answer", "true"), ("answer", 1)],
    "squad": [("title", 1), ("answers", "a"), ("answers.text", []), ("answers.text", [None])],
}


@pytest.mark.parametrize("name", TASKS)
def test_every_field_of_a_row_is_checked(tmp_path, name):
    row = random_rows(name, 1, seed=0)[0]
    file = tmp_path / f"{name}.jsonl"
    for path, value in DAMAGE[name]:
        bad = json.loads(json.dumps(row))
        *parents, last = path.split(".")
        (bad[parents[0]] if parents else bad)[last] = value
        file.write_text(json.dumps(row) + "\n" + json.dumps(bad))
        with pytest.raises(UserError, match=rf"{name}\.jsonl, line 2 is not a row of {name}: "):
            read_items(name, str(tmp_path), 0)


def test_damaged_files_are_named(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    rows = random_rows("boolq", 40, seed=0)
    file = tmp_path / "boolq.jsonl"
    file.write_bytes(json.dumps(rows[0]).encode() + b"\n\xff\n")
    with pytest.raises(UserError, match=r"boolq\.jsonl, line 2: not JSON in UTF-8.*utf-8"):
        read_items("boolq", str(tmp_path), 0)
    file.unlink()
    file = tmp_path / "boolq.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    assert read_items("boolq", str(tmp_path), 0) == [TASKS["boolq"].item(row) for row in rows]
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    errors = []
    for place in rng.integers(len(whole), size=60):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        file.write_bytes(damaged)
        try:
            read_items("boolq", str(tmp_path), 0)
        except UserError as error:
            errors.append(str(error))
    assert len(errors) > 20
    assert all("boolq.parquet" in error for error in errors)
    unpacked = {"compression": "none", "write_page_checksum": True}
    parquet.write_table(pyarrow.Table.from_pylist(rows), file, **unpacked)
    passage = rows[0]["passage"].encode()
    file.write_bytes(file.read_bytes().replace(passage, passage.swapcase()))
    with pytest.raises(UserError, match=r"cannot read .*boolq\.parquet: .*checksum"):
        read_items("boolq", str(tmp_path), 0)


def test_what_is_missing_is_said_before_the_first_result(
    out_dir, data, text_data, tmp_path, monkeypatch
):
    argv = [f"--data_dir={text_data}", "--device=cpu"]
    (out_dir / "evaluation.json").unlink(missing_ok=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=rf"{tmp_path}.nothing.best\.pt"):
        evaluate.main([f"--out_dir={out_dir},~/nothing", *argv])
    longer = tmp_path / "longer"
    copy_run(out_dir, longer, "best.pt", lambda _, record: record["config"].update(block_size=200))
    with pytest.raises(UserError, match=r"eval_tokens=150 do not fill one window of .*=200"):
        evaluate.main([f"--out_dir={out_dir},{longer}", *argv, "--eval_tokens=150"])
    assert not (out_dir / "evaluation.json").exists()


def copy_run(out_dir: Path, to: Path, name: str, change) -> None:
    """The run's best checkpoint as `to` / `name`, with its weights and record changed."""
    tensors, record = read_checkpoint(out_dir / "best.pt")
    change(tensors["model"], record)
    to.mkdir()
    write_checkpoint(to / name, tensors, record)


def test_results_are_shown_though_a_later_run_fails(out_dir, text_data, tmp_path, capsys):
    """Weights that are too large are found only when they are used; others that are not finite
    before the first result."""
    broken = tmp_path / "broken"
    copy_run(out_dir, broken, "best.pt", lambda weights, _: weights["norm.weight"].fill_(3e38))
    bad = tmp_path / "bad"
    copy_run(out_dir, bad, "best.pt", lambda weights, _: weights["norm.weight"].fill_(math.nan))
    with pytest.raises(UserError, match=r"best.pt: norm\.weight has numbers that are not finite"):
        evaluate.main([f"--out_dir={out_dir},{bad}", f"--data_dir={text_data}", "--device=cpu"])
    assert "|" not in capsys.readouterr().out
    argv = [f"--out_dir={out_dir},{broken}", f"--data_dir={text_data}", "--device=cpu"]
    with pytest.raises(UserError, match=r"the validation loss on .* is nan"):
        evaluate.main(argv)
    shown = capsys.readouterr().out
    assert f"| {out_dir} " in shown
    assert "broken" not in shown
    assert not (broken / "evaluation.json").exists()


def test_a_result_that_cannot_be_written_ends_no_other_run(out_dir, text_data, tmp_path, capsys):
    full = tmp_path / "full"
    copy_run(out_dir, full, "best.pt", lambda weights, record: None)
    (full / "evaluation.json").mkdir()  # as a folder that is read only
    (out_dir / "evaluation.json").unlink(missing_ok=True)
    argv = [f"--out_dir={full},{out_dir}", f"--data_dir={text_data}", "--device=cpu"]
    with pytest.raises(UserError, match=r"cannot write .*full.evaluation\.json"):
        evaluate.main(argv)
    shown = capsys.readouterr().out
    assert f"| {full} " in shown
    assert f"| {out_dir} " in shown
    assert (out_dir / "evaluation.json").is_file()


def test_scores_that_are_not_finite_are_refused(out_dir, data, tmp_path):
    broken = tmp_path / "broken"
    copy_run(out_dir, broken, "best.pt", lambda weights, _: weights["norm.weight"].fill_(3e38))
    argv = [f"--out_dir={broken}", "--validation=False", "--tasks=boolq", f"--data={data}"]
    with pytest.raises(UserError, match="log-likelihoods are not finite"):
        evaluate.main([*argv, "--device=cpu"])


def test_other_data_of_the_same_name_and_a_lone_last_checkpoint_are_said(
    out_dir, text_data, tmp_path, capsys
):
    other = tmp_path / "other"
    copy_run(out_dir, other, "last.pt", lambda _, record: record.update(data_sha256="0" * 64))
    evaluate.main([f"--out_dir={other}", f"--data_dir={text_data}", "--device=cpu"])
    shown, said = capsys.readouterr()
    assert f"tiny is not the data that {other} was trained on: it has the same name" in shown
    assert said == f"note: there is no {other}/best.pt: taking {other}/last.pt\n"
    result = json.loads((other / "evaluation.json").read_text())
    assert result["checkpoint"] == "last"
    assert "val_bigram" not in result


def test_bad_requests_are_refused(out_dir, tmp_path):
    for argv, words in (
        ("--tasks=arc,boolq", "tasks: unknown 'arc', expected some of arc_challenge"),
        ("--validation=False", "nothing to do"),
        ("--limit=3", "limit=3 is for tasks: give --tasks="),
        ("--data=rows", "data='rows' is for tasks: give --tasks="),
        ("--checkpoint=x", "checkpoint='x'"),
        ("--limit=-1", "limit=-1: expected at least 0"),
        ("--dataset=nothing", r"no data set data.nothing to validate .*--validation=False"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate.main([f"--out_dir={out_dir}", argv])
    for argv in ("--dataset=tiny", "--eval_tokens=64"):
        with pytest.raises(UserError, match="is for the validation loss: leave out --valid"):
            evaluate.main(["--tasks=boolq", "--validation=False", argv])
    with pytest.raises(UserError, match=r"has 0 files boolq\*\.jsonl"):
        read_items("boolq", str(tmp_path), 0)
    with pytest.raises(UserError, match=r"\.py is no folder: --data is the one that boolq's file"):
        read_items("boolq", __file__, 0)
    write_data_set(tmp_path / "other", *[[np.arange(99, dtype=np.uint16)]] * 2, vocab_size=300)
    with pytest.raises(
        UserError, match=r"another tokenizer than .*best\.pt: pass a --dataset that"
    ):
        evaluate.main([f"--out_dir={out_dir}", f"--data_dir={tmp_path}", "--dataset=other"])
