"""An ordered map over documents in worker processes, with bounded memory.

The stream is cut into chunks; each chunk carries the state of the stream after it, so that whoever
uses the results can record exactly how far they reach.
"""

import collections
import concurrent.futures
import concurrent.futures.process
import dataclasses
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from inputcodes.configurator import UserError
from inputcodes.corpus import Stream

CHUNK_CHARACTERS = 1 << 20  # what a worker gets at a time
CHUNK_DOCUMENTS = 4096
POOL_CHUNKS = 24  # less input than this is done sooner than worker processes start

Result = TypeVar("Result")
_job: Callable[[list[Any]], Any]  # in a worker: what it does with a chunk


@dataclasses.dataclass
class Chunk:
    """Some documents, their size in characters, and the state of the stream after them."""

    documents: list[Any]
    size: int
    state: dict[str, Any]


def chunks_of(stream: Stream) -> Iterator[Chunk]:
    """The stream in portions of CHUNK_CHARACTERS or one document more."""
    documents: list[Any] = []
    size = 0
    for split, document in stream:
        documents.append((split, document))
        size += _characters(document)
        if size >= CHUNK_CHARACTERS or len(documents) >= CHUNK_DOCUMENTS:
            yield Chunk(documents, size, stream.state())
            documents, size = [], 0
    if documents:
        yield Chunk(documents, size, stream.state())


def _characters(document: Any) -> int:
    """The size of a text, or of all texts of a conversation."""
    if isinstance(document, dict):
        return sum(map(_characters, document.values()))
    if isinstance(document, list):
        return sum(map(_characters, document))
    return len(document) if isinstance(document, str | bytes) else 0


def map_chunks(
    job: Callable[[list[Any]], Result], chunks: Iterator[Chunk], workers: int
) -> Generator[tuple[Chunk, Result]]:
    """Each chunk with its result, in order; at most two chunks a worker are in memory.

    `workers` = 0 means one for each core. Input of fewer than POOL_CHUNKS is done in this process.
    """
    workers = workers or _cores()
    head = list(itertools.islice(chunks, POOL_CHUNKS))
    chunks = itertools.chain(head, chunks)
    if workers == 1 or len(head) < POOL_CHUNKS:
        yield from ((chunk, job(chunk.documents)) for chunk in chunks)
        return
    del head  # or its chunks would stay in memory to the end
    waiting: collections.deque[tuple[Chunk, concurrent.futures.Future[Result]]]
    waiting = collections.deque()
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, spawn, _start_worker, (job,)) as pool:
        try:
            for chunk in chunks:
                waiting.append((chunk, pool.submit(_work, chunk.documents)))
                if len(waiting) >= 2 * workers:
                    yield _result(waiting)
            while waiting:
                yield _result(waiting)
        finally:
            pool.shutdown(cancel_futures=True)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: those that this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _result(waiting: collections.deque[tuple[Chunk, Any]]) -> tuple[Chunk, Any]:
    chunk, future = waiting.popleft()
    try:
        return chunk, future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            "a worker process died, perhaps for lack of memory: start the same command again, "
            "with fewer --workers"
        ) from error


def _start_worker(job: Callable[[list[Any]], Any]) -> None:
    """In a new process: keep the job, leave Ctrl-C to the parent and end when the parent does."""
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only workers run this"
    parent.join()
    os._exit(1)


def _work(documents: list[Any]) -> Any:
    return _job(documents)
