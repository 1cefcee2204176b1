"""Typed configuration: defaults < config files < command line.

A program describes its settings once, in a frozen dataclass that inherits `Settings` and whose
fields are made by `setting`: meaning, default, bounds and role. `python train.py
config/fixed32.py --seed=2` reads the file as plain Python assignments, in a namespace of its own,
and overrides one field. Unknown names, wrong types and impossible values are reported together,
before anything is built.
"""

import contextlib
import dataclasses
import difflib
import inspect
import io
import math
import multiprocessing
import operator
import os
import re
import runpy
import shlex
import sys
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TextIO, TypeVar

ROOT = Path(__file__).resolve().parent.parent  # of the program
LARGEST = sys.float_info.max  # of a setting, whole numbers included: arithmetic may mix them
TRUE_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
NOUNS = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}
NOUNS[tuple] = "a list of strings"
NO_PATH = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # the other surrogates are bytes of paths


class UserError(ValueError):
    """What the user of a script can fix; printed without a traceback, one problem per line.

    Whatever reads what a user gave, settings or files, may raise it, so few docstrings say so.
    """


def refuse(problems: Sequence[str]) -> None:
    """Raise UserError with all the problems, if there are any."""
    if problems:
        raise UserError("\n".join(problems))


def setting(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | Callable[[], Sequence[str]] = (),
    free_on_resume: bool = False,
    explicit_on_resume: bool = False,
    of_input_layer: bool = False,
    positional: bool = False,
    spaces_count: bool = False,
    is_path: bool = False,
) -> Any:
    """A dataclass field with its meaning, unit and special values, its bounds and its role.

    The default's type is the setting's: bool, int, float, str, or tuple for a list of strings.
    `choices` may be a function where the names are not known yet. A resumed run may have any value
    of a setting that is `free_on_resume`, and another one of an `explicit_on_resume` setting if the
    command line says so; the others are fixed. Words without a name join the list that is
    `positional`, before what a config file has. The command line's parts of a list lose the spaces
    around them unless `spaces_count`. In one that `is_path` a `~` is the home, as in a shell, and a
    slash at the end does not count.
    """
    return dataclasses.field(default=default, metadata=locals())  # all that was said of it


@dataclasses.dataclass(frozen=True)
class Settings:
    """The base of every configuration: knows the bounds of its fields."""

    renamed: ClassVar[Mapping[str, str]] = {}  # names of other programs: what to use instead
    folder_advice: ClassVar[str] = "the folder of a run is given as"  # before --out_dir=FOLDER

    @classmethod
    def complete(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given` with the defaults that depend on it; subclasses add theirs."""
        return dict(given)

    def problems(self) -> list[str]:
        """One sentence for every impossible value or combination; subclasses add theirs."""
        return [
            f"{field.name}={value!r}: expected {expected}"
            for field in dataclasses.fields(self)
            for value in [getattr(self, field.name)]
            if (expected := _expected(value, field.metadata))
        ]


S = TypeVar("S", bound=Settings)


def _expected(value: Any, bounds: Mapping[str, Any]) -> str:
    """What the bounds of a setting ask for, if `value` is not that; else empty."""
    choices = bounds["choices"]() if callable(bounds["choices"]) else bounds["choices"]
    if choices:
        others = ", ".join(filter(None, choices[:-1]))
        return "" if value in choices else f"{others} or {choices[-1]}"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return ""
    limits = {
        "at least": (bounds["least"], operator.ge),
        "above": (bounds["above"], operator.gt),
        "at most": (bounds["most"], operator.le),
        "below": (bounds["below"], operator.lt),
    }
    given = {words: pair for words, pair in limits.items() if pair[0] is not None}
    if not all(holds(value, bound) for bound, holds in given.values()):
        return " and ".join(f"{words} {bound:,}" for words, (bound, _) in given.items())
    return "" if abs(value) <= LARGEST else "a finite number"


def names_where(cls: type[Settings], role: str) -> set[str]:
    """The settings whose definition says `role`, such as "free_on_resume"."""
    return {field.name for field in dataclasses.fields(cls) if field.metadata[role]}


def configure(cls: type[S], argv: Sequence[str]) -> S:
    """Build `cls` from defaults, config files and words; UserError with all problems."""
    return build(cls, given_values(cls, argv))


def given_values(cls: type[Settings], argv: Sequence[str]) -> dict[str, Any]:
    """What the config files and words of `argv` set, of known names and right types, by name."""
    problems, values = list[str](), dict[str, Any]()
    files, words, options = _split(cls, argv, problems)
    for file in files:
        values |= _checked(cls, _read_file(file, problems), f"in {file}", problems)
    if words and (positional := names_where(cls, "positional")):
        name = positional.pop()
        options[name] = (*words, *(values | options).get(name, ()))
    else:
        for word in words:
            advice = "a config file ends in .py, a setting is --name=value"
            if os.path.isdir(word) and hasattr(cls, "out_dir"):
                advice = f"{cls.folder_advice} --out_dir={shlex.quote(word)}"
            problems.append(f"cannot read {word!r}: {advice}")
    values |= _checked(cls, options, "on the command line", problems)
    refuse(problems)
    return values


def config_files(cls: type[Settings], argv: Sequence[str]) -> list[str]:
    """The words of a command line that name config files, not the values of settings."""
    return _split(cls, argv, [])[0]


def build(cls: type[S], values: Mapping[str, Any]) -> S:
    """The defaults with `values`; UserError with all that is impossible about them."""
    config = cls(**cls.complete(values))
    refuse(config.problems())
    return config


def from_record(cls: type[S], record: Any, file: Path) -> S:
    """The settings that `file` recorded; those it does not know have their defaults."""
    return cls(**recorded(cls, record, file))


def recorded(cls: type[Settings], record: Any, file: Path) -> dict[str, Any]:
    """The settings of `cls` that `file` recorded, by name."""
    if not isinstance(record, dict):
        raise UserError(f"{file} is damaged: expected settings by name, found {record!r:.60}")
    kinds, problems = _kinds(cls), list[str]()
    known = {name: value for name, value in record.items() if name in kinds}
    values = _checked(cls, known, f"in {file}", problems)
    refuse(problems)
    refuse([f"{file}: {problem}" for problem in Settings.problems(cls(**values))])
    return values


class Output:
    """A text stream that never fails: what cannot be written is lost, and the program goes on.

    If `needed`, the program ends instead: in silence where the reader has gone, as `head` does.
    """

    def __init__(self, stream: TextIO, needed: bool = False) -> None:
        self._stream, self._needed = stream, needed

    def write(self, text: str) -> int:
        encoding = self._stream.encoding or "ascii"
        self._try(self._stream.write, text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[..., object], *args: str) -> None:
        try:
            action(*args)
        except (OSError, ValueError) as error:  # no reader, a full disk; or it is closed
            with contextlib.suppress(OSError, ValueError):  # what the buffer holds vanishes, too
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if self._needed:
                gone = isinstance(error, BrokenPipeError)
                reason = getattr(error, "strerror", None) or error
                sys.exit(0 if gone else f"error: cannot write the output: {reason}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run_main(
    main: Callable[[list[str]], None], cls: type[Settings], usage: str, output_needed: bool = False
) -> NoReturn:
    """Run a script's `main(argv)`, or print its help if that is asked for.

    A UserError, or the system's error about a file, is printed in plain words and exits with 1;
    Ctrl-C exits with 130; any other error is a bug and keeps its traceback. Output that cannot be
    written is lost and ends nothing, unless it is all that the script is for (`output_needed`).
    """
    argv = sys.argv[1:]
    while os.open(os.devnull, os.O_RDWR) < 3:  # a file would take the number of a closed output
        pass
    sys.stdin = sys.stdin or io.StringIO()  # of a closed one there is nothing to read
    out = Output(sys.stdout or io.StringIO(), output_needed)
    err = Output(sys.stderr or io.StringIO())
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if {"-h", "--help"} & set(argv):
                words = [word for word in argv if word not in ("-h", "--help")]
                print(help_text(cls, usage, cls.complete(given_values(cls, words))))
            else:
                main(argv)
    except UserError as error:
        sys.exit("\n".join(f"error: {line}" for line in str(error).splitlines()))
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(f"error: {error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        exit_interrupted()
    finally:
        out.flush()
    sys.exit(0)


def exit_interrupted(at_once: bool = False) -> NoReturn:
    """End as Ctrl-C asks, with one line and 130; `at_once`: without an exception to catch."""
    if os.environ.get("RANK", "0") == "0":
        print("stopped", file=Output(sys.stderr or io.StringIO()), flush=True)
    if at_once:
        os._exit(130)
    sys.exit(130)


def end_with_parent() -> None:
    """In a worker process: end it when its parent ends, which a signal to the parent may not do."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only workers call this"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def command(script: str, *words: str) -> str:
    """A shell command that runs a script of the program from here, quoted where need be."""
    return shlex.join(["python", from_here(ROOT / script), *words])


def from_here(path: Path) -> str:
    """The path from the working directory, or the whole one of what is on another drive."""
    try:
        return os.path.relpath(path)
    except ValueError:  # on Windows
        return str(path)


def help_text(cls: type[Settings], usage: str, values: Mapping[str, Any]) -> str:
    """The usage and every setting with the value that would run, those of `cls` itself first."""
    own = inspect.get_annotations(cls)
    fields = sorted(dataclasses.fields(cls), key=lambda field: field.name not in own)
    lines = [usage, "", "settings (in a config file as name = value, or --name=value):"]
    for field in fields:
        value = values.get(field.name, field.default)
        lines.append(f"  {field.name} = {value!r}")
        choices = _expected(None, field.metadata)  # none of a number: bounds are not shown
        meaning = field.metadata["help"] + f" ({choices})" * bool(choices)
        lines += textwrap.indent(textwrap.fill(meaning, 72), " " * 6).splitlines()
    return "\n".join(lines)


def _split(
    cls: type[Settings], argv: Sequence[str], problems: list[str]
) -> tuple[list[str], list[str], dict[str, Any]]:
    """Config files, other words, and the options as values of their settings' types."""
    kinds, rest = _kinds(cls), list(argv)
    files, words, options = list[str](), list[str](), dict[str, Any]()
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            (files if word.endswith(".py") else words).append(word)
            continue
        name, equals, text = word.removeprefix("--").partition("=")
        kind = kinds.get(name, str)
        if not equals and kind is bool:
            text = rest.pop(0) if rest and rest[0].lower() in TRUE_WORDS else "true"
        elif not equals and word.startswith("--") and rest and not rest[0].startswith("--"):
            text = rest.pop(0)
        elif not equals or not word.startswith("--"):
            problems.append(f"cannot read {word!r}: write --name=value")
            continue
        try:
            if kind is tuple:
                trim = str if name in names_where(cls, "spaces_count") else str.strip
                parts = [text] if os.path.exists(local_path(text)) else text.split(";")
                options[name] = tuple(part for part in map(trim, parts) if part)
                if not options[name]:  # of a variable of the shell that is not set, say
                    problems.append(f"{name}={text!r} on the command line: expected one or more")
                if name in names_where(cls, "positional"):  # in their order among the words
                    words += options[name]
                    options[name] = ()
            else:
                options[name] = TRUE_WORDS[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            problems.append(f"{name}={text!r} on the command line: expected {NOUNS[kind]}")
    return files, words, options


def _read_file(file: str, problems: list[str]) -> dict[str, Any]:
    """The public names that a config file assigns; imports of modules do not count."""
    if not os.path.isfile(file):
        there = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("config/**/[!_]*.py")]
        near = [from_here(ROOT / name) for name in difflib.get_close_matches(file, there, cutoff=0)]
        problems.append(f"no config file {file!r}: did you mean one of {', '.join(near)}?")
        return {}
    try:
        namespace = runpy.run_path(file)
    except (Exception, SystemExit) as error:
        problems.append(f"{file} does not run: {type(error).__name__}: {error}")
        return {}
    names = [name for name in namespace if not name.startswith("_")]
    return {name: namespace[name] for name in names if not inspect.ismodule(namespace[name])}


def _checked(
    cls: type[Settings], values: Mapping[str, Any], where: str, problems: list[str]
) -> dict[str, Any]:
    """The values that are known and of the right type; the others are reported."""
    kinds = _kinds(cls)
    good: dict[str, Any] = {}
    for name, value in values.items():
        kind, parts = kinds.get(name), value if isinstance(value, list | tuple) else [value]
        if kind is None and callable(value):
            continue  # a function or a class that a config file defines or imports
        if kind is None:
            near = difflib.get_close_matches(name, kinds, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "--help lists the known ones"
            hint += "; a name of your own begins with _" * where.startswith("in ")
            problems.append(f"unknown setting {name!r} {where}: {cls.renamed.get(name, hint)}")
        elif any(NO_PATH.search(text) for text in parts if isinstance(text, str)):
            problems.append(f"{name}={value!r} {where}: expected no U+0000 or lone surrogate")
        elif type(value) is kind:
            is_path = name in names_where(cls, "is_path")
            good[name] = local_path(str(value)) if is_path else value
        elif kind is float and type(value) is int:
            good[name] = float(value) if abs(value) <= LARGEST else math.inf
        elif kind is tuple and isinstance(value, list) and all(type(v) is str for v in value):
            good[name] = tuple(value)
        else:
            written = kind is str and all(isinstance(part, int | float | str) for part in parts)
            hint = f", such as {','.join(map(str, parts))!r}" if written else ""
            problems.append(f"{name}={value!r} {where}: expected {NOUNS[kind]}{hint}")
    return good


def local_path(name: str) -> str:
    """What is there under this very name, else what a shell makes of a `~` in it; "a" for "a/"."""
    path = name if os.path.exists(name) else os.path.expanduser(name)
    return path.rstrip("/") or path


def _kinds(cls: type[Settings]) -> dict[str, type]:
    return {field.name: type(field.default) for field in dataclasses.fields(cls)}
