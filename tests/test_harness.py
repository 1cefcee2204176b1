"""lm-evaluation-harness itself on rows of its tasks: its scores and those of evaluate.py agree."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from inputcodes import harness
from inputcodes.checkpoint import write_checkpoint
from inputcodes.configurator import UserError
from inputcodes.distributed import Processes
from inputcodes.tasks import TASKS, read_items, score, split_pair, summarize
from inputcodes.tokenizer import Tokenizer
from model import GPT, GPTConfig
from tests.helpers import record_of

CPU = Processes(torch.device("cpu"))
CONTEXT = 128
NGRAMS = ["r: ", "r:", ": ", ": a", "no", "yes", "ab", "the", "he ", " a", "\nA"]
FILES = {
    "arc_challenge": "tasks/arc/arc_challenge.yaml",
    "hellaswag": "tasks/hellaswag/hellaswag.yaml",
    "boolq": "tasks/super_glue/boolq/default.yaml",
}


def rows_of(name: str, count: int = 24) -> list[dict]:
    """Rows of a task with random words, some longer than the context."""
    rng = np.random.default_rng(len(name))

    def words(most: int) -> str:
        letters = rng.choice(list("abehotn"), size=(rng.integers(1, most + 1), 4))
        return " ".join(map("".join, letters))

    rows = []
    for _ in range(count):
        options, gold = [words(4) for _ in range(4)], int(rng.integers(4))
        text, question = words(24), words(4)
        choices = {"text": options, "label": list("ABCD")}
        hellaswag = {"activity_label": "Knots", "ctx": "", "ctx_a": text, "ctx_b": question}
        rows.append(
            {
                "arc_challenge": {"question": text, "choices": choices, "answerKey": "ABCD"[gold]},
                "hellaswag": {**hellaswag, "endings": options, "label": str(gold)},
                "boolq": {"question": question, "passage": text, "label": gold % 2},
            }[name]
        )
    return rows


@pytest.fixture(scope="module", params=[256, 300], ids=["bytes", "n-grams"])
def run(request, tmp_path_factory) -> Path:
    """The checkpoint of a model whose predictions are far from even."""
    tokenizer = Tokenizer(request.param, NGRAMS if request.param == 300 else ())
    shape = {"block_size": CONTEXT, "n_layer": 2, "n_head": 2, "n_embd": 32}
    config = GPTConfig(vocab_size=request.param, **shape)
    gpt = GPT(config, seed=1)
    with torch.no_grad():
        gpt.head.weight *= 20
    out_dir = tmp_path_factory.mktemp("run")
    settings = {**shape, "vocab_size": request.param, "input_layer": config.input_layer}
    record = record_of(settings, tokenizer)
    write_checkpoint(out_dir / "best.pt", {"model": gpt.state_dict()}, record)
    return out_dir


def load(run: Path) -> tuple[GPT, Tokenizer]:
    model, _, tokenizer = harness.load_model(run / "best.pt")
    return model, tokenizer


def test_the_harness_agrees_with_evaluate(run, tmp_path, capsys):
    lm_eval = pytest.importorskip("lm_eval")
    files = []
    for name, base in FILES.items():
        rows = tmp_path / f"{name}.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in rows_of(name)))
        splits = dict.fromkeys(("train", "validation", "test"), str(rows))
        task = {
            "include": str(Path(lm_eval.__file__).parent / base),
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": splits},
        }
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(json.dumps(task))  # JSON is YAML
    harness.main([f"--out_dir={run}", f"--tasks={','.join(map(str, files))}", "--device=cpu"])
    results = json.loads((run / "harness.json").read_text())["results"]
    model, tokenizer = load(run)
    for name in FILES:
        items = read_items(name, str(tmp_path), 0)
        expected = summarize(TASKS[name], score(model, tokenizer, items, 5, CPU))
        result = results[f"local_{name}"]
        for measure in ("acc", "acc_norm") if name != "boolq" else ("acc",):
            value, error = expected.measures[measure]
            assert result[f"{measure},none"] == pytest.approx(value), name
            assert result[f"{measure}_stderr,none"] == pytest.approx(error), name
    assert "local_boolq" in capsys.readouterr().out


@torch.no_grad()
def direct(model: GPT, prompt: list[int], option: list[int]) -> tuple[float, bool]:
    """Log-likelihood of the option and whether it is greedy, of one sequence."""
    whole = [*prompt, *option][-(model.config.block_size + 1) :]
    log_p = model(torch.tensor([whole[:-1]]))[0].double().log_softmax(-1)[-len(option) :]
    targets = torch.tensor(option)
    chosen = log_p.gather(1, targets[:, None]).sum().item()
    return chosen, bool((log_p.argmax(-1) == targets).all())


def test_the_adapter_scores_pairs_whole_texts_and_greedy_continuations(run):
    api = pytest.importorskip("lm_eval.api.model")
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    model, tokenizer = load(run)
    adapter = type("RunModel", (harness.Adapter, api.TemplateLM), {})(model, tokenizer, 4, "cpu")
    text = rows_of("boolq")[0]["passage"] * 8
    pairs = [(text, " no"), (text, " yes"), ("Answer: ", "a"), ("", "the"), (" ", "ab"), (text, "")]
    requests = [instance("loglikelihood", {}, pair, 0) for pair in pairs]
    end = [tokenizer.end_of_text]
    prompt = tokenizer.encode(text)
    written = adapter.generate_until(
        [instance("generate_until", {}, (text, {"max_gen_toks": 6}), 0)]
    )
    pairs_of = [
        (prompt, tokenizer.encode(" no")),
        (prompt, tokenizer.encode(" yes")),
        (tokenizer.encode("Answer:"), tokenizer.encode(" a")),
        (end, tokenizer.encode("the")),
        (end, tokenizer.encode(" ab")),
    ]
    got = adapter.loglikelihood(requests, disable_tqdm=True)
    for found, pair in zip(got, pairs_of, strict=False):
        assert found == (pytest.approx(direct(model, *pair)[0], abs=1e-4), direct(model, *pair)[1])
    assert got[-1] == (0.0, True)
    # The whole text in windows of CONTEXT targets, each with one token of context.
    rolling = adapter.loglikelihood_rolling([instance("loglikelihood_rolling", {}, (text,), 0)])
    stream = [*end, *prompt]
    assert len(prompt) > CONTEXT
    total, start = 0.0, 1
    while start < len(stream):
        stop = min(start + CONTEXT, len(stream))
        first = start - 1 if stop - start == CONTEXT else max(0, stop - CONTEXT - 1)
        total += direct(model, stream[first:start], stream[start:stop])[0]
        start = stop
    assert rolling == [pytest.approx(total, abs=1e-2)]
    greedy = prompt[-(CONTEXT - 6) :]
    for _ in range(6):
        greedy.append(int(model(torch.tensor([greedy]))[0, -1].argmax()))
    assert written == [tokenizer.decode(greedy[-6:]).split("<|endoftext|>")[0]]
    stop = written[0][2:3]
    settings = {"max_gen_toks": 6, "until": [stop]}
    cut = adapter.generate_until([instance("generate_until", {}, (text, settings), 0)])
    assert cut == [written[0][: written[0].find(stop)]]


@pytest.mark.parametrize(("most", "read"), [({}, 64), ({"max_gen_toks": 28}, 100)])
def test_a_generation_reads_at_least_half_a_context_of_its_prompt(run, monkeypatch, most, read):
    model, tokenizer = load(run)
    seen = []
    monkeypatch.setattr(model, "generate", lambda x, *_, **__: seen.extend(x[0].tolist()) or [])
    text = rows_of("boolq")[0]["passage"] * 8
    harness.Adapter(model, tokenizer, 4, "cpu")._generate(text, most)
    assert seen == tokenizer.encode(text)[-read:]


@pytest.mark.parametrize(
    ("settings", "most", "sampling"),
    [
        ({}, 256, (0.0, 0, 1.0)),
        ({"max_new_tokens": 32, "do_sample": False, "temperature": 0.7}, 32, (0.0, 0, 1.0)),
        ({"do_sample": True, "top_p": 0.95, "max_gen_toks": 9}, 9, (1.0, 0, 0.95)),
        ({"temperature": 0.7, "top_k": 5}, 256, (0.7, 5, 1.0)),  # do_sample follows from it
    ],
)
def test_a_generation_takes_the_settings_of_its_task(run, monkeypatch, settings, most, sampling):
    seen = []
    model, tokenizer = load(run)
    monkeypatch.setattr(
        model, "generate", lambda _, *most, **named: seen.append((most, named)) or []
    )
    harness.Adapter(model, tokenizer, 4, "cpu")._generate("ab", settings)
    named = dict(zip(("temperature", "top_k", "top_p"), sampling, strict=True))
    assert seen == [((most,), named | {"ends": [tokenizer.end_of_text]})]


def test_an_option_whose_start_is_in_a_token_with_the_end_of_the_prompt_keeps_it():
    """What the harness's own pairing loses: "r:" and " a" are tokens, ": a" is one, too."""
    tokenizer = Tokenizer(300, NGRAMS)
    prompt, option = split_pair(tokenizer, "Answer:", " a")
    assert tokenizer.decode(prompt) == "Answer:"
    assert tokenizer.decode(option) == " a"
    whole = tokenizer.encode("Answer: a")
    assert tokenizer.decode(whole[len(prompt) :]) != " a"


def test_a_missing_harness_and_unknown_tasks_are_named(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "lm_eval", None)
        with pytest.raises(UserError, match="pip install lm_eval"):
            harness.main(["--tasks=boolq"])
    pytest.importorskip("lm_eval")
    with pytest.raises(UserError, match="tasks='no_such_task': expected names"):
        harness.main(["--tasks=no_such_task"])


@pytest.mark.parametrize(
    ("rows", "changes", "words"),
    [
        (None, {}, r"rows\.jsonl"),
        ('{"a": \n', {}, "DatasetGenerationError"),
        ('{"a": 1}\n', {"test_split": "none"}, "KeyError: 'none'"),
        ('{"a": 1}\n', {"doc_to_text": "{{b.c}}"}, "'b' is undefined"),
    ],
)
def test_a_task_that_cannot_be_evaluated_is_one_line(run, tmp_path, rows, changes, words):
    pytest.importorskip("lm_eval")
    if rows:
        (tmp_path / "rows.jsonl").write_text(rows)
    task = {"task": "local", "dataset_path": "json", "test_split": "test", "doc_to_target": "x"}
    task |= {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}}
    task |= {"output_type": "loglikelihood", "metric_list": [{"metric": "acc"}]} | changes
    (tmp_path / "local.yaml").write_text(json.dumps(task))
    with pytest.raises(UserError, match=rf"^cannot evaluate .*local\.yaml \(check .*{words}"):
        harness.main([f"--out_dir={run}", f"--tasks={tmp_path}/local.yaml", "--device=cpu"])
