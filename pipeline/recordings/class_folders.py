"""Read a folder with one folder of audio files per class."""

import logging
from pathlib import Path

from pipeline.errors import InputError, quote
from pipeline.recordings.sound_tables import NO_END, clean
from pipeline.recordings.tables import LabelledClip
from pipeline.sources.index import is_media
from pipeline.sources.walk import walk_files

log = logging.getLogger(__name__)

NUM_NAMED = 3
"""Maximum number of skipped names per log line."""


def read_class_folders(folder: Path) -> list[LabelledClip]:
    """Return one uncut clip per file. Logs skipped files and folders."""
    visible = [child for child in sorted(folder.iterdir()) if not child.name.startswith(".")]
    folders = [child for child in visible if child.is_dir()]
    _log_skipped(folder, [child for child in visible if not child.is_dir()], "files outside of class folders")
    _log_skipped(folder, [child for child in folders if child.name[0] == "_"], "folders that start with _; rename them")
    found: list[LabelledClip] = []
    for class_folder in folders:
        if class_folder.name[0] != "_":
            found += _read_class(class_folder)
    if not found:
        raise InputError(f"expected a folder of audio files for each class in {folder}, found no folders")
    return found


def _read_class(folder: Path) -> list[LabelledClip]:
    paths = [Path(path) for path in walk_files(str(folder))]
    files = sorted(path for path in paths if is_media(str(path)))
    if not files:
        raise InputError(f"expected audio files in {folder}, found none; fill or remove the folder")
    if not _is_utf8(folder):
        raise InputError(f"expected a folder whose name is UTF-8, found {quote(folder)}; rename it")
    named = [file for file in files if _is_utf8(file)]
    _log_skipped(folder, [path for path in paths if not is_media(str(path))], "files that are not audio")
    if len(named) < len(files):
        log.warning("%s: skipped %d names that are not UTF-8", folder, len(files) - len(named))
    return [LabelledClip(file, (clean(folder.name),), "", 0, NO_END) for file in named]


def _log_skipped(folder: Path, paths: list[Path], kind: str) -> None:
    if paths:
        names = ", ".join(quote(path.name) for path in paths[:NUM_NAMED])
        log.warning("%s: skipped %d %s (%s%s)", folder, len(paths), kind, names, ", …" * (len(paths) > NUM_NAMED))


def _is_utf8(path: Path) -> bool:
    """Return whether tables can store a path. Python represents bytes that are not UTF-8 as surrogates."""
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:
        return False
