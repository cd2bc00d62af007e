"""Derive flags from a config, suggest corrections for misspelt flags, and choose the flags that `--help` shows."""

import dataclasses
import difflib
import functools
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, get_args, get_type_hints

import docstring_parser
import tyro

from jobs.command_line.settings import NO_PREFIX
from pipeline.errors import ConfigError

COMMON_FLAGS = (
    "--train.init --train.num-epochs --train.learning-rate --train.global-batch-size --train.micro-batch-size"
).split()
"""Grouped flags that `--help` shows in addition to all flags without a group. `--help-all` shows every flag."""


def flags_of(config: type) -> Iterator[str]:
    """Yield the flags that tyro derives from a config type: `--root`, `--train.num-epochs`."""
    for flag, negation, kind in _iterate_flags(config):
        yield flag
        if kind in (bool, bool | None):
            yield negation


def _iterate_flags(config: type, prefix: str = "--") -> Iterator[tuple[str, str, type]]:
    """Yield the flag, the negated flag and the type of each setting, including the settings of groups."""
    for name, kind, marks in fields_of(config):
        flag = prefix + _flag_name(name, marks)
        if dataclasses.is_dataclass(kind):
            yield from _iterate_flags(kind, prefix if NO_PREFIX in marks else f"{flag}.")
        else:
            yield flag, f"{prefix}no-{name.replace('_', '-')}", kind


def fields_of(config: type) -> Iterator[tuple[str, type, tuple[Any, ...]]]:
    """Yield the name, type and annotations of each field that has a flag."""
    for name, hint in get_type_hints(config, include_extras=True).items():
        marks = getattr(hint, "__metadata__", ())
        if tyro.conf.Suppress not in marks:
            yield name, get_args(hint)[0] if marks else hint, marks


def _flag_name(name: str, marks: tuple[Any, ...]) -> str:
    """Return the name that a field has in flags, which is its annotated name or else its own name."""
    return next((mark.name for mark in marks if getattr(mark, "name", "")), name).replace("_", "-")


def check_flags(argv: Sequence[str], config: type) -> None:
    """Raise ConfigError for an unknown flag, with similar flags as suggestions."""
    flags = list(flags_of(config))
    for arg in argv:
        flag = arg.split("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in flags:
            close = _similar_flags(flag.removeprefix("--"), flags)
            hint = f"did you mean {' or '.join(close)}?" if close else "--help-all shows all flags"
            raise ConfigError(f"unknown flag {arg.split('=')[0]}; {hint}")


def _similar_flags(typed: str, flags: Sequence[str]) -> list[str]:
    """Return up to three flags that resemble a typed flag in full, without the group, or by initials (`lr`)."""
    by_name: dict[str, list[str]] = {}
    for flag in flags:
        last = flag.rpartition(".")[2].removeprefix("--")
        initials = "".join(word[0] for word in last.split("-"))
        for name in {flag.removeprefix("--"), last, initials if len(initials) > 1 else last}:
            by_name.setdefault(name, []).append(flag)
    close = [flag for name in difflib.get_close_matches(typed, by_name, cutoff=0.75) for flag in by_name[name]]
    within = [flag for flag in flags if typed in flag] if len(typed) > 2 else []
    return list(dict.fromkeys([*close, *within]))[:3]


def expand_optional_switches(argv: Sequence[str], config: type) -> Iterator[str]:
    """Convert switches of type `bool | None` to tyro's form: `--no-use-gpu` becomes `--use-gpu False`."""
    optional = {flag for flag, _, kind in _iterate_flags(config) if kind == bool | None}
    for arg, after in zip(argv, [*argv[1:], ""], strict=False):
        flag = arg.replace("_", "-")
        positive = flag.replace("no-", "", 1) if flag not in optional else flag
        yield positive if positive in optional else arg
        if positive in optional and after not in ("True", "False", "None"):
            yield str(positive == flag)


def _is_common(flag: str) -> bool:
    return "." not in flag or flag in COMMON_FLAGS


def with_help(config: Any, *, only_common: bool, prefix: str = "--") -> Any:
    """Return the same settings as an instance of a subclass with docstrings for tyro's help.

    Joins the lines of each docstring, because tyro breaks lines itself. only_common: hide uncommon flags.
    """
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    overrides = []
    for name, kind, marks in fields_of(type(config)):
        flag = prefix + _flag_name(name, marks)
        if dataclasses.is_dataclass(kind):
            group = prefix if NO_PREFIX in marks else f"{flag}."
            values[name] = with_help(values[name], only_common=only_common, prefix=group)
            shown: Any = Annotated[(type(values[name]), *marks)] if marks else type(values[name])
        elif only_common and not _is_common(flag):
            shown = tyro.conf.Suppress[kind]
        else:
            shown = Annotated[(kind, *marks, tyro.conf.arg(help=_help_of(type(config), name)))]
        overrides.append((name, shown, dataclasses.field()))
    bases = (type(config),)
    return dataclasses.make_dataclass(bases[0].__name__, overrides, bases=bases, frozen=True, kw_only=True)(**values)


def _help_of(config: type, name: str) -> str:
    """Return the docstring of a field as one line."""
    for kind in config.__mro__[:-1]:
        for field in docstring_parser.parse_from_object(kind).params:
            if field.arg_name == name:
                return " ".join((field.description or "").split())
    return ""


def list_rare_flags(config: type) -> str:
    """List the flags that `--help` hides, one paragraph per group. Empty if it hides none."""
    groups: dict[str, list[str]] = {}
    for flag in flags_of(config):
        group, _, name = flag.rpartition(".")
        if not _is_common(flag) and not name.startswith("no-"):
            groups.setdefault(group, []).append(name)
    if not groups:
        return ""
    lines = (f"{group}.{{{', '.join(names)}}}" for group, names in groups.items())
    width = shutil.get_terminal_size().columns
    wrap = functools.partial(textwrap.fill, width=width, subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(["More flags, explained by --help-all:", *map(wrap, lines), ""])
