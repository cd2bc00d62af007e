"""The command line of all entry points. Parses presets, commands and flags, and handles logging and exit codes.

Each file of `jobs/` declares its presets or commands as `COMMAND_LINE`. Settings are defined in the `settings` module
of the package that uses them. A string `module:function` names the function to run, which is imported only after the
command line has been checked. `--help` and errors about misspelt flags therefore appear at once, without importing
PyTorch and Ray.
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
    list_rare_flags,
    with_help,
)
from jobs.command_line.program import ENTRY_POINTS, program_name
from jobs.command_line.settings import Exists
from pipeline.errors import AudioTaggingError, ConfigError, InputError

log = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130


class CommandLine:
    """The command line of an entry point, `[WORD] [--FLAG VALUE]…`, where the word names a preset or a command.

    job: the function that takes the config, as `module:function`, or a map from config types to such functions.
    presets: functions that return the default config of each word. default: word to assume if there is none.

    tyro parses the flags but not the word. Its subcommands make no suggestions for a misspelt preset, list a misspelt
    flag once per preset, and hide the flags from `--help` if the word is optional.
    """

    def __init__(
        self, job: str | Mapping[type, str], presets: Mapping[str, Callable[[], Any]], default: str | None = None
    ):
        self.job, self.presets, self.default = job, presets, default or next(iter(presets))

    def parse(self, argv: Sequence[str]) -> Any:
        """Parse a command line without running it. Raises ConfigError, and exits after `--help`."""
        name, argv = self._split_word(list(argv))
        config = self.presets[name]()
        rare_flags = ""
        if not {"-h", "--help"}.isdisjoint(argv):
            rare_flags = list_rare_flags(type(config))
            config, argv = with_help(config, only_common=True), ["--help"]
        elif "--help-all" in argv:
            config, argv = with_help(config, only_common=False), ["--help"]
        else:
            check_flags(argv, type(config))
            argv = list(expand_optional_switches(argv, type(config)))
        prog = f"{program_name()} {name}" if len(self.presets) > 1 else program_name()
        with _exit_on_closed_pipe():
            try:
                return tyro.cli(type(config), default=config, args=argv, description=self._describe(name), prog=prog)
            finally:
                print(rare_flags, end="", flush=True)

    def load(self, config: Any) -> Callable[[Any], None]:
        """Import and return the function that takes this config."""
        return pkgutil.resolve_name(self.job if isinstance(self.job, str) else self.job[type(config)])

    def main(self, argv: Sequence[str]) -> int:
        """Run the command; return its exit code. Errors that the user can fix are printed without a traceback."""
        _forget_script_folder()
        configure_logging()
        try:
            config = self.parse(argv)
            check_inputs(config)
            self.load(config)(config)
        except AudioTaggingError as error:
            log.debug("", exc_info=True)
            print(f"\n{type(error).__name__}: {self._rename_flags(str(error))}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print("\ninterrupted; the same command resumes where it stopped", file=sys.stderr)
            return EXIT_INTERRUPTED
        return 0

    def _rename_flags(self, message: str) -> str:
        """Rename flags in a message for this command, in which `--train.learning-rate` may be `--learning-rate`.

        Code below the command line does not know the command, so its errors name flags by their group.
        """
        flags = set(flags_of(type(self.presets[self.default]())))

        def rename(found: re.Match[str]) -> str:
            without_group = f"--{found[1]}"
            return without_group if found[0] not in flags and without_group in flags else found[0]

        # Don't rename a misspelt flag, which is quoted as the user typed it.
        return re.sub(r"(?<!unknown flag )--[a-z]+\.([a-z.-]*[a-z])", rename, message)

    def _split_word(self, argv: list[str]) -> tuple[str, list[str]]:
        """Return the preset or command, which has one or two words, and the remaining arguments."""
        if len(self.presets) == 1:
            return self.default, argv
        at = 0
        if argv and argv[0].startswith("-"):  # accept `--root ROOT list` as well as `list --root ROOT`
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
            kind = "preset" if isinstance(self.job, str) else "command"
            raise ConfigError(f"expected a {kind}, one of {', '.join(self.presets)}, found {name!r}{hint}")
        return name, argv[:at] + argv[at + length :]

    def _describe(self, name: str) -> str:
        """Return a preset's docstring. If the command has several presets, a list of them comes first."""
        docs = {each: inspect.getdoc(preset) or "" for each, preset in self.presets.items()}
        # tyro joins lines but keeps paragraphs, so `Command:`, `Cost:` and `Result:` need paragraphs of their own.
        about = re.sub(r"(?<!\n)\n(?=[A-Z][a-z]+: )", "\n\n", docs[name])
        if len(docs) == 1:
            return about
        width = max(map(len, docs))
        firsts = {each: doc.partition("\n")[0] for each, doc in docs.items()}
        lines = [f"  {'→' if each == name else ' '} {each:{width}}  {first}" for each, first in firsts.items()]
        return "\n".join(lines) + f"\n\nThe default is {self.default}. This is {name}:\n\n{about}"


def _is_complete(arg: str) -> bool:
    """Return True unless an argument is a flag whose value is the next argument."""
    return not arg.startswith("--") or "=" in arg


def check_inputs(config: Any) -> None:
    """Raise InputError if a setting names a missing local file or folder. Remote addresses are not checked."""
    for name, _, marks in fields_of(type(config)):
        for mark in marks:
            if isinstance(mark, Exists) and (value := getattr(config, name)) and "://" not in value:
                path = Path(resolve_root(value) if name == "root" else value) / mark.inside
                if not path.exists():
                    raise InputError(f"--{name}: {path} does not exist; {mark.advice}")


@contextmanager
def _exit_on_closed_pipe() -> Iterator[None]:
    """Exit without an error if the reader of stdout, such as `head`, closes the pipe."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise the flush at exit fails as well
        sys.exit(0)


def _forget_script_folder() -> None:
    """Remove `jobs/` from the import path, where Python puts the folder of a script.

    Otherwise its packages would hide libraries of the same name, such as Hugging Face's `datasets`, here and in Ray's
    workers.
    """
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != ENTRY_POINTS]


def configure_logging() -> None:
    """Log this project's messages and the warnings of libraries to stderr. An entry point logs as __main__."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger().setLevel(logging.WARNING)  # basicConfig does nothing in Ray's workers, which have handlers
    for package in ("pipeline", "ast_model", "jobs", "__main__"):
        logging.getLogger(package).setLevel(logging.INFO)


def resolve_root(root: str) -> str:
    """Make the root of a store absolute and remove `..` from it.

    A relative root is resolved against the current folder, or against ~/audioset-ast in a Ray job, which runs in a
    temporary folder.
    """
    if "://" in root:
        return root
    in_ray_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    base = Path.home() / "audioset-ast" if in_ray_job else Path.cwd()
    path = base / Path(root).expanduser()
    return str(path.resolve() if ".." in path.parts else path)
