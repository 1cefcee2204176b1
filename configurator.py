"""Typed configuration: defaults < config files < command line.

A program describes its settings once, as a frozen dataclass whose fields are made by `setting`,
and calls `configure`. `python train.py config/fixed32.py --seed=2` then reads the file as plain
Python assignments (in a namespace of its own, nothing leaks) and overrides one field. Unknown
names, wrong types and impossible combinations are collected and reported together, before
anything is built.
"""

import dataclasses
import difflib
import os
import runpy
import sys
import textwrap
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar

TRUE_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Settings(Protocol):
    """What `configure` fills: a frozen dataclass of settings that can check itself."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def problems(self) -> list[str]:
        """One sentence for every impossible value or combination; empty if there is none."""
        ...


S = TypeVar("S", bound=Settings)


class UserError(ValueError):
    """What the user of a script can mend; printed without a traceback, one problem a line."""


def setting(default: Any, meaning: str) -> Any:
    """A dataclass field with its meaning, unit and special values; shown by `--help`."""
    return dataclasses.field(default=default, metadata={"meaning": meaning})


def configure(cls: type[S], argv: Sequence[str], default_file: str | None = None) -> S:
    """Build `cls` from its defaults, then the config files and `--key=value` words of `argv`.

    `default_file` is read when `argv` names no file. Raises UserError with all problems found.
    """
    return build(cls, given_values(cls, argv, default_file))


def given_values(
    cls: type[S], argv: Sequence[str], default_file: str | None = None
) -> dict[str, Any]:
    """What the config files and words of `argv` set, of known names and right types, by name."""
    files = [word for word in argv if not word.startswith("-")]
    options = [word for word in argv if word.startswith("-")]
    if not files and default_file:
        files = [default_file]
    found: list[str] = []
    values: dict[str, Any] = {}
    for file in files:
        values |= _checked(cls, _read_file(file, found), f"in {file}", found)
    values |= _checked(cls, _read_options(cls, options, found), "on the command line", found)
    if found:
        raise UserError("\n".join(found))
    return values


def build(cls: type[S], values: dict[str, Any]) -> S:
    """The defaults with `values`; UserError with all that is impossible about them."""
    config = cls(**values)
    if found := config.problems():
        raise UserError("\n".join(found))
    return config


def run_main(main: Callable[[list[str]], None]) -> NoReturn:
    """Run a script's `main(argv)`; a UserError is printed in plain words and exits with 1.

    Any other error is a bug and keeps its traceback.
    """
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit("\n".join(f"error: {line}" for line in str(error).splitlines()))
    except BrokenPipeError:  # the reader has gone, as in `python sample.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0)


def help_text(cls: type, usage: str) -> str:
    """The usage line and every setting with its default and meaning, for an 80-column screen."""
    lines = [usage, "", "settings (in a config file as name = value, or --name=value):"]
    for field in dataclasses.fields(cls):
        lines.append(f"  {field.name} = {field.default!r}")
        lines += textwrap.wrap(
            field.metadata["meaning"], 78, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return "\n".join(lines)


def _read_file(file: str, found: list[str]) -> dict[str, Any]:
    """The public names that a config file assigns; imports of modules do not count."""
    if not Path(file).is_file():
        found.append(f"no config file {file!r} (options are written --name=value)")
        return {}
    try:
        namespace = runpy.run_path(file)
    except Exception as error:
        found.append(f"{file} does not run: {type(error).__name__}: {error}")
        return {}
    return {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }


def _read_options(cls: type, options: Sequence[str], found: list[str]) -> dict[str, Any]:
    """Words of the form --name=value, each value read as the type of its field."""
    kinds: dict[str, Any] = _kinds(cls)
    values: dict[str, Any] = {}
    for word in options:
        name, equals, text = word.removeprefix("--").partition("=")
        kind = kinds.get(name, str)
        if kind is bool and not equals:
            text, equals = "true", "="
        if not word.startswith("--") or not equals:
            found.append(f"cannot read {word!r}: write --name=value")
            continue
        try:
            values[name] = TRUE_WORDS[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            found.append(f"{name}={text!r} on the command line: expected {_noun(kind)}")
    return values


def _checked(cls: type, values: dict[str, Any], where: str, found: list[str]) -> dict[str, Any]:
    """The values that are known and of the right type; the others are reported."""
    kinds = _kinds(cls)
    good: dict[str, Any] = {}
    for name, value in values.items():
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see --help for the known ones"
            found.append(f"unknown setting {name!r} {where}: {hint}")
        elif type(value) is kinds[name]:
            good[name] = value
        elif kinds[name] is float and type(value) is int:
            good[name] = float(value)
        else:
            found.append(f"{name}={value!r} {where}: expected {_noun(kinds[name])}")
    return good


def _kinds(cls: type) -> dict[str, type]:
    return {field.name: type(field.default) for field in dataclasses.fields(cls)}


def _noun(kind: type) -> str:
    return {
        bool: "True or False",
        int: "a whole number",
        float: "a number",
        str: "a string",
    }.get(kind, kind.__name__)
