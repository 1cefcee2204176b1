"""Checkpoints side by side: validation loss and tasks answered by log-likelihood.

    python evaluate.py --out_dir=out,out/learned
    python evaluate.py --out_dir=out/fixed32 --tasks=arc_challenge,hellaswag,boolq,squad
    torchrun --nproc_per_node=2 evaluate.py --out_dir=out/fixed32 --tasks=boolq --data=DIR

tasks.py says what is asked, scoring.py how it is scored. Besides the tables that are printed, each
run's results are written to evaluation.json in its directory. train.py uses `validate` for the
lines it prints on the way.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inputcodes.checkpoint import load_model
from inputcodes.configurator import Settings, UserError, configure, run_main, setting
from inputcodes.data import DataSet
from inputcodes.distributed import Processes, autocast, join_processes, one_cause
from inputcodes.scoring import accuracy, perplexity, score
from inputcodes.tasks import TASKS, Item, read_items
from inputcodes.tokenizer import Tokenizer
from inputcodes.validation import validate

USAGE = "usage: python evaluate.py [--name=value ...]"


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    """Which checkpoints to evaluate, and on what."""

    out_dir: str = setting("out", "directories of runs, separated by commas")
    checkpoint: str = setting("best", "best or last")
    tasks: str = setting("", f"of {', '.join(TASKS)}; separated by commas; empty: none")
    data: str = setting("", "folder with the tasks' rows, TASK*.jsonl or .parquet; empty: the hub")
    limit: int = setting(0, "items a task, the first ones; 0: all")
    validation: bool = setting(True, "also give the loss on validation data")
    dataset: str = setting("", "whose validation data; empty: of the data each run trained on")
    data_dir: str = setting("data", "where data sets are")
    eval_tokens: int = setting(0, "validation tokens; 0: all")
    batch_size: int = setting(16, "windows, or items of a task, at a time; over all processes")
    device: str = setting("auto", "cuda, mps or cpu; auto: the first of these there is")
    dtype: str = setting("float32", "float32 or bfloat16")

    def problems(self) -> list[str]:
        """One sentence for every impossible value."""
        found = super().problems()
        if self.checkpoint not in ("best", "last"):
            found.append(f"checkpoint={self.checkpoint!r}: expected best or last")
        if self.dtype not in ("float32", "bfloat16"):
            found.append(f"dtype={self.dtype!r}: expected float32 or bfloat16")
        if min(self.eval_tokens, self.limit) < 0 or self.batch_size < 1:
            found.append("eval_tokens and limit must be at least 0, batch_size at least 1")
        for name in set(self.task_names) - TASKS.keys():
            found.append(f"tasks: unknown {name!r}, expected some of {', '.join(TASKS)}")
        if not self.validation and not self.task_names:
            found.append("nothing to do: give --tasks=... or leave out --validation=False")
        return found

    @property
    def task_names(self) -> list[str]:
        """The tasks to do, in the order given."""
        return [name.strip() for name in self.tasks.split(",") if name.strip()]


def evaluate_run(
    out_dir: str, config: EvaluateConfig, items: dict[str, list[Item]], processes: Processes
) -> dict[str, Any]:
    """All results of one checkpoint, as they are written to its evaluation.json."""
    path = Path(out_dir) / f"{config.checkpoint}.pt"
    model, record = load_model(path, processes.device)
    tokenizer = Tokenizer.from_json(record["tokenizer"])
    result: dict[str, Any] = {"run": out_dir, "checkpoint": config.checkpoint}
    result |= {"step": record["step"], "tasks": {}}
    if config.validation:
        name = config.dataset or record["config"]["dataset"]
        folder = Path(config.data_dir) / name
        if not folder.is_dir():
            raise UserError(
                f"no data set {folder} to validate {path} on: pass --data_dir=..., another"
                " --dataset=... of the same tokenizer, or --validation=False"
            )
        data = DataSet(folder, processes.first)
        if data.tokenizer.sha256 != tokenizer.sha256:
            raise UserError(f"{data.path} has another tokenizer than {path}")
        batch_size = max(1, config.batch_size // processes.world)
        loss = validate(model, data, config.eval_tokens, batch_size, processes, config.dtype)
        result |= {"dataset": name, "eval_tokens": config.eval_tokens, **loss.as_metrics()}
    for name, some in items.items():
        with autocast(config.dtype, processes.device):
            scores = score(model, tokenizer, some, config.batch_size, processes, name)
        measure = perplexity if TASKS[name].perplexity else accuracy
        result["tasks"][name] = measure(scores) | {"limit": config.limit}
    return result


def table(results: list[dict[str, Any]]) -> str:
    """The results side by side, a run a row (the shape of Bochkov's Table 5; accuracies in %)."""
    names = list(results[0]["tasks"])
    columns = ["run", "step"]
    if "val_loss" in results[0]:
        columns += ["val data", "val loss", "val PPL", "bits per byte"]
    rows = [columns + [TASKS[name].title for name in names]]
    for result in results:
        row = [result["run"], f"{result['step']:,}"]
        if "val_loss" in result:
            row += [result["dataset"], f"{result['val_loss']:.4f}"]
            row += [f"{result['val_perplexity']:.3f}", f"{result['val_bits_per_byte']:.4f}"]
        for name in names:
            scores = result["tasks"][name]
            ppl = scores.get("perplexity")
            row.append(f"{100 * scores['acc']:.2f}" if ppl is None else f"{ppl:.2f}")
        rows.append(row)
    return markdown(rows)


def details(results: list[dict[str, Any]]) -> str:
    """Every task of every run with its items and standard errors."""
    rows = [["run", "task", "items", "truncated", "acc", "acc_norm", "chance", "perplexity"]]
    for result in results:
        for name, scores in result["tasks"].items():
            row = [result["run"], name, f"{scores['items']:,}", f"{scores['truncated']:,}"]
            for measure, scale in (("acc", 100), ("acc_norm", 100), ("perplexity", 1)):
                error = scores.get(f"{measure}_stderr")
                value = f"{scale * scores[measure]:.2f}" if measure in scores else ""
                row.append(value if error is None else f"{value} ± {scale * error:.2f}")
            row.insert(-1, f"{100 * scores['chance']:.2f}" if "chance" in scores else "")
            rows.append(row)
    return markdown(rows)


def markdown(rows: list[list[str]]) -> str:
    """A table whose first row is the heading."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def main(argv: list[str]) -> None:
    """Evaluate as `argv` says; see the module's docstring."""
    config = configure(EvaluateConfig, argv)
    items = {name: read_items(name, config.data, config.limit) for name in config.task_names}
    with join_processes(config.device, dtype=config.dtype) as processes:
        results = []
        for out_dir in config.out_dir.split(","):
            result = evaluate_run(out_dir, config, items, processes)
            results.append(result)
            if processes.first:
                text = json.dumps(result, indent=1) + "\n"
                (Path(out_dir) / "evaluation.json").write_text(text)
        if processes.first:
            print(table(results))
            if items:
                print("\n" + details(results))


if __name__ == "__main__":
    with one_cause():
        run_main(main, EvaluateConfig, USAGE)
