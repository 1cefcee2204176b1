"""Processes that join, stop and fail together; devices and what they compute with."""

import os
import queue
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from inputcodes import distributed
from inputcodes.configurator import UserError
from inputcodes.distributed import (
    PARENT,
    TORCHRUN,
    Processes,
    Stop,
    end_with_torchrun,
    join_processes,
    setup_device,
)
from tests.helpers import Program, finish, torchrun

HEAD = """
import contextlib, os, signal, sys, time
import torch
from inputcodes.configurator import UserError
from inputcodes.distributed import Processes, Stop, Stopped, join_processes, one_cause

def sums(processes):
    # all-reduces without end
    while True:
        processes.sum(torch.ones(3))
        yield
"""
FAIL = """
def main(kind):
    if kind == "early":
        raise UserError("the cause")
    with join_processes("cpu") as processes, Stop(processes).listening():
        for i, _ in enumerate(sums(processes)):
            if i == 20 and processes.rank == 1:
                raise {"user": UserError, "bug": ZeroDivisionError}[kind]("the cause")

with one_cause():
    try:
        main(sys.argv[1])
    except UserError as error:
        sys.exit(f"error: {error}")
"""
JOIN = """
with join_processes("cpu") as processes:
    processes.wait()
    print(processes.rank, processes.sum(torch.tensor([processes.rank + 1.0])).item())
"""
AGREE = """
with join_processes("cpu") as processes:
    stop = Stop(processes)
    with stop.listening():
        for i in range(10**6):
            try:
                stop.check()
            except Stopped:
                break
            if i == 30 and processes.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.001 * (1 + processes.rank))
    print("left at", i, "by", stop.signal)
"""
ALONE = """
stop = Stop(Processes(torch.device("cpu")))
with stop.listening():
    print("ready", flush=True)
    with contextlib.suppress(Stopped):
        while True:
            stop.check()
            time.sleep(0.01)
sys.exit(128 + stop.signal)
"""


@pytest.fixture
def program(tmp_path):
    """Starts a program, given as text, in one process or more that know of each other."""

    def start(text: str, *argv: str, processes: int = 1) -> Program:
        file, log = tmp_path / f"{len(argv)}.py", tmp_path / f"{'-'.join(argv)}.log"
        file.write_text(HEAD + text)
        return Program(log, list(argv), file, processes)

    return start


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["early", "user", "bug"])
def test_the_first_failure_is_the_last_word(tmp_path, kind):
    (tmp_path / "fail.py").write_text(HEAD + FAIL)
    # The other takes SIGTERM for a wish: it is to end by itself, not by torchrun's SIGKILL.
    process = torchrun([kind], str(tmp_path / "fail.py"), grace=600)
    output = finish(process)
    assert process.returncode == 1
    said, summary = output.split("FAILED\n")  # the latter is torchrun's
    line = {"bug": "ZeroDivisionError: the cause"}.get(kind, "error: the cause")
    assert said.count(line) == 1
    assert said.count("in one_cause") == (kind == "bug")  # one traceback, where there is a bug
    assert line in summary.split("Root Cause")[1]


@pytest.mark.slow
def test_processes_join_without_a_local_rank(program):
    """The Kubeflow training operator sets these four variables, and no others."""
    codes, output = program(JOIN, processes=2).finish()
    assert codes == [0, 0]
    assert sorted(output.splitlines()) == ["0 3.0", "1 3.0"]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_the_same_micro_step(program):
    codes, output = program(AGREE, processes=2).finish()
    left = [line for line in output.splitlines() if line.startswith("left")]
    assert codes == [0, 0], output
    assert left == ["left at 32 by 15"] * 2


@pytest.mark.slow
def test_the_first_signal_is_heard_at_once(program):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        alone = program(ALONE, number.name)
        while "ready\n" not in alone.output.read_text():
            assert alone.running
            time.sleep(0.01)
        alone.send_signal(number)
        codes, output = alone.finish()
        assert output.startswith(f"ready\n\n{number.name}: saving")
        assert "once more: stop at once, without saving" in output
        assert codes == [128 + number]


def test_a_second_signal_ends_at_once_unless_it_is_the_same_wish(monkeypatch):
    now, raised = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    stop = Stop(Processes(torch.device("cpu")))
    stop.signal = signal.SIGTERM  # by another process, which was signalled before
    with stop.listening():
        for now[0] in (100.0, 100.2):  # a batch system signals torchrun and its processes
            os.kill(os.getpid(), signal.SIGTERM)
        assert not raised
        now[0] = 103.0
        os.kill(os.getpid(), signal.SIGTERM)
        assert raised == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop(Processes(torch.device("cpu"))).listening():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_end_of_the_program_that_started_it_is_a_wish_to_stop(monkeypatch):
    stop = Stop(Processes(torch.device("cpu")))
    assert not stop.asked()
    with subprocess.Popen([sys.executable, "-c", ""]) as parent:
        pass
    monkeypatch.setenv(PARENT, str(parent.pid))
    assert stop.asked()
    assert stop.signal == signal.SIGTERM
    stop = Stop(Processes(torch.device("cpu")))
    monkeypatch.setenv(PARENT, str(os.getppid()))
    assert not stop.asked()
    for number, gone in (("abc", False), ("9" * 30, True)):
        monkeypatch.setenv(PARENT, number)
        assert bool(Stop(Processes(torch.device("cpu"))).asked()) == gone
    monkeypatch.setenv(PARENT, str(os.getppid()))
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert stop.asked()
    monkeypatch.delenv(PARENT)  # a shell that ends takes nothing with it
    assert not Stop(Processes(torch.device("cpu"))).asked()
    monkeypatch.setenv(TORCHRUN, "1")  # which ended before the run was ready
    assert Stop(Processes(torch.device("cpu"))).asked()


def test_what_waits_to_join_ends_with_torchrun(monkeypatch):
    statuses = queue.SimpleQueue()

    def wait_for_the_others(*_, **__):
        assert not callable(signal.getsignal(signal.SIGINT))  # Ctrl-C ends it, as gloo lets none
        sys.exit(statuses.get(timeout=60))

    monkeypatch.setattr(distributed, "_join", wait_for_the_others)
    monkeypatch.setattr(os, "_exit", statuses.put)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    for name, value in ((TORCHRUN, "1"), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)), join_processes("cpu"):
        pass


def test_what_has_nothing_to_save_ends_with_torchrun(monkeypatch):
    statuses = queue.SimpleQueue()
    monkeypatch.setattr(os, "_exit", statuses.put)
    monkeypatch.setenv(TORCHRUN, "1")
    end_with_torchrun(Processes(torch.device("cpu")))
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert statuses.get(timeout=60) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("name", "gpus", "words"),
    [
        ("cuda:1", 2, "device='cuda:1': each process takes its own"),
        ("auto", 1, "--nproc_per_node=1"),
    ],
)
def test_devices_that_several_processes_cannot_take(monkeypatch, name, gpus, words):
    for key, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(UserError, match=words), join_processes(name):
        pass


def test_bfloat16_needs_a_card_that_computes_in_it(monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old Card")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert setup_device("cuda", local_rank=3) == torch.device("cuda:3")
    with pytest.raises(UserError, match="Old Card does not compute in it; use float32"):
        setup_device("cuda", "bfloat16")


def test_precision_and_determinism_are_as_asked(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    setup_device("cpu", matmul_precision="medium", deterministic=True)
    assert torch.get_float32_matmul_precision() == "medium"
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    setup_device("cpu")
    assert not torch.are_deterministic_algorithms_enabled()
    a = torch.randn(300, 300)
    assert (a @ a - (a.double() @ a.double())).abs().max() < 1e-3  # float32, by whichever library


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "x", "WORLD_SIZE": "1"}, "invalid literal"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "MASTER_ADDR"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2: expected 0 to 1, as WORLD_SIZE=2"),
    ],
)
def test_half_an_environment_is_refused_in_one_line(monkeypatch, variables, words):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    message = f"cannot join the other processes: .*{words}"
    with pytest.raises(UserError, match=message) as caught, join_processes("cpu"):
        pass
    assert len(str(caught.value).splitlines()) == 1


def test_a_port_that_is_taken_is_one_line(monkeypatch):
    """As when a second run on the machine was given the port of the first."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address, port = taken.getsockname()
        known = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": address, "MASTER_PORT": port}
        for name, value in known.items():
            monkeypatch.setenv(name, str(value))
        message = "cannot join the other processes: .* address already in use"
        with pytest.raises(UserError, match=message) as caught, join_processes("cpu"):
            pass
    assert len(str(caught.value).splitlines()) == 1
