"""The device a program computes on, the processes that train together, and how they end.

Each process computes on a device of its own. What they tell each other beside the gradients (that
one was asked to stop, that slow work is done) goes through a second group over gloo, so that it
neither waits for a GPU nor counts against the time limit of the gradients' group.
"""

import contextlib
import datetime
import json
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from inputcodes import STARTED_BY
from inputcodes.configurator import UserError

PATIENCE = datetime.timedelta(days=1)  # for slow work of one process, as preparing data is
TORCHRUN = "TORCHELASTIC_RUN_ID"  # a variable that torchrun sets
PARENT = "INPUT_CODES_PARENT"  # the process id of the program whose end is also this one's
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}


@dataclass(frozen=True)
class Processes:
    """This process among all that compute together; alone by default."""

    device: torch.device
    rank: int = 0
    world: int = 1
    side: dist.ProcessGroup | None = None  # all of them over gloo, where there are several

    @property
    def first(self) -> bool:  # the one process that prints and writes
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        if self.world > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Return once every process has come here, however long that takes."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(()), group=self.side)


@contextlib.contextmanager
def join_processes(name: str, **arithmetic: Any) -> Iterator[Processes]:
    """This process on the device that `setup_device` makes ready, in the group of all if any.

    `arithmetic` is its dtype, matmul_precision and deterministic. There are other processes if RANK
    and WORLD_SIZE are set, as torchrun and Kubeflow do.
    """
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        yield Processes(setup_device(name, **arithmetic))
        return
    joined = threading.Event()  # which gloo tries for half an hour
    end_with_torchrun(Processes(torch.device("cpu")), until=joined)
    try:
        with stop_signals(signal.SIG_DFL):  # no handler of Python's is run while gloo waits
            processes = _join(name, **arithmetic)
        joined.set()
    except UserError:
        raise
    except (ValueError, dist.DistNetworkError, dist.DistStoreError) as error:
        # Variables are missing or are no numbers, or a port is taken or does not answer.
        raise UserError(
            f"cannot join the other processes: {str(error).splitlines()[0]}; RANK, WORLD_SIZE,"
            " MASTER_ADDR and MASTER_PORT, as torchrun sets them, are needed, or none of them"
        ) from error
    yield processes
    # Not after an error: a peer may be waiting in an all-reduce, and the end of the group for it.
    # Gloo's threads need the interpreter to let go of the last tensors, and the end of the
    # group waits for those threads without handing it over: both hung in one run of ten.
    time.sleep(0.2)
    dist.destroy_process_group()


def _join(name: str, **arithmetic: Any) -> Processes:
    """This process in the group of those that torchrun's variables name."""
    gpus, rank = torch.cuda.device_count(), int(os.environ["RANK"])
    local_rank = int(os.environ.get("LOCAL_RANK", rank % max(gpus, 1)))
    world = int(os.environ["WORLD_SIZE"])
    if not 0 <= rank < world:  # for which gloo would wait without end
        raise ValueError(f"RANK={rank}: expected 0 to {world - 1}, as WORLD_SIZE={world}")
    if name not in ("auto", "cuda", "cpu"):
        raise UserError(f"device={name!r}: each process takes its own, so pass cuda, cpu or auto")
    if name != "cpu" and local_rank >= gpus > 0:
        raise UserError(f"more processes than GPUs here: pass --nproc_per_node={gpus} to torchrun")
    if name == "auto" and not gpus:
        name = "cpu"
    device = setup_device(name, **arithmetic, local_rank=local_rank)
    nccl = device.type == "cuda"
    dist.init_process_group("nccl" if nccl else "gloo", device_id=device if nccl else None)
    side = dist.new_group(backend="gloo", timeout=PATIENCE)
    return Processes(device, dist.get_rank(), dist.get_world_size(), side)


def setup_device(
    name: str,
    dtype: str = "float32",
    matmul_precision: str = "highest",
    deterministic: bool = False,
    local_rank: int = 0,
) -> torch.device:
    """The device of that name ("auto": CUDA, then MPS, then CPU), its arithmetic settled.

    `matmul_precision` is PyTorch's: what float32 products may round to. Processes of one machine
    take one GPU each, by `local_rank`.
    """
    # Both variables are read when CUDA starts. Segments that grow leave no gaps between blocks.
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    if name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else name
    try:
        device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
        if device.type not in ("cuda", "mps", "cpu"):
            raise RuntimeError("expected cuda, mps or cpu")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0].partition(". ")[0]
        raise UserError(f"device={name!r} cannot be used here ({why}): try auto or cpu") from error
    torch.set_float32_matmul_precision(matmul_precision)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        if dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            card = torch.cuda.get_device_name(device)
            raise UserError(f"dtype='bfloat16': {card} does not compute in it; use float32")
    if device.type == "cpu":
        # Large tensors in huge pages: the first touch of 4 KiB pages took a tenth of a step.
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        # "medium" hands products to oneDNN, 1.5 times as fast, and on CPUs with AMX rounds to
        # bfloat16. Where a probe shows that it does not, it costs no precision and is used.
        torch.set_float32_matmul_precision("medium")
        a = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
        rounding = (a @ a).double() - a.double() @ a.double()
        if rounding.abs().max() > 1e-3:  # float32 errs by 1e-5 here, bfloat16 by 0.1
            torch.set_float32_matmul_precision(matmul_precision)
    return device


def check_compiler(device: torch.device) -> None:
    """Raise UserError if torch.compile lacks what it would look for in the first step."""
    if device.type != "cpu":
        return
    from torch._inductor.cpp_builder import get_cpp_compiler  # slow to import

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise UserError(
            f"compile needs a C++ compiler ({error}): install g++ or name yours in CXX, or leave"
            " --compile out"
        ) from error


def autocast(dtype: str, device: torch.device) -> torch.autocast:
    """The context in which `dtype` = "bfloat16" computes its products in bfloat16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def peak_mb(device: torch.device) -> float:
    """Peak memory in MB, of the GPU or else of this process; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, whose getrusage counts what the parent held, too
        size = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if size:
            return int(size[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


@contextlib.contextmanager
def stop_signals(
    handle: Callable[[int, FrameType | None], None] | signal.Handlers,
) -> Iterator[None]:
    """Let `handle` take the signals that end a program."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup ignores SIGHUP, and so does the program
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stopped(Exception):
    """The run ends before its last step, because it was asked to."""


class Stop:
    """The wish to end a run, heard by any process and agreed by all at the same micro-step."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.signal = 0  # that was heard here or by another process; 0: none
        self._heard_at = math.inf
        self._largest = torch.tensor(0)  # the largest `signal` of all processes
        self._question: dist.Work | None = None

    def listening(self) -> contextlib.AbstractContextManager[None]:
        return stop_signals(self._hear)

    def check(self) -> None:
        """Raise Stopped, in all processes at the same call, if one of them was asked to stop.

        All call it equally often. Several get the answer to the question of the call before,
        which travelled while they computed.
        """
        several = self.processes.world > 1
        if self._question:
            self._question.wait()
        if heard := int(self._largest) if several else self.asked():
            self.signal = heard
            raise Stopped
        if several:
            self._largest = torch.tensor(self.asked())
            self._question = dist.all_reduce(
                self._largest, dist.ReduceOp.MAX, self.processes.side, async_op=True
            )

    def asked(self) -> int:
        """The signal by which this process was asked to stop; SIGTERM if its parent is gone."""
        if not self.signal and self._parent_is_gone():
            self.signal = signal.SIGTERM
        return self.signal

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._heard_at > 1:  # not at once: a batch system signals torchrun and this, too
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._heard_at = min(self._heard_at, now)
        if not self.signal:
            self.signal = number
            if self.processes.first:
                say(
                    f"\n{signal.Signals(number).name}: saving the last whole step, then stopping"
                    " (once more: stop at once, without saving)"
                )

    def _parent_is_gone(self) -> bool:
        """Whether torchrun, or the program that PARENT names, no longer runs."""
        watched = os.environ.get(PARENT, "")
        watched *= watched.isdecimal()  # what is no number names no program
        gone = os.getppid() != STARTED_BY and (watched or TORCHRUN in os.environ)
        if watched and sys.platform != "win32":  # perhaps the grandparent, with torchrun between
            try:
                os.kill(int(watched), 0)  # sends nothing
            except (OSError, OverflowError):  # there is none, or it is another user's
                return True
        return bool(gone)


def end_with_torchrun(processes: Processes, until: threading.Event | None = None) -> None:
    """End this process, which has nothing to save `until` that, with torchrun, however it ends."""
    stop, over = Stop(processes), until or threading.Event()

    def watch() -> None:
        while not stop.asked():
            if over.wait(0.5):
                return
        os._exit(128 + stop.signal)

    if TORCHRUN in os.environ:
        threading.Thread(target=watch, daemon=True).start()


def say(text: str) -> None:
    """Write a line to standard error, also from within a signal's handler; never fails."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


@contextlib.contextmanager
def one_cause() -> Iterator[None]:
    """Let the first of several processes that fails say why, and the others end in silence.

    Each ends at once, without leaving the group, so that peers who wait for it fail too.
    """
    try:
        yield
    except BaseException as e:
        cause = e.code if isinstance(e, SystemExit) else traceback.format_exc()
        if "RANK" not in os.environ or not isinstance(cause, str):
            raise
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        if TORCHRUN not in os.environ or _fails_first():
            say(cause)
            if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # for torchrun's own summary
                error = {"message": cause, "extraInfo": {"timestamp": str(int(time.time()))}}
                Path(file).write_text(json.dumps({"message": error}), encoding="utf-8")
        else:
            time.sleep(1)  # so that torchrun, too, takes the first for the cause
        os._exit(1)


def _fails_first() -> bool:
    """Whether no other process of this start of torchrun has failed before."""
    address, soon = os.environ["MASTER_ADDR"], datetime.timedelta(seconds=5)
    try:
        store = dist.TCPStore(address, int(os.environ["MASTER_PORT"]), timeout=soon)
        return store.add(f"failed/{os.environ['TORCHELASTIC_RESTART_COUNT']}", 1) == 1
    except RuntimeError:  # the store is gone, and torchrun with it
        return True
