"""Work in several processes: chunks of documents go out, their results come back in order."""

import collections
import contextlib
import io
import itertools
import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from inputcodes.configurator import UserError, end_with_parent
from inputcodes.documents import Chunk, Item

POOL_CHUNKS = 24  # less input than this is done sooner than worker processes start

Result = TypeVar("Result")
Job = Callable[[list[Item]], Result]
_job: Job[Any]  # in a worker: what it does with a chunk


def map_chunks(
    job: Job[Result], chunks: Iterator[Chunk], workers: int
) -> Generator[tuple[Chunk, Result]]:
    """Each chunk with its result, in order; at most two chunks per worker are in memory.

    `workers` = 0 means one for each core. Input of fewer than POOL_CHUNKS is done in this process.
    """
    workers = workers or cores()
    head = list(itertools.islice(chunks, POOL_CHUNKS))
    few = workers == 1 or len(head) < POOL_CHUNKS
    chunks = itertools.chain(head, chunks)
    del head  # or its chunks would stay in memory to the end
    if few:
        yield from ((chunk, job(chunk.items)) for chunk in chunks)
        return
    waiting: collections.deque[tuple[Chunk, Future[Result]]] = collections.deque()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _start_worker, (job,)) as pool:
        try:
            for chunk in chunks:
                with _hidden_main():
                    waiting.append((chunk, pool.submit(_work, chunk.items)))
                if len(waiting) >= 2 * workers:
                    chunk, future = waiting.popleft()
                    yield chunk, future.result()
            yield from ((chunk, future.result()) for chunk, future in waiting)
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process died, perhaps for lack of memory: start the same command again "
                "with --workers=1"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Workers started inside do not import the script that runs, which may have no main guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def cores() -> int:
    """The cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # on Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _start_worker(job: Job[Any]) -> None:
    """In a new process: keep the job, leave Ctrl-C to the parent and end when the parent does."""
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _work(items: list[Item]) -> Any:
    return _job(items)


class _Lines(io.TextIOBase):
    """A log instead of a terminal: each state of a progress bar is a line of its own."""

    def write(self, text: str) -> int:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)
        return len(text)


def progress_bar(
    what: str, done: int, shown: bool, unit: str = "B", total: int | None = None
) -> Any:
    """A bar in bytes or another unit; where there is no terminal, a plain line every 30 seconds."""
    terminal = sys.stderr.isatty()
    return tqdm(
        desc=what, initial=done, total=total, unit=unit, unit_scale=True, ncols=80,
        file=sys.stderr if terminal else _Lines(), mininterval=0.1 if terminal else 30,
        disable=not shown,
    )  # fmt: skip
