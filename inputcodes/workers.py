"""Work in several threads: chunks of documents go out, their results come back in order.

tiktoken, NumPy and hashlib let other threads run while they compute, so no processes are needed.
"""

import collections
import io
import os
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from tqdm import tqdm

from inputcodes.documents import Chunk, Item

Result = TypeVar("Result")


def map_chunks(
    job: Callable[[list[Item]], Result], chunks: Iterator[Chunk], workers: int
) -> Generator[tuple[Chunk, Result]]:
    """Each chunk with its result, in order; at most two per worker (0: one per core) in memory."""
    workers = workers or cores()
    waiting: collections.deque[tuple[Chunk, Future[Result]]] = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for chunk in chunks:
                waiting.append((chunk, pool.submit(job, chunk.items)))
                if len(waiting) >= 2 * workers:
                    chunk, future = waiting.popleft()
                    yield chunk, future.result()
            yield from ((chunk, future.result()) for chunk, future in waiting)
        finally:
            pool.shutdown(cancel_futures=True)


def cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # on Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class _Lines(io.TextIOBase):
    """A log instead of a terminal: each state of a progress bar is a line of its own."""

    def write(self, text: str) -> int:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)
        return len(text)


def progress_bar(
    what: str, done: int, unit: str = "B", total: int | None = None, shown: bool = True
) -> Any:
    """A bar in bytes or another unit; where there is no terminal, a plain line every 30 seconds."""
    terminal = sys.stderr.isatty()
    return tqdm(
        desc=what, initial=done, total=total, unit=unit, unit_scale=True, ncols=80,
        file=sys.stderr if terminal else _Lines(), mininterval=0.1 if terminal else 30,
        disable=not shown,
    )  # fmt: skip
