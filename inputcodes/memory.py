"""What a run has held of memory."""

import re
import sys
from pathlib import Path

import torch


def peak_mb(device: torch.device) -> float:
    """The most memory this process has held, in MB: on its GPU, else all that was resident.

    0 where the system does not say (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, whose getrusage counts what the parent held, too
        size = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if size:
            return int(size[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
