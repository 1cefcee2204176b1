"""Throughput and memory of what users run, beside nanoGPT's where a checkout of it is at hand.

    python bench.py config/default.py
    python bench.py --dataset=books --n_layer=4 --nanogpt=../nanoGPT --only=step,generate_1

Each row is measured in a process of its own, which has its own settings and its own peak of
memory. The processes of a table wait for one another and take turns, A B C A B C ..., so that
whatever else the machine does falls on all of them; the first rounds warm up and do not count.
A time is the median of its rounds. A ratio is the median of the ratios within a round, to the
first row of the table. Brackets hold the middle half of the rounds.

FLOPs are the model's own: 6 for every weight of a matrix product and 12 n_layer n_embd T for
attention, a token; the ceiling is a large square product, timed in the same turns.
"""

import contextlib
import dataclasses
import io
import json
import multiprocessing
import platform
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inputcodes.checkpoint import git_commit
from inputcodes.configurator import UserError, configure, run_main
from inputcodes.distributed import Processes, setup_device
from inputcodes.memory import peak_mb
from train import open_data
from workloads import TABLES, BenchConfig, Row, Work, rows_of

USAGE = "usage: python bench.py [config/FILE.py ...] [--name=value ...]"


def serve(pipe: Connection, row: Row) -> None:
    """In the process of a row: build, then take a turn whenever asked, then tell the peak."""
    with contextlib.redirect_stdout(io.StringIO()):  # nanoGPT talks
        work = row.build(row.config)
        pipe.send({"amount": work.amount, "unit": work.unit, "flops": work.flops})
        while pipe.recv():
            pipe.send(take_turn(work, row.config))
        pipe.send(peak_mb(torch.device(row.config.device)))


def take_turn(work: Work, config: BenchConfig) -> tuple[float, float]:
    """Seconds a call, and the share of them spent waiting for data."""
    waited, started, calls, elapsed = work.waited_s(), time.perf_counter(), 0, 0.0
    while not calls or elapsed < config.turn_s:
        work.call()
        if config.device == "cuda":
            torch.cuda.synchronize()
        calls, elapsed = calls + 1, time.perf_counter() - started
    return elapsed / calls, (work.waited_s() - waited) / elapsed


def measure(rows: list[Row]) -> list[dict[str, Any]]:
    """Let the rows of one table take turns; what is known of each."""
    spawn, config = multiprocessing.get_context("spawn"), rows[0].config
    workers, pipes = [], []
    try:
        for row in rows:
            here, there = spawn.Pipe()
            workers.append(spawn.Process(target=serve, args=(there, row), daemon=True))
            workers[-1].start()
            there.close()
            pipes.append(here)
        known = [{"name": row.name, **pipe.recv()} for row, pipe in zip(rows, pipes, strict=True)]
        turns = np.empty((config.warmup + config.rounds, len(rows), 2))
        for turn in turns:
            for i, pipe in enumerate(pipes):
                pipe.send(True)
                turn[i] = pipe.recv()
        for i, pipe in enumerate(pipes):
            pipe.send(False)
            known[i]["peak_mb"] = round(pipe.recv(), 1)
        for worker in workers:
            worker.join()  # it ends by itself, cleaner than by force
    except EOFError as error:
        raise UserError("a row failed, as said above; --only leaves its table out") from error
    finally:
        for worker in workers:
            worker.terminate()
    return [summary(known, turns[config.warmup :], i, row) for i, row in enumerate(rows)]


def middle(values: np.ndarray) -> list[float]:
    """The median, and the quartiles around it."""
    return [float(f"{value:.5g}") for value in np.percentile(values, [50, 25, 75])]


def summary(known: list[dict[str, Any]], turns: np.ndarray, i: int, row: Row) -> dict[str, Any]:
    """A line of the result. turns (rounds, rows, 2): seconds a call, share of waiting."""
    line, first, seconds = known[i], known[0], turns[:, i, 0]
    line |= {"seconds": middle(seconds), "data_share": round(float(turns[:, i, 1].mean()), 6)}
    line["per_s"] = round(line["amount"] / line["seconds"][0], 1)
    if line["unit"] == first["unit"]:
        work = line["amount"] / first["amount"]
        line["times_first"] = middle(work * turns[:, 0, 0] / seconds)
        line["peak_of_first"] = round(line["peak_mb"] / first["peak_mb"], 3)
    ceilings = [j for j, other in enumerate(known) if other["name"] == f"matmul {row.config.dtype}"]
    if line["flops"] and ceilings:
        j = ceilings[0]
        shares = line["flops"] / seconds * turns[:, j, 0] / known[j]["flops"]
        line["of_ceiling"] = middle(shares)
    return line


def table(title: str, lines: list[dict[str, Any]]) -> str:
    """The result in Markdown."""
    out = [
        f"\n{title} (ratios to the first row)\n",
        "| | seconds | a second | times as fast | peak MB | ratio | of ceiling | data |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        seconds, low, high = line["seconds"]
        ratio, share = line.get("times_first"), line.get("of_ceiling")
        cells = (
            line["name"],
            f"{seconds:.4g} [{low:.4g}, {high:.4g}]",
            f"{line['per_s']:,.1f} {line['unit']}",
            f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]" if ratio else "",
            f"{line['peak_mb']:,.0f}",
            f"{line['peak_of_first']:.2f}" if ratio else "",
            f"{share[0]:.0%}" if share else "",
            f"{line['data_share']:.2%}" if line["data_share"] else "",
        )
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out)


def add_to(path: Path, record: dict[str, Any]) -> None:
    """Append `record` to the list in a JSON file, new or made here."""
    records = json.loads(path.read_text()) if path.is_file() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*records, record], indent=1) + "\n")


def main(argv: list[str]) -> None:
    """Measure what `argv` says; see the module's docstring."""
    config = configure(BenchConfig, argv)
    device = setup_device(config.device, config.dtype, config.matmul_precision)
    data = open_data(config, Processes(device))
    vocab_size = config.for_data(data).vocab_size
    config = dataclasses.replace(config, vocab_size=vocab_size, device=device.type)
    record: dict[str, Any] = {
        "made_by": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "commit": git_commit(),
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
            "threads": torch.get_num_threads(),
        },
        "config": dataclasses.asdict(config),
        "tables": {},
    }
    rows = rows_of(config)
    for name in dict.fromkeys(row.table for row in rows):
        lines = measure([row for row in rows if row.table == name])
        record["tables"][name] = lines
        print(table(TABLES[name], lines), flush=True)
    if config.out:
        add_to(Path(config.out), record)


if __name__ == "__main__":
    run_main(main, BenchConfig, USAGE)
