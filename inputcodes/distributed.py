"""The device a program computes on, and the processes that train together under torchrun."""

import contextlib
import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from inputcodes.configurator import UserError


@dataclass(frozen=True)
class Processes:
    """This process among all that compute together; alone by default."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one process that prints and writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes."""
        if self.world > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Return once every process has come here."""
        if self.world > 1:
            dist.barrier()


@contextlib.contextmanager
def join_processes(device_name: str, tf32: bool = False) -> Iterator[Processes]:
    """This process on its device; started by torchrun, within the group of all."""
    if "RANK" not in os.environ:
        yield Processes(setup_device(device_name, tf32))
        return
    device = setup_device(device_name, tf32, int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(device, dist.get_rank(), dist.get_world_size())
    finally:
        # Gloo's threads need the interpreter to let go of the last tensors, and the end of the
        # group waits for those threads without handing it over: both hung in one run of ten.
        time.sleep(0.2)
        dist.destroy_process_group()


def setup_device(name: str, tf32: bool = False, local_rank: int = 0) -> torch.device:
    """The device of that name ("auto": CUDA, then MPS, then CPU), its float32 products settled.

    Processes of one machine take one GPU each, by `local_rank`. On CUDA float32 is float32 unless
    `tf32`. On a CPU "medium" hands the products to oneDNN, 1.5 times as fast, where a probe shows
    that it keeps float32's precision (on CPUs with AMX it would round to bfloat16). Raises
    UserError if this machine has no such device.
    """
    if name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else name
    try:
        device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"device={name!r} cannot be used here ({reason}): try auto or cpu"
        ) from error
    torch.set_float32_matmul_precision("highest")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    if device.type == "cpu":
        # Large tensors in huge pages: the first touch of 4 KiB pages took a tenth of a step.
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        torch.set_float32_matmul_precision("medium")
        a = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
        rounding = (a @ a).double() - a.double() @ a.double()
        if rounding.abs().max() > 1e-3:  # float32 errs by 1e-5 here, bfloat16 by 0.1
            torch.set_float32_matmul_precision("highest")
    return device


def autocast(dtype: str, device: torch.device) -> torch.autocast:
    """The context in which `dtype` = "bfloat16" computes its products in bfloat16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def peak_mb(device: torch.device) -> float:
    """The most memory this process has held, in MB: on its GPU, else all that was resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, whose getrusage counts what the parent held, too
        size = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if size:
            return int(size[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
