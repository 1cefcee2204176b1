"""The evaluation tasks: their rows, how an item is put to a model, and how it is scored.

Prompts, options and the order of preference among sources are those of EleutherAI's
lm-evaluation-harness 0.4 for arc_challenge, hellaswag, boolq and (for SQuAD) squadv2, without
examples in the prompt: a model continues the prompt by a space and an option.

An item is one sequence: the prompt, then its options, each of which attends to the prompt and to
itself and counts its positions from the end of the prompt (`segment_layout`). So the prompt is
computed once, and the loss of an option is what it would be alone. A prompt that leaves too little
room loses its left end, for each option as much as that needs, as in the harness; options with
different prompts left get a sequence each.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from inputcodes.configurator import UserError
from inputcodes.distributed import Processes
from inputcodes.files import trying
from inputcodes.generate import attention_of_any_shape
from inputcodes.loss import token_nats
from inputcodes.packing import Layout, segment_layout
from inputcodes.readers import read_json
from inputcodes.tokenizer import Tokenizer
from model import GPT

Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """A prompt, what may follow it after a space, and which of that is right."""

    prompt: str
    options: tuple[str, ...]
    gold: int

    def __post_init__(self) -> None:
        if not 0 <= self.gold < len(self.options):
            raise ValueError(f"answer {self.gold} of {len(self.options)} options")
        "".join((self.prompt, *self.options)).encode()  # UnicodeEncodeError for lone surrogates


@dataclass(frozen=True)
class Task:
    """Its title in a table, its data set (path, configuration, split) and how a row is read."""

    title: str
    source: tuple[str, str | None, str]
    item: Callable[[Row], Item]  # ValueError for a row that is not as its docstring says
    perplexity: bool = False  # of the gold answer; else the accuracy among the options


def field(row: Row, path: str, kind: type = str, may_be_empty: bool = False) -> Any:
    """The value at `path` ("choices.text") of a row, of type `kind`; ValueError if it is not.

    A text holds more than white space, unless it `may_be_empty`.
    """
    value: Any = row
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            raise ValueError(f"{path} is missing")
        value = value[name]
    if type(value) is not kind:
        noun = {str: "text", list: "a list", bool: "true or false", int: "a whole number"}[kind]
        raise ValueError(f"{path} is {value!r:.60}, expected {noun}")
    if isinstance(value, str) and not (value.strip() or may_be_empty):
        raise ValueError(f"{path} is empty, expected text")
    return value


def texts(row: Row, path: str) -> tuple[str, ...]:
    """The list of texts at `path` of a row: at least one, none of them empty."""
    values = field(row, path, list)
    if not values:
        raise ValueError(f"{path} is an empty list, expected texts")
    for value in values:
        if type(value) is not str or not value.strip():
            raise ValueError(f"{path} holds {value!r:.60}, expected texts that are not empty")
    return tuple(values)


def arc_item(row: Row) -> Item:
    """`question, choices{text, label}, answerKey`."""
    options, labels, key = texts(row, "choices.text"), texts(row, "choices.label"), "answerKey"
    if len(options) != len(labels) or len(set(labels)) != len(labels):
        raise ValueError(f"choices.label is {labels}, expected a different one for each option")
    if field(row, key) not in labels:
        raise ValueError(f"answerKey is {row[key]!r}, expected one of {', '.join(labels)}")
    return Item(f"Question: {field(row, 'question')}\nAnswer:", options, labels.index(row[key]))


def hellaswag_item(row: Row) -> Item:
    """`activity_label, ctx_a, ctx_b, endings, label`; `ctx` is used where the two parts are not.

    The harness begins the second part with a capital, which `ctx` does not have.
    """
    if "ctx_a" in row and "ctx_b" in row:
        second = field(row, "ctx_b", may_be_empty=True)  # as in WikiHow's rows
        context = f"{field(row, 'ctx_a')} {second.capitalize()}"
    else:
        context = field(row, "ctx")
    endings = tuple(clean_wikihow(ending) for ending in texts(row, "endings"))
    if not all(map(str.strip, endings)):
        raise ValueError("endings holds one of marks alone, expected texts")
    gold = field(row, "label", str if type(row.get("label")) is str else int)  # copies differ
    if not str(gold).isdecimal():
        raise ValueError(f"label is {gold!r:.60}, expected the number of the right ending")
    prompt = clean_wikihow(f"{field(row, 'activity_label')}: {context}")
    return Item(prompt, endings, int(gold))


def clean_wikihow(text: str) -> str:
    """A text without the bracketed marks of HellaSwag's WikiHow part."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def boolq_item(row: Row) -> Item:
    """`question, passage` and `label` (0 or 1) or `answer` (true or false)."""
    gold = field(row, "label", int) if "label" in row else int(field(row, "answer", bool))
    passage, question = field(row, "passage"), field(row, "question")
    return Item(f"{passage}\nQuestion: {question}?\nAnswer:", ("no", "yes"), gold)


def squad_item(row: Row) -> Item:
    """`title, context, question, answers{text}`; the first answer is the gold one."""
    title, context, question = (field(row, name) for name in ("title", "context", "question"))
    prompt = f"Title: {title}\n\nBackground: {context}\n\nQuestion: {question}\n\nAnswer:"
    return Item(prompt, texts(row, "answers.text")[:1], 0)


TASKS = {
    "arc_challenge": Task("ARC-C", ("allenai/ai2_arc", "ARC-Challenge", "test"), arc_item),
    "hellaswag": Task("HellaSwag", ("Rowan/hellaswag", None, "validation"), hellaswag_item),
    "boolq": Task("BoolQ", ("aps/super_glue", "boolq", "validation"), boolq_item),
    "squad": Task("SQuAD PPL", ("rajpurkar/squad", None, "validation"), squad_item, True),
}


def read_items(name: str, data: str, limit: int) -> list[Item]:
    """The first `limit` (0: all) items of task `name`, from folder `data` or (if empty) the hub."""
    rows = _local_rows(name, Path(data)) if data else _hub_rows(name)
    items = []
    for where, row in rows:
        try:
            if not isinstance(row, dict):
                raise ValueError(f"it is {row!r:.60}, expected an object")
            items.append(TASKS[name].item(row))
        except ValueError as error:
            raise UserError(f"{where} is not a row of {name}: {error}") from error
        if len(items) == limit:
            break
    if not items:
        raise UserError(f"{data or TASKS[name].source[0]} has no rows for {name}")
    return items


def _local_rows(name: str, folder: Path) -> Iterator[tuple[str, Any]]:
    """The rows of the one file NAME*.jsonl or NAME*.parquet of a folder, and where each is."""
    files = [path for suffix in ("jsonl", "parquet") for path in folder.glob(f"{name}*.{suffix}")]
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: --data is the one that {name}'s file is in")
    if (number := len(files)) != 1:
        raise UserError(f"{folder} has {number} files {name}*.jsonl or {name}*.parquet, expected 1")
    path = str(files[0])
    with trying(f"read {path}"):
        if files[0].suffix == ".jsonl":
            rows, unit = read_json(path), "line"
        else:
            import pyarrow.parquet

            table = pyarrow.parquet.read_table(path, page_checksum_verification=True)
            table.validate(full=True)  # text that is not UTF-8, lists that point outside
            rows, unit = enumerate(table.to_pylist(), start=1), "row"
        yield from ((f"{path}, {unit} {number}", row) for number, row in rows)


def _hub_rows(name: str) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset

    path, config, split = TASKS[name].source
    with trying(f"load {path} for {name} (check the network, or pass --data=DIR with its rows)"):
        rows = load_dataset(path, config, split=split)
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))


@dataclass(frozen=True)
class Prompt:
    """Tokens of a prompt and of options that follow it, each with its place in the result."""

    tokens: tuple[int, ...]
    options: list[tuple[int, tuple[int, ...]]]


@dataclass(frozen=True)
class Scores:
    """Nats of every option of every item, the options of an item one after the other.

    `nats` (P,) float64, `tokens` (P,); `truncated` items lost a part of their prompt.
    """

    items: Sequence[Item]
    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    truncated: int


@torch.no_grad()
def score(
    model: GPT, tokenizer: Tokenizer, items: Sequence[Item], batch_size: int, processes: Processes
) -> Scores:
    """Score all options of all items, `batch_size` prompts at a time, shared by all processes.

    Batches are the same for any number of processes. The caller decides about autocast.
    """
    prompts, tokens, truncated = make_prompts(tokenizer, items, model.config.block_size)
    nats = np.zeros(len(tokens))
    for states, targets, options in option_states(model, prompts, batch_size, processes):
        losses = token_nats(states, model.head.weight, targets).cpu().numpy()
        nats += np.bincount(options, weights=losses, minlength=len(nats))
    nats = processes.sum(torch.from_numpy(nats)).cpu().numpy()
    if not np.isfinite(nats).all():
        raise UserError("the model's log-likelihoods are not finite: its weights are damaged")
    return Scores(items, nats, tokens, truncated)


def split_pair(tokenizer: Tokenizer, prompt: str, option: str) -> tuple[list[int], list[int]]:
    """The tokens of prompt and option apart; spaces between go to the option, as in the harness."""
    text = prompt.rstrip()
    return tokenizer.encode(text), tokenizer.encode(prompt[len(text) :] + option)


def make_prompts(
    tokenizer: Tokenizer, items: Iterable[Item], block_size: int
) -> tuple[list[Prompt], NDArray[np.int64], int]:
    """The prompts of all items, the tokens of every option, and how many items were truncated."""
    prompts: list[Prompt] = []
    tokens: list[int] = []
    truncated = 0
    for item in items:
        by_tokens: dict[tuple[int, ...], Prompt] = {}
        cut = False
        for option in item.options:
            ids = split_pair(tokenizer, item.prompt, f" {option}")
            before, after, was_cut = fit(*ids, block_size)
            prompt = by_tokens.setdefault(before, Prompt(before, []))
            prompt.options.append((len(tokens), after))
            tokens.append(len(after))
            cut |= was_cut
        prompts += by_tokens.values()
        truncated += cut
    return prompts, np.array(tokens), truncated


def fit(
    prompt: Sequence[int], option: Sequence[int], block_size: int
) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    """The end of prompt and option that the context holds, and whether anything was cut."""
    whole = (*prompt, *option)[-(block_size + 1) :]  # the last token is not read
    kept = max(1, len(whole) - len(option))
    return whole[:kept], whole[kept:], len(whole) < len(prompt) + len(option)


def option_states(
    model: GPT, prompts: Sequence[Prompt], batch_size: int, processes: Processes
) -> Iterator[tuple[Tensor, Tensor, NDArray[np.int64]]]:
    """This process's share of the batches: the states (N, C) that predict the tokens of options,
    those tokens (N,), and the option that each belongs to (N,).
    """

    # By the positions they take, so that a batch has little padding.
    longest_first = sorted(
        prompts, key=lambda p: -len(p.tokens) - sum(len(ids) - 1 for _, ids in p.options)
    )
    starts = range(0, len(prompts), batch_size)[processes.rank :: processes.world]
    off = None if processes.first else True  # None: where there is no terminal
    for start in tqdm(starts, unit="batch", ncols=80, disable=off, leave=False):
        batch = longest_first[start : start + batch_size]
        ids, layout, places, targets, options = to_tensors(batch, processes.device)
        with attention_of_any_shape():
            states = model.hidden(ids, layout=layout)[places]  # (N, C)
        yield states, targets, options


def to_tensors(
    batch: Sequence[Prompt], device: torch.device
) -> tuple[Tensor, Layout, tuple[Tensor, Tensor], Tensor, NDArray[np.int64]]:
    """Prompts as ids (B, T) and their layout; the places (N,), (N,) whose states predict the
    tokens of options, those tokens (N,), and the option that each belongs to (N,).
    """
    rows: list[tuple[list[int], list[int], list[int]]] = []
    targets: list[tuple[int, int, int, int]] = []  # row, column, token, option
    for row, prompt in enumerate(batch):
        length = len(prompt.tokens)
        ids, segments, positions = [*prompt.tokens], [0] * length, [*range(length)]
        for segment, (option, tokens) in enumerate(prompt.options, start=1):
            read = len(tokens) - 1
            columns = [length - 1, *range(len(ids), len(ids) + read)]
            targets += [(row, *pair, option) for pair in zip(columns, tokens, strict=True)]
            ids += tokens[:-1]
            segments += [segment] * read
            positions += range(length, length + read)
        rows.append((ids, segments, positions))
    # The segment of padding is -1.
    x, segment_of, position_of = (
        pad_sequence(list(map(torch.tensor, part)), batch_first=True, padding_value=value)
        for part, value in zip(zip(*rows, strict=True), (0, -1, 0), strict=True)
    )
    layout = segment_layout(segment_of.to(device), position_of.to(device))
    *places, tokens_of, options_of = torch.tensor(targets).T
    r, c, y = (part.to(device) for part in (*places, tokens_of))
    return x.to(device), layout, (r, c), y, options_of.numpy()


class Estimate(NamedTuple):
    """A value and its standard error over the items, None for fewer than two."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class TaskResult:
    items: int
    tokens: int  # of all options
    truncated: int  # items
    chance: float | None  # the accuracy of guessing
    measures: dict[str, Estimate]

    def as_metrics(self) -> dict[str, float | None]:
        counts = {"items": self.items, "tokens": self.tokens, "truncated": self.truncated}
        values = {name: measure.value for name, measure in self.measures.items()}
        errors = {f"{name}_stderr": measure.stderr for name, measure in self.measures.items()}
        return counts | ({} if self.chance is None else {"chance": self.chance}) | values | errors


def summarize(task: Task, scores: Scores) -> TaskResult:
    measures, chance = (perplexity(scores), None) if task.perplexity else accuracy(scores)
    counts = len(scores.items), int(scores.tokens.sum()), scores.truncated
    return TaskResult(*counts, chance, measures)


def accuracy(scores: Scores) -> tuple[dict[str, Estimate], float]:
    """How often the gold option is the likeliest, and what guessing would give.

    `acc_norm` compares nats per byte of an option's text. Ties go to the first option.
    """
    counts = [len(item.options) for item in scores.items]
    nats_of = np.split(scores.nats, np.cumsum(counts)[:-1])
    plain, normed = [], []
    for item, nats in zip(scores.items, nats_of, strict=True):
        text_bytes = [max(1, len(option.encode())) for option in item.options]
        nats = nats[[*map(item.options.index, item.options)]]  # equal ones tie: rounding differs
        plain.append(np.argmin(nats) == item.gold)
        normed.append(np.argmin(nats / text_bytes) == item.gold)
    return {"acc": mean(plain), "acc_norm": mean(normed)}, mean(1 / np.array(counts)).value


def perplexity(scores: Scores) -> dict[str, Estimate]:
    """e to the mean nats of all answer tokens; its error is that of a ratio of sums (delta)."""
    loss = float(scores.nats.sum() / scores.tokens.sum())
    error = mean((scores.nats - loss * scores.tokens) / scores.tokens.mean()).stderr
    value = math.exp(min(loss, 700.0))  # the largest that a float holds
    return {"perplexity": Estimate(value, None if error is None else value * error)}


def mean(values: ArrayLike) -> Estimate:
    sample = np.asarray(values, dtype=float)
    error = sample.std(ddof=1) / math.sqrt(len(sample)) if len(sample) > 1 else None
    return Estimate(float(sample.mean()), None if error is None else float(error))
