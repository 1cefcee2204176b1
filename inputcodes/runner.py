"""Runs of train.py as processes, some at a time, under one progress bar."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from tqdm import tqdm

from inputcodes.checkpoint import ROOT
from inputcodes.distributed import PARENT, STOP_SIGNALS

TAIL = 2**15  # bytes at the end of metrics.jsonl, in which its last line is


def jobs_at_once(device: str, nproc: int, runs: int) -> int:
    """One at a time on a GPU; on a CPU as many of `runs` as it has cores for."""
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if device != "cpu" and (gpu or device != "auto"):
        return 1
    return max(1, min(cores() // nproc, runs))


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Runner:
    """Runs the config.py in each directory of `waiting`, given with the tokens it will train on."""

    def __init__(
        self, waiting: Mapping[Path, int], jobs: int, nproc: int, complete: Callable[[Path], bool]
    ) -> None:
        self.waiting, self.jobs, self.nproc, self.complete = list(waiting), jobs, nproc, complete
        self.total = sum(waiting.values())
        self.active: dict[Path, subprocess.Popen[bytes]] = {}
        self.failed: list[str] = []
        self.tokens = {path: tokens_of(path) for path in waiting}  # trained on so far
        threads = max(1, cores() // (jobs * nproc))
        self.environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        self.environment[PARENT] = str(os.getpid())

    def run(self) -> list[str]:
        """Do all runs; what there is to say of those that failed."""
        count = len(self.waiting)
        bar = {"total": self.total, "unit": "tokens", "ncols": 80, "unit_scale": True}
        bar |= {"initial": sum(self.tokens.values()), "smoothing": 0.05}
        bar |= {"disable": not count or not sys.stderr.isatty()}
        with tqdm(**bar) as progress:
            try:
                while self.waiting or self.active:
                    self.look_after()
                    left = len(self.waiting) + len(self.active)
                    progress.set_description_str(f"{left} of {count} runs left", False)
                    progress.update(sum(self.tokens.values()) - progress.n)
            finally:
                for process in self.active.values():
                    process.terminate()  # it saves
                for process in self.active.values():
                    process.wait()
        return self.failed

    def look_after(self) -> None:
        """Start a run where there is room, wait a little, and see which have ended."""
        if self.waiting and len(self.active) < self.jobs:
            self.start(self.waiting.pop(0))
        time.sleep(0.2)
        for path, process in list(self.active.items()):
            ended = process.poll() is not None
            self.tokens[path] = tokens_of(path)
            if not ended:
                continue
            del self.active[path]
            if not sys.stderr.isatty():
                left = len(self.waiting) + len(self.active)
                print(f"{path.name} ended, {left} runs left", file=sys.stderr, flush=True)
            if process.returncode or not self.complete(path):
                log = (path / "log.txt").read_text(encoding="utf-8", errors="replace")
                lines = log.strip().splitlines()
                said = [line for line in lines if line.startswith("error:")] or lines[-3:]
                self.failed += [f"{path} failed, says {path / 'log.txt'}:", *said]

    def start(self, path: Path) -> None:
        command = [sys.executable]
        if self.nproc > 1:
            command += ["-m", "torch.distributed.run", "--standalone"]
            command += [f"--nproc_per_node={self.nproc}"]
        with open(path / "log.txt", "wb") as log:
            self.active[path] = subprocess.Popen(
                [*command, str(ROOT / "train.py"), str(path / "config.py")],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
            )


def tokens_of(path: Path) -> int:
    """Where the run in `path` stands by the last lines of its metrics."""
    try:
        with open(path / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            found = re.findall(rb'"tokens": (\d+)', file.read())
    except OSError:  # none yet, or being replaced
        return 0
    return int(found[-1]) if found else 0


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise SystemExit, with the status that shells expect.

    What nohup ignores stays ignored.
    """

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
