"""Parse the names of media files in published copies of AudioSet and in downloads."""

import re
from pathlib import PurePosixPath
from typing import NamedTuple

from pipeline.audio.container import EXTENSIONS
from pipeline.errors import ConfigError

PREFIXES = ("", "Y", "id_")
"""Known prefixes of ids. PANNs' archives and DCASE's downloader use `Y`, and some scripts use `id_`."""
NAME = re.compile(r"(?P<ytid>[A-Za-z0-9_-]{11})(?:[_-](?P<start>\d+(?:\.\d+)?)(?:[_-]\d+(?:\.\d+)?)?)?", re.ASCII)
"""Pattern of `{ytid}`, `{ytid}_{start}` and `{ytid}_{start}_{end}`, with `_` or `-` as the separator."""


class Reading(NamedTuple):
    """One possible way to read a name."""

    ytid: str
    start: str = ""
    """The start as written in the name, in seconds or milliseconds. Empty if the name contains no start."""
    is_cut: bool = False
    """True if the name has a prefix or a start, which means that the file only contains the segment."""


def readings_of(name: str, pattern: re.Pattern[str] | None = None) -> list[Reading]:
    """Return all possible readings of a name. Folders and extensions are ignored.

    There can be several readings, because ids may contain `_` and `-`. For example, `id_abcdefgh_30_40` may be the
    segment at 30 of the id `id_abcdefgh`, or the segment at 40 of the id `abcdefgh_30`. Only the list of segments can
    tell which reading is right.

    pattern: a pattern from `compile_pattern`, which replaces the known naming schemes.
    """
    if pattern:
        found = pattern.search(name)
        return [Reading(found["id"])] if found else []
    stem = stem_of(name)
    readings = [
        Reading(found["ytid"], found["start"] or "", is_cut=bool(prefix or found["start"]))
        for prefix in PREFIXES
        if stem.startswith(prefix) and (found := NAME.fullmatch(stem, len(prefix)))
    ]
    # In other data sets, ids may have any length.
    return readings if any(each.ytid == stem for each in readings) else [*readings, Reading(stem)]


def start_matches(text: str, start_ms: int) -> bool:
    """Return True if the start in a name is missing or equals the segment's start. It may be in seconds or in
    milliseconds."""
    return not text or round(float(text) * 1000) == start_ms or ("." not in text and int(text) == start_ms)


def stem_of(name: str) -> str:
    """Remove folders and media extensions from a name. For example, `audio/X.mp4.wav` becomes `X`."""
    stem = PurePosixPath(name).name
    while (suffix := PurePosixPath(stem).suffix[1:].lower()) in EXTENSIONS:
        stem = stem[: -len(suffix) - 1]
    return stem


def compile_pattern(pattern: str) -> re.Pattern[str] | None:
    """Compile `--id-pattern`, or return None if it is empty. Raises ConfigError if it has no group named `id`."""
    if not pattern:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"--id-pattern {pattern!r} is not a regular expression: {error}") from error
    if "id" not in compiled.groupindex:
        raise ConfigError(
            f"--id-pattern {pattern!r} has no group named `id`; add one, as in 'clip-(?P<id>[\\w-]{{11}})'"
        )
    return compiled
