"""Checkpoints side by side: validation loss and tasks answered by log-likelihood.

    python evaluate.py --out_dir=out,out/learned
    python evaluate.py --out_dir=out/fixed32 --tasks=arc_challenge,hellaswag,boolq,squad
    torchrun --nproc_per_node=2 evaluate.py --out_dir=out/fixed32 --tasks=boolq --data=DIR

inputcodes/tasks.py has the tasks, inputcodes/validation.py the loss and what it stands beside. All
checkpoints, data sets and rows are opened before the first result. Each run's results are written
to evaluation.json in its directory, where what was measured of the same checkpoint before stays;
the tables are printed for all that were evaluated, also if a later run fails.
"""

import contextlib
import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from inputcodes.checkpoint import load_model
from inputcodes.configurator import Settings, UserError, configure, local_path, run_main, setting
from inputcodes.data import DataSet, TrainingData, validation_numbers
from inputcodes.distributed import Processes, autocast, end_with_torchrun, join_processes, one_cause
from inputcodes.files import read_json, split_list, system_errors, write_json
from inputcodes.stats import markdown_table
from inputcodes.tasks import TASKS, Item, TaskResult, read_items, score, summarize
from inputcodes.tokenizer import Tokenizer
from inputcodes.validation import Bigram, Evaluation, validate
from model import GPT


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    out_dir: str = setting("out", "directories of runs, separated by commas")
    checkpoint: str = setting("best", "by validation loss, or the latest", choices=("best", "last"))
    tasks: str = setting("", f"some of {', '.join(TASKS)}; separated by commas; empty: none")
    data: str = setting("", "folder of TASK*.jsonl or .parquet; empty: the hub", is_path=True)
    limit: int = setting(0, "items per task, the first ones; 0: all", least=0)
    validation: bool = setting(True, "also give the loss on validation data")
    dataset: str = setting("", "whose validation data; empty: of the data each run trained on")
    data_dir: str = setting("data", "where data sets are", is_path=True)
    eval_tokens: int = setting(0, "validation tokens; 0: all", least=0)
    batch_size: int = setting(16, "windows or items at a time, over all processes", least=1)
    device: str = setting("auto", "cuda, mps or cpu; auto: the first of these there is")
    dtype: str = setting("float32", "of the arithmetic", choices=("float32", "bfloat16"))

    def problems(self) -> list[str]:
        problems = super().problems()
        for name in sorted(set(split_list(self.tasks)) - TASKS.keys()):
            problems.append(f"tasks: unknown {name!r}, expected some of {', '.join(TASKS)}")
        for name, purpose, wanted, advice in (
            ("limit", "tasks", split_list(self.tasks), "give --tasks=..."),
            ("data", "tasks", split_list(self.tasks), "give --tasks=..."),
            ("dataset", "the validation loss", self.validation, "leave out --validation=False"),
            ("eval_tokens", "the validation loss", self.validation, "leave out --validation=False"),
        ):
            if (value := getattr(self, name)) and not wanted:
                problems.append(f"{name}={value!r} is for {purpose}: {advice}, or leave it out")
        if not self.validation and not split_list(self.tasks):
            problems.append("nothing to do: give --tasks=... or leave out --validation=False")
        if not split_list(self.out_dir):
            problems.append("out_dir names no run: give --out_dir=out/RUN")
        return problems


@dataclass(frozen=True)
class Target:
    run: str
    model: GPT
    record: dict[str, Any]
    tokenizer: Tokenizer
    data: DataSet | None

    @property
    def trained_on_data(self) -> bool:  # this very data set, by its hash
        return self.data is not None and self.data.sha256 == self.record["data_sha256"]


@dataclass(frozen=True)
class Result:
    """What was measured of one checkpoint; the loss is None where it was not asked for."""

    target: Target
    loss: Evaluation | None
    tasks: dict[str, TaskResult]


def open_targets(config: EvaluateConfig, verify: bool) -> list[Target]:
    """Open all that the results need; UserError for the first that is missing or does not fit."""
    open_once = functools.cache(functools.partial(DataSet, verify=verify))
    targets = []
    for out_dir in map(local_path, split_list(config.out_dir)):
        path = Path(out_dir) / f"{config.checkpoint}.pt"
        model, record, tokenizer = load_model(path)
        data = None
        if config.validation:
            folder = Path(config.data_dir) / (config.dataset or record["config"]["dataset"])
            if not folder.is_dir():
                raise UserError(
                    f"no data set {folder} to validate {path} on: pass --data_dir=..., another"
                    " --dataset=... of the same tokenizer, or --validation=False"
                )
            data = open_once(folder)
            if data.tokenizer.sha256 != record["tokenizer_sha256"]:
                raise UserError(
                    f"{data.path} has another tokenizer than {path}: pass a --dataset that was"
                    " made with the same one, or evaluate runs of different tokenizers separately"
                )
            # Raises UserError if there are too few tokens for one window.
            validation_numbers(data.rows("val", model.config.block_size), config.eval_tokens)
        targets.append(Target(str(Path(out_dir)), model, record, tokenizer, data))
    return targets


def evaluate_run(
    target: Target, config: EvaluateConfig, items: dict[str, list[Item]], processes: Processes
) -> Result:
    record = target.record
    model = copy.deepcopy(target.model).to(processes.device)  # freed before the next one
    loss, bigram = None, None
    if data := target.data:
        if target.trained_on_data:
            rows = data.rows("train", model.config.block_size)
            bigram = Bigram(TrainingData(rows, 1, record["config"]["seed"]), data.vocab_size)
            bigram.count(record["tokens"] // model.config.block_size)
        batch_size = max(1, config.batch_size // processes.world)
        loss = validate(
            model, data, config.eval_tokens, batch_size, processes, config.dtype, bigram
        )
    tasks = {}
    for name, rows_of in items.items():
        with autocast(config.dtype, processes.device):
            scores = score(model, target.tokenizer, rows_of, config.batch_size, processes)
        tasks[name] = summarize(TASKS[name], scores)
    return Result(target, loss, tasks)


def write_evaluation(result: Result, config: EvaluateConfig) -> None:
    """Write evaluation.json; what else it has of the same checkpoint stays: tasks, or the loss."""
    target, file = result.target, Path(result.target.run) / "evaluation.json"
    names = ("checkpoint", "step", "checkpoint_sha256")
    entry = {"run": target.run} | {name: target.record[name] for name in names}
    if result.loss and target.data:
        entry |= {"dataset": target.data.path.name, "data_sha256": target.data.sha256}
        entry |= {"eval_tokens": config.eval_tokens, "dtype": config.dtype}
        entry |= result.loss.as_metrics()
    how = {"limit": config.limit, "dtype": config.dtype}
    entry["tasks"] = {name: task.as_metrics() | how for name, task in result.tasks.items()}
    # Two at once would lose what one of them adds.
    with system_errors("write", file), FileLock(file.with_name("evaluation.lock")):
        with contextlib.suppress(UserError, KeyError, TypeError):  # none there, or a damaged one
            there = read_json(file)
            if there.get("checkpoint_sha256") == entry["checkpoint_sha256"]:
                entry["tasks"] = there["tasks"] | entry["tasks"]
                entry = entry if result.loss else there | entry
        write_json(file, entry)


def main_table(results: Sequence[Result]) -> str:
    """The results side by side, one run per row (as in Bochkov's Table 5; accuracies in %)."""
    columns = ["run", "step"]
    if results[0].loss:
        columns += ["val data", "val loss", "new", "again", "bigram", "val PPL", "bits per byte"]
    rows = []
    for result in results:
        target, loss = result.target, result.loss
        row = [target.run, f"{target.record['step']:,}"]
        if loss and target.data:
            nats = (loss.loss, loss.new, loss.again, loss.bigram)
            row += [target.data.path.name, *("" if n is None else f"{n:.4f}" for n in nats)]
            row += [f"{loss.perplexity:.3f}", f"{loss.bits_per_byte:.4f}"]
        for task in result.tasks.values():
            accuracy = task.measures.get("acc")
            value = 100 * accuracy.value if accuracy else task.measures["perplexity"].value
            row.append(f"{value:.2f}")
        rows.append(row)
    titles = [TASKS[name].title for name in results[0].tasks]
    return markdown_table(" | ".join(columns + titles), rows)


def task_table(results: Sequence[Result]) -> str:
    rows = []
    for result in results:
        for name, task in result.tasks.items():
            chance = "" if task.chance is None else f"{100 * task.chance:.2f}"
            cells = []
            for measure, scale in (("acc", 100), ("acc_norm", 100), ("perplexity", 1)):
                value, error = task.measures.get(measure, (None, None))
                cell = "" if value is None else f"{scale * value:.2f}"
                cells.append(cell if error is None else f"{cell} ± {scale * error:.2f}")
            counts = f"{task.items:,}", f"{task.truncated:,}"
            rows.append([result.target.run, name, *counts, *cells[:2], chance, cells[2]])
    header = "run | task | items | truncated | acc | acc_norm | chance | perplexity"
    return markdown_table(header, rows)


def notes(results: Sequence[Result]) -> list[str]:
    lines = []
    for result in results:
        target, loss = result.target, result.loss
        name = target.record["config"]["dataset"]
        if target.data and target.data.path.name == name and not target.trained_on_data:
            lines.append(
                f"{target.data.path} is not the data that {target.run} was trained on: it has the"
                " same name but other content, and the run may have seen its validation text"
            )
        if loss and loss.bigram is not None and loss.loss > loss.bigram:
            lines.append(
                f"{target.run} is worse than a bigram of counts of its training tokens"
                f" ({loss.loss:.4f} against {loss.bigram:.4f} nats per token): too early to compare"
            )
    return lines


def main(argv: list[str]) -> None:
    config = configure(EvaluateConfig, argv)
    tasks = split_list(config.tasks)
    items = {name: read_items(name, config.data, config.limit) for name in tasks}
    with join_processes(config.device, dtype=config.dtype) as processes:
        end_with_torchrun(processes)
        targets = open_targets(config, processes.first)
        processes.wait()  # for the first to verify, which may take longer than a GPU waits
        results: list[Result] = []
        unwritten: list[str] = []
        try:
            for target in targets:
                result = evaluate_run(target, config, items, processes)
                results.append(result)
                if processes.first:
                    try:
                        write_evaluation(result, config)
                    except UserError as error:  # of this run's folder; the others go on
                        unwritten.append(str(error))
        finally:
            if processes.first and results:
                tables = [main_table(results), *([task_table(results)] if items else [])]
                print("\n\n".join([*tables, *notes(results)]), flush=True)
        if unwritten:
            raise UserError("\n".join(unwritten))


if __name__ == "__main__":
    with one_cause():
        run_main(main, EvaluateConfig, "usage: python evaluate.py [--name=value ...]")
