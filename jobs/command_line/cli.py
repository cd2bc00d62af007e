"""The command line of every job: preset or command + flags → config; logging; exit codes.

A file of `jobs/` declares its presets or commands in `COMMAND_LINE`. Settings are stored in the `settings` module of
the room that uses them. The job's function is named by a string, `module:function`, and imported only after the command
line has been checked: `--help` and a misspelt flag answer immediately, without PyTorch and Ray.
"""

import dataclasses
import difflib
import functools
import inspect
import logging
import os
import pkgutil
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import tyro

from jobs.command_line.settings import NO_PREFIX, Exists
from pipeline.errors import AudioTaggingError, ConfigError, InputError

log = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130
COMMON_FLAGS = (
    "--train.init --train.num-epochs --train.learning-rate --train.global-batch-size --train.micro-batch-size"
).split()
"""Shown by `--help` besides the flags without a dot; `--help-all` shows every flag."""


class CommandLine:
    """A job's command line, `[WORD] [--FLAG VALUE]…`, where the word is a preset, or one of several commands.

    `job` names the function that takes the config as `module:function`, or one for each type of config. tyro reads the
    flags. The word is read here, because tyro's subcommands suggest nothing for a misspelt preset, list a misspelt flag
    once for each preset, and show no flags in the `--help` of a command line whose word may be left out.
    """

    def __init__(
        self, job: str | Mapping[type, str], presets: Mapping[str, Callable[[], Any]], default: str | None = None
    ):
        self.job, self.presets, self.default = job, presets, default or next(iter(presets))

    def parse(self, argv: Sequence[str]) -> Any:
        """Return the config that a command line names, with nothing run. Raises ConfigError; exits after `--help`."""
        name, argv = self._split_word(list(argv))
        config = self.presets[name]()
        rare_flags = ""
        if not {"-h", "--help"}.isdisjoint(argv):
            rare_flags = _list_rare_flags(type(config))
            config, argv = _hide_rare_flags(config), ["--help"]
        elif "--help-all" in argv:
            argv = ["--help"]
        else:
            _check_flags(argv, type(config))
            argv = list(_give_values(argv, type(config)))
        prog = f"python {'/'.join(Path(sys.argv[0]).parts[-2:])}" + (f" {name}" if len(self.presets) > 1 else "")
        with _exit_with_the_reader():
            try:
                return tyro.cli(type(config), default=config, args=argv, description=self._describe(name), prog=prog)
            finally:
                print(rare_flags, end="", flush=True)

    def load(self, config: Any) -> Callable[[Any], None]:
        """Import the function that takes the config."""
        return pkgutil.resolve_name(self.job if isinstance(self.job, str) else self.job[type(config)])

    def main(self, argv: Sequence[str]) -> int:
        """Run the job; return its exit code. An error that the user can fix is printed without a traceback."""
        configure_logging()
        try:
            config = self.parse(argv)
            check_inputs(config)
            self.load(config)(config)
        except AudioTaggingError as error:
            log.debug("", exc_info=True)
            print(f"\n{type(error).__name__}: {self._name_flags(str(error))}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on where it stopped", file=sys.stderr)
            return EXIT_INTERRUPTED
        return 0

    def _name_flags(self, message: str) -> str:
        """Return a message with the flags as this job has them: `--learning-rate`, where others have `--train.`."""
        flags = set(flags_of(type(self.presets[self.default]())))

        def own(found: re.Match[str]) -> str:
            without_group = f"--{found[1]}"
            return without_group if found[0] not in flags and without_group in flags else found[0]

        # What a person typed stays as it was typed.
        return re.sub(r"(?<!unknown flag )--[a-z]+\.([a-z.-]*[a-z])", own, message)

    def _split_word(self, argv: list[str]) -> tuple[str, list[str]]:
        """Return the preset or command, of one word or two, and the other arguments."""
        if len(self.presets) == 1:
            return self.default, argv
        at = 0
        if argv and argv[0].startswith("-"):  # `--root ROOT list` is as good as `list --root ROOT`
            words = {name.split()[0] for name in self.presets}
            after_value = (n for n in range(1, len(argv)) if argv[n] in words and _is_complete(argv[n - 1]))
            at = next(after_value, -1)
        if not argv or at < 0:
            return self.default, argv
        length = 2 if " ".join(argv[at : at + 2]) in self.presets else 1
        name = " ".join(argv[at : at + length])
        if name not in self.presets:
            close = difflib.get_close_matches(name, self.presets, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            what = "preset" if isinstance(self.job, str) else "command"
            raise ConfigError(f"expected a {what}, one of {', '.join(self.presets)}, found {name!r}{hint}")
        return name, argv[:at] + argv[at + length :]

    def _describe(self, name: str) -> str:
        """Return the preset's docstring, below the list of all presets if there are several."""
        docs = {each: inspect.getdoc(preset) or "" for each, preset in self.presets.items()}
        # Lines are joined when they are shown, paragraphs are not.
        about = re.sub(r"(?<!\n)\n(?=[A-Z][a-z]+: )", "\n\n", docs[name])
        if len(docs) == 1:
            return about
        width = max(map(len, docs))
        firsts = {each: doc.partition("\n")[0] for each, doc in docs.items()}
        lines = [f"  {'→' if each == name else ' '} {each:{width}}  {first}" for each, first in firsts.items()]
        return "\n".join(lines) + f"\n\nWithout a word it is {self.default}. This is {name}:\n\n{about}"


def _is_complete(arg: str) -> bool:
    """Return whether an argument leaves no flag waiting for its value."""
    return not arg.startswith("--") or "=" in arg


def flags_of(config: type) -> Iterator[str]:
    """Yield the flags of a type of config as tyro makes them: `--root`, `--train.num-epochs`."""
    for flag, negation, kind in _settings_of(config):
        yield flag
        if kind in (bool, bool | None):
            yield negation


def _settings_of(config: type, prefix: str = "--") -> Iterator[tuple[str, str, type]]:
    """Yield flag, what it is if switched off, and type of each setting, those of the groups included."""
    for name, kind, marks in _fields_of(config):
        flag = prefix + _word_of(name, marks)
        if dataclasses.is_dataclass(kind):
            yield from _settings_of(kind, prefix if NO_PREFIX in marks else f"{flag}.")
        else:
            yield flag, f"{prefix}no-{name.replace('_', '-')}", kind


def _fields_of(config: type) -> Iterator[tuple[str, type, tuple[Any, ...]]]:
    """Yield name, type and tyro's marks of the fields that are settings."""
    for name, hint in get_type_hints(config, include_extras=True).items():
        marks = getattr(hint, "__metadata__", ())
        if tyro.conf.Suppress not in marks:
            yield name, get_args(hint)[0] if marks else hint, marks


def _word_of(name: str, marks: tuple[Any, ...]) -> str:
    """Return what stands for a field in flags: its name, unless a mark gives it another."""
    return next((mark.name for mark in marks if getattr(mark, "name", "")), name).replace("_", "-")


def _check_flags(argv: list[str], config: type) -> None:
    """Raise ConfigError for a flag that there is not, with those that may be meant."""
    flags = list(flags_of(config))
    for arg in argv:
        flag = arg.split("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in flags:
            close = _similar_flags(flag.removeprefix("--"), flags)
            hint = f"did you mean {' or '.join(close)}?" if close else "--help-all shows all flags"
            raise ConfigError(f"unknown flag {arg.split('=')[0]}; {hint}")


def _give_values(argv: list[str], config: type) -> Iterator[str]:
    """Yield arguments as tyro reads them where a switch may also be left unset: `--no-use-gpu` is `--use-gpu False`."""
    unset = {flag for flag, _, kind in _settings_of(config) if kind == bool | None}
    for arg, after in zip(argv, [*argv[1:], ""], strict=False):
        flag = arg.replace("_", "-")
        positive = flag.replace("no-", "", 1) if flag not in unset else flag
        yield positive if positive in unset else arg
        if positive in unset and after not in ("True", "False", "None"):
            yield str(positive == flag)


def _similar_flags(typed: str, flags: Sequence[str]) -> list[str]:
    """Return up to three flags that resemble what was typed: whole, without their group, or by initials (`lr`)."""
    by_name: dict[str, list[str]] = {}
    for flag in flags:
        last = flag.rpartition(".")[2].removeprefix("--")
        initials = "".join(word[0] for word in last.split("-"))
        for name in {flag.removeprefix("--"), last, initials if len(initials) > 1 else last}:
            by_name.setdefault(name, []).append(flag)
    close = [flag for name in difflib.get_close_matches(typed, by_name, cutoff=0.75) for flag in by_name[name]]
    within = [flag for flag in flags if typed in flag] if len(typed) > 2 else []
    return list(dict.fromkeys([*close, *within]))[:3]


def check_inputs(config: Any) -> None:
    """Raise InputError if a local file or folder that a setting names is not there. Others' addresses are not asked."""
    for name, _, marks in _fields_of(type(config)):
        for mark in marks:
            if isinstance(mark, Exists) and (value := getattr(config, name)) and "://" not in value:
                path = Path(resolve_root(value) if name == "root" else value) / mark.inside
                if not path.exists():
                    raise InputError(f"--{name}: expected {path}, found nothing there; {mark.advice}")


def _is_common(flag: str) -> bool:
    return "." not in flag or flag in COMMON_FLAGS


def _hide_rare_flags(config: Any, prefix: str = "--") -> Any:
    """Return the same settings as of a subclass, in which tyro doesn't show the uncommon ones."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    overrides = []
    for name, kind, marks in _fields_of(type(config)):
        flag = prefix + _word_of(name, marks)
        if dataclasses.is_dataclass(kind):
            values[name] = _hide_rare_flags(values[name], prefix if NO_PREFIX in marks else f"{flag}.")
            part: Any = type(values[name])
            overrides.append((name, Annotated[(part, *marks)] if marks else part, dataclasses.field()))
        elif not _is_common(flag):
            overrides.append((name, tyro.conf.Suppress[kind], dataclasses.field()))
    bases = (type(config),)
    return dataclasses.make_dataclass(bases[0].__name__, overrides, bases=bases, frozen=True, kw_only=True)(**values)


def _list_rare_flags(config: type) -> str:
    """Return a paragraph for each group of flags that `--help` leaves out; empty if it shows all."""
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
    return "\n".join(["More flags, which --help-all explains:", *map(wrap, lines), ""])


@contextmanager
def _exit_with_the_reader() -> Iterator[None]:
    """Exit in silence once whoever reads the output has seen enough, as `head` has."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails, too
        sys.exit(0)


def configure_logging() -> None:
    """Log our own messages, and others' warnings, to stderr. A job's own module is called __main__."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger().setLevel(logging.WARNING)  # in Ray's workers somebody was here before
    for package in ("pipeline", "ast_model", "jobs", "__main__"):
        logging.getLogger(package).setLevel(logging.INFO)


def resolve_root(root: str) -> str:
    """Make a root absolute, without `..` in it.

    In a Ray job the working folder is temporary, so there a relative one is taken from home.
    """
    if "://" in root:
        return root
    in_ray_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    base = Path.home() / "audioset-ast" if in_ray_job else Path.cwd()
    path = base / Path(root).expanduser()
    return str(path.resolve() if ".." in path.parts else path)
