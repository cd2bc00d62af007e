"""Preset + overrides → config; logging; exit codes. Every job starts here."""

import difflib
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import tyro

from pipeline.errors import AudioTaggingError, ConfigError

Config = TypeVar("Config")
log = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130


def run_job(
    job: Callable[[Config], None],
    presets: Mapping[str, Callable[[], Config]],
    default_preset: str,
    argv: list[str] | None = None,
) -> int:
    """Run a job with the config that the command line names; return its exit code.

    The command line is `[PRESET] [--FLAG VALUE]…`. An error that the user can fix is printed without a traceback.
    """
    configure_logging()
    try:
        config = parse_config(presets, default_preset, sys.argv[1:] if argv is None else argv)
        job(config)
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
    """Make a root absolute. In a Ray job the working folder is temporary, so there it is taken from home."""
    if "://" in root:
        return root
    in_ray_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    base = Path.home() / "audioset-ast" if in_ray_job else Path.cwd()
    return str(base / Path(root).expanduser())
