"""What a training step needs of memory, estimated before it is taken, and what was held at most."""

import dataclasses
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch

from inputcodes.distributed import Processes
from inputcodes.loss import LOGITS_BYTES
from model import count_parameters

USABLE = 0.95  # of a GPU's memory; CUDA itself takes the rest


def memory_needed(config: Any, processes: int = 1) -> int:
    """Bytes that a step of `config`, a TrainConfig, holds at its peak in one of `processes`.

    An estimate for GPUs, within a tenth. With `recompute` a layer keeps its input alone.
    """
    parameters, _ = count_parameters(config)
    half = config.dtype == "bfloat16"
    # weight, gradient and AdamW's two moments; what DDP adds; the copy that autocast makes
    weights = parameters * (16 + 4 * (processes > 1) + 2 * half)
    # In a layer, for each token and position of the width: the states before and after each norm,
    # queries, keys, values and their mix, and the four times wider states of the MLP.
    tokens = config.batch_size // processes * config.block_size
    of_layer = 38 if half else 64
    layers = 4 * config.n_layer + of_layer if config.recompute else of_layer * config.n_layer
    states = tokens * config.n_embd * layers
    # The loss: logits, their copy in bfloat16, and the gradients of the head and its input.
    logits = min(tokens * config.vocab_size * 4, LOGITS_BYTES)
    gradients = (config.vocab_size + tokens) * config.n_embd * 4
    return int(weights + states + logits * (1.5 if half else 1) + gradients)


def memory_problem(config: Any) -> str:
    """Why the weights cannot be made on this machine, or its CPU not do a step; else empty."""
    needed = 4 * count_parameters(config)[0]
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not said, as on Windows
        return ""
    there_gb = f"and this machine has {there / 1e9:,.0f} GB"
    if needed > there:
        advice = "make n_layer or n_embd smaller"
        return f"the model needs {needed / 1e9:,.0f} GB for the weights alone, {there_gb}: {advice}"
    # An estimate, so that only what is far from it is refused. GPUs have a memory of their own.
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    step = memory_needed(config)
    if step > 2 * there and (config.device == "cpu" or not gpu):
        advice = "make batch_size or block_size smaller"
        return f"a step needs about {step / 1e9:,.0f} GB, {there_gb}: {advice}"
    return ""


def memory_report(config: Any, processes: Processes) -> str:
    """One line for the start of a run, and a second one where a GPU is too small for it."""
    needed, device = memory_needed(config, processes.world), processes.device
    size = f"{needed / 1e9:.1f} GB" if needed > 1e9 else f"{needed / 1e6:.0f} MB"
    line = f"memory: about {size} besides the program itself"
    if device.type != "cuda":
        return line
    there = torch.cuda.get_device_properties(device).total_memory
    line += f", of {there / 1e9:.1f} GB ({torch.cuda.get_device_name(device)})"
    if needed <= USABLE * there:
        return line
    recomputing = dataclasses.replace(config, recompute=True)
    remedies = [split_that_fits(config, processes.world, USABLE * there)]
    if memory_needed(recomputing, processes.world) <= USABLE * there:
        remedies.append("--recompute")
    elif split := split_that_fits(recomputing, processes.world, USABLE * there):
        remedies.append(f"--recompute {split}")
    words = " or ".join(words for words in remedies if words)
    advice = f"the same steps fit with {words}" if words else "make the model smaller"
    return f"{line}\nwarning: that will not fit; {advice}"


def split_that_fits(config: Any, processes: int, limit: float) -> str:
    """Words for the command line that split each step into more micro-steps, to fit in `limit`
    bytes; empty if none do."""
    share = config.batch_size // processes
    for parts in range(1, share + 1):
        split = {
            "batch_size": config.batch_size // parts,
            "gradient_accumulation_steps": config.gradient_accumulation_steps * parts,
        }
        smaller = dataclasses.replace(config, **split)
        if share % parts == 0 and memory_needed(smaller, processes) <= limit:
            return " ".join(f"--{name}={value}" for name, value in split.items())
    return ""


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
