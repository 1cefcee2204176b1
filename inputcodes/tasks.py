"""The evaluation tasks: where their items are and how an item is put to a model.

Prompts, options and the order of preference among sources are those of EleutherAI's
lm-evaluation-harness 0.4 for arc_challenge, hellaswag, boolq and (for SQuAD) squadv2, without
examples in the prompt: a model continues the prompt by a space and an option.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inputcodes.configurator import UserError

Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """A prompt, what may follow it after a space, and which of that is right."""

    prompt: str
    options: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class Task:
    """How it is titled in a table, its data set (path, configuration, split), and its format."""

    title: str
    source: tuple[str, str | None, str]
    item: Callable[[Row], Item]
    perplexity: bool = False  # of the gold answer; else the accuracy among the options


def arc_item(row: Row) -> Item:
    """`question, choices{text, label}, answerKey`."""
    choices = row["choices"]
    gold = choices["label"].index(row["answerKey"])
    return Item(f"Question: {row['question']}\nAnswer:", tuple(choices["text"]), gold)


def hellaswag_item(row: Row) -> Item:
    """`activity_label, ctx_a, ctx_b, endings, label`; `ctx` is used where the two parts are not.

    The harness begins the second part with a capital, which `ctx` does not have.
    """
    context = row["ctx"]
    if "ctx_a" in row and "ctx_b" in row:
        context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
    endings = tuple(clean_wikihow(ending) for ending in row["endings"])
    return Item(clean_wikihow(f"{row['activity_label']}: {context}"), endings, int(row["label"]))


def clean_wikihow(text: str) -> str:
    """A text without the bracketed marks of HellaSwag's WikiHow part."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def boolq_item(row: Row) -> Item:
    """`question, passage` and `label` (0 or 1) or `answer` (true or false)."""
    gold = int(row["label"] if "label" in row else row["answer"])
    return Item(f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", ("no", "yes"), gold)


def squad_item(row: Row) -> Item:
    """`title, context, question, answers{text}`; the first answer is the gold one."""
    prompt = f"Title: {row['title']}\n\nBackground: {row['context']}\n\n"
    return Item(f"{prompt}Question: {row['question']}\n\nAnswer:", (row["answers"]["text"][0],), 0)


TASKS = {
    "arc_challenge": Task("ARC-C", ("allenai/ai2_arc", "ARC-Challenge", "test"), arc_item),
    "hellaswag": Task("HellaSwag", ("Rowan/hellaswag", None, "validation"), hellaswag_item),
    "boolq": Task("BoolQ", ("aps/super_glue", "boolq", "validation"), boolq_item),
    "squad": Task("SQuAD PPL", ("rajpurkar/squad", None, "validation"), squad_item, True),
}


def read_items(name: str, data: str, limit: int) -> list[Item]:
    """The first `limit` (0: all) items of task `name`, from folder `data` or (if empty) the hub.

    Raises UserError, naming file or data set and row, for what cannot be read.
    """
    rows = _local_rows(name, Path(data)) if data else _hub_rows(name)
    items = []
    for where, row in rows:
        try:
            item = TASKS[name].item(row)
            if not 0 <= item.gold < len(item.options):
                raise ValueError(f"answer {item.gold} of {len(item.options)} options")
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{where} is no row of {name}: {error!r}") from error
        items.append(item)
        if len(items) == limit:
            break
    if not items:
        raise UserError(f"{data or TASKS[name].source[0]} has no rows for {name}")
    return items


def _local_rows(name: str, folder: Path) -> Iterator[tuple[str, Row]]:
    """The rows of the one file NAME*.jsonl or NAME*.parquet of a folder, and where each is."""
    found = [path for suffix in ("jsonl", "parquet") for path in folder.glob(f"{name}*.{suffix}")]
    if len(found) != 1:
        raise UserError(
            f"{folder} has {len(found)} files {name}*.jsonl or {name}*.parquet, expected 1"
        )
    path = found[0]
    if path.suffix == ".parquet":
        import pyarrow.parquet

        for number, row in enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1):
            yield f"{path}, row {number}", row
        return
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield f"{path}, line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON: {error}") from error


def _hub_rows(name: str) -> Iterator[tuple[str, Row]]:
    from datasets import load_dataset

    path, config, split = TASKS[name].source
    try:
        rows = load_dataset(path, config, split=split)
    except Exception as error:
        raise UserError(
            f"cannot load {path} for {name} ({type(error).__name__}): check the network, or pass"
            " --data=DIR with a file of its rows"
        ) from error
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))
