"""What a new user meets: early refusals, advice that works, output that never ends a run."""

import itertools
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import train
from inputcodes.checkpoint import read_checkpoint
from inputcodes.configurator import UserError, build, configure
from inputcodes.resume import OTHER_NAMES
from prepare_data import PrepareConfig, prepare_missing
from tests.helpers import ROOT, Program
from train import TrainConfig

NO_UNIX = """
import importlib, pathlib, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
sys.path.insert(0, ".")
for path in [*pathlib.Path(".").glob("*.py"), *pathlib.Path("inputcodes").glob("*.py")]:
    if path.stem != "__init__":
        importlib.import_module(".".join(path.with_suffix("").parts))
import train
train.main(sys.argv[1:])
"""


def outside(command: str, cwd: Path, log: Path) -> tuple[int, str]:
    """The exit code and output of a command that the program printed."""
    _, program, *argv = shlex.split(command)
    script = (cwd / program).resolve()  # printed as seen from there
    (code,), output = Program(log, argv, str(script), cwd=cwd).finish()
    return code, output


def test_missing_data_is_answered_with_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        train.main([str(ROOT / "config" / "fixed32.py"), "--device=cpu"])
    _, script, *argv = shlex.split(str(caught.value).split("`")[1])
    assert Path(script).resolve() == ROOT / "prepare_data.py"
    assert "config/data_fineweb_cosmopedia.py" in argv[0]
    assert configure(PrepareConfig, argv).dataset == "fineweb_cosmopedia"


@pytest.mark.parametrize("name", ["stdlib-0", "stdlib-0256"])
def test_a_name_of_no_vocabulary_is_not_made(tmp_path, name):
    """As 256 ids, which the 0 stands for in --vocab_size."""
    with pytest.raises(UserError, match=f"there is no data set .*{name}"):
        prepare_missing(str(tmp_path), name)


@pytest.mark.slow
def test_other_missing_data_is_made_of_ones_own_text(tmp_path):
    for number in range(100):
        (tmp_path / f"{number}.txt").write_text(f"Text {number} of many.\n" * 20)
    log = tmp_path / "log"
    code, shown = outside(f"python {ROOT / 'train.py'} --dataset=mine", tmp_path, log)
    assert code == 1
    code, shown = outside(shown.split("`")[1].replace("TEXT.txt", "*.txt"), tmp_path, log)
    assert code == 0, shown
    assert (tmp_path / "data" / "mine" / "meta.json").is_file()


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_names_of_nanogpt_are_answered(name):
    with pytest.raises(UserError) as caught:
        configure(TrainConfig, [f"--{name}=1"])
    assert OTHER_NAMES[name] in str(caught.value)


def test_a_short_run_needs_no_word_about_its_warm_up(words, tmp_path):
    warmups = [build(TrainConfig, {"max_steps": n}).warmup_steps for n in range(1, 1000)]
    assert {b - a for a, b in itertools.pairwise(warmups)} == {0, 1}  # no jump
    assert (warmups[0], warmups[60 - 1]) == (0, 15)
    assert set(warmups[800 - 1 :]) == {200}  # of all results that are kept
    with pytest.raises(UserError, match=r"warmup_steps \(60\) must be smaller than max_steps"):
        build(TrainConfig, {"max_steps": 60, "warmup_steps": 60})
    argv = [word for word in words(max_steps=6) if not word.startswith("--warmup_steps")]
    train.main(argv)
    assert read_checkpoint(tmp_path / "run" / "last.pt")[1]["step"] == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 30_000}, "training tokens are too few for block_size=30000"),
        ({"eval_tokens": 15}, "eval_tokens=15 do not fill one window of block_size=16"),
        ({"batch_size": 10**12}, "batch_size=1000000000000: expected at least 1 and at most"),
        ({"seed": 2**64}, "seed=18446744073709551616: expected at least 0 and at most"),
        ({"n_layer": 10**12}, "n_layer=1000000000000: expected at least 1 and at most"),
        ({"block_size": 10**9}, "block_size=1000000000: expected at least 1 and at most"),
        ({"n_embd": 2**18}, "make n_layer, n_embd, batch_size"),
        ({"batch_size": 2**20, "n_layer": 20, "n_embd": 512}, "batch_size, block_size or"),
        (
            {"batch_size": 2**20, "gradient_accumulation_steps": 2**20, "n_embd": 8},
            "or gradient_accumulation_steps smaller",
        ),
        ({"max_steps": 0}, "max_steps=0: expected at least 1"),
        ({"device": "meta"}, "expected cuda, mps or cpu"),
        ({"dataset": ""}, "dataset='': expected the name of a folder"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_step(words, tmp_path, changes, message):
    with pytest.raises(UserError) as caught:
        train.main(words(**changes))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_commands_at_the_end_work_with_blanks_in_their_paths(words, tmp_path, capsys):
    train.main(words("a run", max_steps=5, warmup_steps=1))
    shown = capsys.readouterr().out
    commands = shown.split("next: ")[1].splitlines()
    assert len(commands) == 3
    for command in commands:
        code, shown = outside(command, ROOT, tmp_path / "log")
        assert code == 0, shown
    assert (tmp_path / "a run" / "learned" / "best.pt").is_file()


@pytest.mark.slow
def test_output_never_ends_a_run_nor_do_missing_modules_of_unix(words, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"}
    processes = {}  # all at once, as each takes seconds to begin
    with open("/dev/full", "w") as full:
        for where, program, out in (
            ("full", ["train.py"], full),
            ("closed", ["train.py"], subprocess.PIPE),
            ("ascii", ["-c", NO_UNIX], subprocess.PIPE),
        ):
            processes[where] = subprocess.Popen(
                [sys.executable, *program, *words(where, max_steps=5, warmup_steps=1)],
                stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=environment,
            )  # fmt: skip
    processes["closed"].stdout.close()
    shown = processes["ascii"].communicate()[0].decode()
    assert "\r" not in shown  # no bar where there is no terminal
    assert "step      1: loss 5.5" in shown
    assert "seed 1, float32 on cpu" in shown
    assert "next: python sample.py" in shown
    for where, process in processes.items():
        assert process.wait() == 0, shown
        assert read_checkpoint(tmp_path / where / "last.pt")[1]["step"] == 5
