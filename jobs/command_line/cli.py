"""The command line of every job: preset or command + flags → config; logging; exit codes.

A file of `jobs/` declares its presets or commands in `COMMAND_LINE`. Settings are stored in the `settings` module of
the room that uses them. The job's function is named by a string, `module:function`, and imported only after the command
line has been checked: `--help` and a misspelt flag answer immediately, without PyTorch and Ray.
"""

import difflib
import inspect
import logging
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tyro

from jobs.command_line.flags import (
    check_flags,
    expand_optional_switches,
    fields_of,
    flags_of,
    hide_rare_flags,
    list_rare_flags,
)
from jobs.command_line.program import ENTRY_POINTS, program_name
from jobs.command_line.settings import Exists
from pipeline.errors import AudioTaggingError, ConfigError, InputError

log = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130


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
            rare_flags = list_rare_flags(type(config))
            config, argv = hide_rare_flags(config), ["--help"]
        elif "--help-all" in argv:
            argv = ["--help"]
        else:
            check_flags(argv, type(config))
            argv = list(expand_optional_switches(argv, type(config)))
        prog = f"{program_name()} {name}" if len(self.presets) > 1 else program_name()
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
        _forget_script_folder()
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


def check_inputs(config: Any) -> None:
    """Raise InputError if a local file or folder that a setting names is not there. Others' addresses are not asked."""
    for name, _, marks in fields_of(type(config)):
        for mark in marks:
            if isinstance(mark, Exists) and (value := getattr(config, name)) and "://" not in value:
                path = Path(resolve_root(value) if name == "root" else value) / mark.inside
                if not path.exists():
                    raise InputError(f"--{name}: expected {path}, found nothing there; {mark.advice}")


@contextmanager
def _exit_with_the_reader() -> Iterator[None]:
    """Exit in silence once whoever reads the output has seen enough, as `head` has."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails, too
        sys.exit(0)


def _forget_script_folder() -> None:
    """Remove `jobs/` from the import path, where Python puts the folder of a script.

    There its rooms hide libraries of the same name, such as Hugging Face's `datasets`, here and in Ray's workers.
    """
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != ENTRY_POINTS]


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
