"""The command line of every job: preset or command + flags → config; logging; exit codes.

A file of `jobs/` says what its job takes: the settings are in `jobs/config.py`, the presets or commands in its
`COMMAND_LINE`. The job itself is in `jobs/launch/` and is named by a string, `module:function`, so that it is imported
only once the command line is known to be right: `--help` and a misspelt flag answer at once, without PyTorch and Ray.
"""

import difflib
import inspect
import logging
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tyro

from pipeline.errors import AudioTaggingError, ConfigError

Config = TypeVar("Config")
log = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130


class CommandLine:
    """`[WORD] [--FLAG VALUE]…`, where the word is a preset, or one of several commands.

    `job` is the function that takes the config, as `module:function`, or one for each type of config.
    """

    def __init__(
        self, job: str | Mapping[type, str], presets: Mapping[str, Callable[[], Any]], default: str | None = None
    ):
        self.job, self.presets, self.default = job, presets, default or next(iter(presets))

    def parse(self, argv: list[str]) -> Any:
        """Return the config that a command line names, with nothing run."""
        if " ".join(argv[:2]) in self.presets:
            argv = [" ".join(argv[:2]), *argv[2:]]
        return parse_config(self.presets, self.default, argv)

    def load(self, config: Any) -> Callable[[Any], None]:
        """Import the function that takes the config."""
        return pkgutil.resolve_name(self.job if isinstance(self.job, str) else self.job[type(config)])

    def main(self, argv: list[str]) -> int:
        """Run the job; return its exit code. An error that the user can fix is printed without a traceback."""
        configure_logging()
        try:
            config = self.parse(argv)
            self.load(config)(config)
        except AudioTaggingError as error:
            log.debug("", exc_info=True)
            print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on where it stopped", file=sys.stderr)
            return EXIT_INTERRUPTED
        return 0


def parse_config(presets: Mapping[str, Callable[[], Config]], default_preset: str, argv: list[str]) -> Config:
    """Take the preset from the first argument, and override it with the flags after it."""
    name = default_preset
    if argv and not argv[0].startswith("-"):
        name, argv = argv[0], argv[1:]
    if name not in presets:
        close = difflib.get_close_matches(name, presets, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"expected a preset, one of {', '.join(presets)}, found {name!r}{hint}")
    default = presets[name]()
    about = _describe(presets, default_preset, name)
    return tyro.cli(type(default), default=default, args=argv, description=about, prog=_prog())


def _describe(presets: Mapping[str, Callable[[], Config]], default: str, chosen: str) -> str:
    # Lines are joined when they are shown, paragraphs are not.
    about = re.sub(r"(?<!\n)\n(?=[A-Z][a-z]+: )", "\n\n", inspect.getdoc(presets[chosen]) or "")
    if len(presets) == 1:
        return about
    return f"{_prog()} [{' | '.join(presets)}] [FLAGS]. Without the word it is {default}; this is {chosen}:\n\n{about}"


def _prog() -> str:
    return f"python {'/'.join(Path(sys.argv[0]).parts[-2:])}"


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
