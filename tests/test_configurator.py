"""Settings from defaults, files and words; everything wrong is found and reported together."""

import io
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest

from inputcodes.configurator import (
    ROOT,
    Output,
    Settings,
    UserError,
    command,
    configure,
    help_text,
    run_main,
    setting,
)


@dataclass(frozen=True)
class Example(Settings):
    n_layer: int = setting(6, "blocks", least=1)
    learning_rate: float = setting(1e-3, "peak rate")
    compile: bool = setting(False, "whether to compile")
    out_dir: str = setting("out", "where to write")
    dtype: str = setting("float32", "of weights", choices=lambda: ["float32", "bfloat16"])

    def problems(self) -> list[str]:
        return super().problems()


def write(path, text: str) -> str:
    path.write_text(text)
    return str(path)


def problems_of(*argv: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        configure(Example, argv)
    return str(caught.value).splitlines()


def test_defaults_then_files_then_words(tmp_path):
    first = write(tmp_path / "a.py", "n_layer = 2\nlearning_rate = 0.5\nout_dir = 'a'\n")
    second = write(tmp_path / "b.py", "learning_rate = 1  # a whole number will do\n")
    assert configure(Example, []) == Example()
    config = configure(Example, [first, second, "--out_dir=c", "--compile"])
    assert config == Example(2, 1.0, True, "c")
    assert type(config.learning_rate) is float


@dataclass(frozen=True)
class Lists(Settings):
    files: tuple[str, ...] = setting((), "names")
    tokens: tuple[str, ...] = setting((), "texts", spaces_count=True)


def test_parts_of_a_list_keep_their_spaces_where_those_count():
    config = configure(Lists, ["--files= a; b ; ;", "--tokens= in; i;; "])
    assert config == Lists(("a", "b"), (" in", " i", " "))


def test_words_are_read_as_the_type_of_their_field():
    config = configure(
        Example, ["--n_layer=3", "--learning_rate=4e-4", "--compile=true", "--out_dir=7"]
    )
    assert config == Example(3, 4e-4, True, "7")
    assert configure(Example, ["--compile=False"]) == Example(compile=False)
    assert configure(Example, ["--out_dir=a=b"]).out_dir == "a=b"
    assert configure(Example, ["--out_dir="]).out_dir == ""


def test_words_join_what_else_the_setting_has(tmp_path):
    @dataclass(frozen=True)
    class Reader(Settings):
        files: tuple[str, ...] = setting((), "what to read", positional=True)

    file = write(tmp_path / "e.py", "files = ['a.py']\n")
    assert configure(Reader, ["b", "c"]).files == ("b", "c")
    assert configure(Reader, [file, "b"]).files == ("b", "a.py")
    assert configure(Reader, [file, "b", "--files=c.py;d", "e"]).files == (
        "b", "c.py", "d", "e",
    )  # fmt: skip
    assert configure(Reader, ["--files", "b", "c"]).files == ("b", "c")


def test_all_problems_are_reported_together(tmp_path):
    text = "n_layers = 2\nlearning_rate = 'fast'\nn_layer = True\nout_dir = [1, 2]\n"
    file = write(tmp_path / "c.py", text)
    found = problems_of(file, "--compile=perhaps", "--n_layer=2.5", "--out_dri=x", "-x", "none.py")
    assert len(found) == 9
    text = "\n".join(found)
    assert "unknown setting 'n_layers' in" in text
    assert "did you mean 'n_layer'?" in text
    assert "learning_rate='fast'" in text
    assert "n_layer=True" in text
    assert f"out_dir=[1, 2] in {file}: expected a string, such as '1,2'" in text
    assert "compile='perhaps' on the command line: expected True or False" in text
    assert "n_layer='2.5' on the command line: expected a whole number" in text
    assert "did you mean 'out_dir'?" in text
    assert "cannot read '-x'" in text
    assert "no config file 'none.py'" in text


def test_functions_and_classes_in_a_config_file_are_no_settings(tmp_path):
    text = "from pathlib import Path\ndef half(n): return n // 2\nn_layer = half(8)\n"
    file = write(tmp_path / "c.py", f"{text}out_dir = str(Path('a') / 'b')\n")
    config = configure(Example, [file])
    assert (config.n_layer, config.out_dir) == (4, os.path.join("a", "b"))
    (problem,) = problems_of(write(tmp_path / "d.py", "learning_rate = max\n"))
    assert "learning_rate=<built-in function max>" in problem


def test_an_empty_list_and_paths_that_cannot_be_are_refused(tmp_path):
    file = write(tmp_path / "c.py", "files = ['a\\0b']\ntokens = '\\ud800'\n")
    with pytest.raises(UserError) as caught:
        configure(Lists, [file, "--files= ;"])
    assert str(caught.value).splitlines() == [
        "files=' ;' on the command line: expected one or more",
        f"files=['a\\x00b'] in {file}: expected no U+0000 or lone surrogate",
        f"tokens='\\ud800' in {file}: expected no U+0000 or lone surrogate",
    ]


def test_a_folder_without_a_name_is_that_of_a_run(tmp_path):
    folder = tmp_path / "a run"
    folder.mkdir()
    (problem,) = problems_of(str(folder))
    assert problem.endswith(f"--out_dir='{folder}'")


def test_impossible_values_are_the_settings_own_finding():
    assert problems_of("--n_layer=0") == ["n_layer=0: expected at least 1"]


def test_numbers_that_no_float_holds_are_one_line_each(tmp_path):
    file = write(tmp_path / "huge.py", "learning_rate = 10**400\n")
    assert problems_of(file, f"--n_layer={10**400}") == [
        f"n_layer={10**400}: expected a finite number",
        "learning_rate=inf: expected a finite number",
    ]


def test_a_file_that_does_not_run_is_named(tmp_path):
    for line, error in (("n_layer = 1 / 0", "ZeroDivisionError"), ("exit(3)", "SystemExit: 3")):
        (problem,) = problems_of(write(tmp_path / "broken.py", line))
        assert f"broken.py does not run: {error}" in problem


def test_a_file_may_import_and_keep_names_to_itself(tmp_path):
    file = write(tmp_path / "d.py", "import math\n_half = math.pi / 2\nlearning_rate = _half / 2\n")
    assert configure(Example, [file]).learning_rate == pytest.approx(0.785398, abs=1e-6)
    (problem,) = problems_of(write(tmp_path / "e.py", "half = 0.5\nlearning_rate = half / 2\n"))
    assert problem.endswith("; a name of your own begins with _")


def test_help_names_every_setting_within_80_columns():
    text = help_text(Example, "usage: example", {})
    assert all(name in text for name in ("n_layer = 6", "peak rate", "compile = False"))
    assert "of weights (float32 or bfloat16)" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("one\ntwo"), "error: one\nerror: two"),
        (OSError(28, "No space left on device", "a/b"), "error: a/b: No space left on device"),
        (KeyboardInterrupt(), 130),
        (SystemExit(143), 143),
    ],
)
def test_the_end_of_a_program_is_a_line_and_a_status(monkeypatch, error, status):
    def main(argv: list[str]) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["example.py"])
    with pytest.raises(SystemExit) as ended:
        run_main(main, Example, "usage: example")
    assert ended.value.code == status


# Stands for a library whose import takes long, and which catches everything, as some do.
SLOW_IMPORT = """
import sys, time
sys.stdout.write("importing\\n")
sys.stdout.flush()
try:
    time.sleep(60)
except BaseException:
    pass
raise ImportError("cannot load module more than once per process")
"""


COMMANDS = [
    *([f"{name}.py"] for name in ("train", "sample", "evaluate", "compare", "export", "bench")),
    ["prepare_data.py"],
    *(["-m", f"inputcodes.{name}"] for name in ("harness", "inspect_codes")),
]


@pytest.mark.parametrize("program", COMMANDS, ids=" ".join)
def test_control_c_during_the_imports_is_one_line(tmp_path, program):
    for library in ("torch", "numpy"):
        (tmp_path / f"{library}.py").write_text(SLOW_IMPORT)
    process = subprocess.Popen(
        [sys.executable, *program, "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=600) == ("", "stopped\n")
    assert process.returncode == 130


def test_importing_the_package_leaves_control_c_to_other_programs():
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_command_to_paste_is_quoted(monkeypatch, tmp_path):
    words = ["--out_dir=out/a b", "--prompt=it's $HOME"]
    assert shlex.split(command("train.py", *words))[2:] == words
    monkeypatch.chdir(tmp_path)
    script = shlex.split(command("train.py"))[1]
    assert (tmp_path / script).resolve().name == "train.py"
    assert (tmp_path / script).is_file()
    monkeypatch.setattr("os.path.relpath", lambda path: int("D:"))  # another drive
    assert os.path.isfile(shlex.split(command("train.py"))[1])


def test_values_that_depend_on_others_are_shown_in_the_help():
    text = help_text(Example, "usage: example", Example.complete({"n_layer": 3}))
    assert "n_layer = 3" in text


class Broken(io.StringIO):
    """A stream whose disk is full."""

    def write(self, text):
        raise OSError("No space left on device")

    flush = fileno = close = lambda self: self.write("")


def test_output_that_cannot_be_written_is_lost_and_ends_nothing(monkeypatch):
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    closed = io.StringIO()
    closed.close()
    for stream in (Broken(), closed, ascii_only, None):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "argv", ["program.py"])
        with pytest.raises(SystemExit) as ended:
            run_main(lambda argv: print("code é 1", flush=True), Settings, "")
        assert not ended.value.code
    assert ascii_only.buffer.getvalue() == b"code ? 1\n"


def test_a_closed_input_is_an_empty_one(monkeypatch):
    monkeypatch.setattr("sys.argv", ["program"])
    monkeypatch.setattr("sys.stdin", None)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    with pytest.raises(EOFError):
        run_main(lambda _: input(), Settings, "usage")


def test_no_file_takes_the_number_of_a_closed_output(tmp_path):
    """What writes to standard error by its number, as a signal's handler does, wrote into it."""
    script = tmp_path / "number.py"
    script.write_text(
        "from inputcodes.configurator import Settings, run_main\n"
        "run_main(lambda argv: print(open(argv[0]).fileno()), Settings, '')\n"
    )
    program = shlex.join([sys.executable, str(script), str(script)])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    number = subprocess.check_output(f"{program} 2>&-", shell=True, env=environment)
    assert int(number) > 2


def test_a_reader_that_has_gone_ends_only_a_program_that_writes_for_it():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        with pytest.raises(SystemExit) as end:
            print("a line", file=Output(stream, True), flush=True)
        assert end.value.code == 0
        print("a line", file=Output(stream), flush=True)


def test_a_full_disk_ends_a_program_that_writes_for_its_reader_with_the_reason():
    with open("/dev/full", "w") as stream:
        with pytest.raises(SystemExit, match="cannot write the output: No space left"):
            print("a line", file=Output(stream, True), flush=True)
        print("a line", file=Output(stream), flush=True)
