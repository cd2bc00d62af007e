"""Your own sounds: a table of files, or a folder for each class → recordings."""

import csv
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import av

from pipeline.audio.container import EXTENSIONS
from pipeline.errors import InputError
from pipeline.recordings.splits import split_groups
from pipeline.recordings.tables import Recording

log = logging.getLogger(__name__)

SPLITS = ("train", "valid", "eval", "test")
LABEL_SEPARATOR = ";"
NUM_READERS = 8
NO_END = 0


@dataclass(frozen=True)
class CutConfig:
    """How files become clips and splits."""

    clip_s: float
    """Files are cut into clips of this length; what is left counts as one if it is at least half as long."""
    eval_share: float = 0.2
    """Share of the files that is kept for measuring, where no splits are given."""
    seed: int = 0


def read_sounds(source: Path, config: CutConfig) -> tuple[list[Recording], list[str]]:
    """Read a table or a folder per class; return clips, in splits, and the classes by name.

    Raises InputError, with the line, for rows that can't be read, files that are not there, and less than two classes.
    """
    rows = _read_folder(source) if source.is_dir() else _read_table(source)
    if not rows:
        raise InputError(f"{source}: expected sounds, found none")
    classes = sorted({label for row in rows for label in row.labels})
    if len(classes) < 2:
        raise InputError(f"{source}: expected at least two classes, found {classes}")
    clips = list(_cut(rows, config))
    if not clips:
        raise InputError(f"{source}: none of {len(rows)} sounds has any audio")
    if not any(clip.split for clip in clips):
        clips = _share_out(clips, config)
    _check_leaks(clips)
    return clips, classes


def _read_folder(folder: Path) -> list[Recording]:
    found = []
    for class_folder in sorted(child for child in folder.iterdir() if child.is_dir() and child.name[0] not in "._"):
        files = [file for file in sorted(class_folder.rglob("*")) if file.suffix[1:].lower() in EXTENSIONS]
        if not files:
            raise InputError(f"expected audio files in {class_folder}, found none; fill or remove it")
        found += [Recording(file, (class_folder.name.strip(),), "", 0, NO_END) for file in files]
    if not found:
        raise InputError(f"expected a folder of audio files for each class in {folder}, found no folders")
    return found


def _read_table(table: Path) -> list[Recording]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            if not {"path", "labels"} <= set(columns):
                raise InputError(
                    f"{table}: expected the columns path,labels and perhaps start,end,split, found {','.join(columns)}"
                )
            rows = [_read_row(row, f"{table}, line {reader.line_num}", table.parent) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"can't read {table}: {error}; expected a CSV file in UTF-8 or a folder") from error
    if any(row.split for row in rows) and not all(row.split for row in rows):
        raise InputError(f"{table}: expected a split in each row or in none, found both")
    return rows


def _read_row(row: Mapping[str, str | None], where: str, base: Path) -> Recording:
    cells = {name: (row.get(name) or "").strip() for name in ("path", "labels", "start", "end", "split")}
    labels = tuple(dict.fromkeys(label.strip() for label in cells["labels"].split(LABEL_SEPARATOR) if label.strip()))
    path = base / cells["path"]
    if not labels:
        raise InputError(f"{where}: expected labels separated by {LABEL_SEPARATOR}, found none")
    if not cells["path"] or not path.is_file():
        raise InputError(f"{where}: expected an audio file at {path}, found none")
    try:
        start_ms, end_ms = round(float(cells["start"] or 0) * 1000), round(float(cells["end"] or NO_END) * 1000)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{where}: expected start and end in seconds, found {row!r}") from error
    if start_ms < 0 or (end_ms != NO_END and end_ms <= start_ms):
        raise InputError(f"{where}: expected 0 ≤ start < end, found {cells['start']!r} and {cells['end']!r}")
    if cells["split"] and cells["split"] not in SPLITS:
        raise InputError(f"{where}: expected a split of {', '.join(SPLITS)}, found {cells['split']!r}")
    return Recording(path, labels, cells["split"], start_ms, end_ms)


def _cut(rows: Sequence[Recording], config: CutConfig) -> Iterator[Recording]:
    """Cut each row into clips of equal length; leave out what has no audio, and say so."""
    paths = list(dict.fromkeys(row.path for row in rows))
    with ThreadPoolExecutor(NUM_READERS) as pool:
        length_of = dict(zip(paths, pool.map(_length_ms, paths), strict=True))
    clip_ms = round(config.clip_s * 1000)
    num_empty = 0
    for row in rows:
        length_ms = length_of[row.path]
        end_ms = min(row.end_ms or length_ms, length_ms)
        if end_ms <= row.start_ms:
            num_empty += 1
            log.warning("%s has no audio between %s and %s ms; left out", row.path, row.start_ms, row.end_ms)
            continue
        starts = range(row.start_ms, max(end_ms - clip_ms // 2, row.start_ms) + 1, clip_ms)
        yield from (replace(row, start_ms=start, end_ms=min(start + clip_ms, end_ms)) for start in starts)
    if num_empty:
        log.warning("%d of %d sounds were left out", num_empty, len(rows))


def _length_ms(path: Path) -> int:
    """Return how long a file is; 0 if it is no audio."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            if stream.duration is not None and stream.time_base is not None:
                return int(stream.duration * stream.time_base * 1000)
            return (container.duration or 0) * 1000 // av.time_base
    except (OSError, IndexError, ValueError):
        return 0


def _share_out(clips: Sequence[Recording], config: CutConfig) -> list[Recording]:
    labels_of: dict[Path, list[str]] = {}
    for clip in clips:
        labels_of.setdefault(clip.path, []).extend(clip.labels)
    split_of = split_groups(labels_of, config.eval_share, config.seed)
    return [replace(clip, split=split_of[clip.path]) for clip in clips]


def _check_leaks(clips: Sequence[Recording]) -> None:
    places: dict[Path, set[str]] = {}
    for clip in clips:
        places.setdefault(clip.path, set()).add(clip.split)
    if leaks := [path for path, splits in places.items() if len(splits) > 1]:
        log.warning("%d files are in more than one split, such as %s: results will look too good", len(leaks), leaks[0])
    counts = Counter(clip.split for clip in clips)
    missing = [what for what, splits in (("train", ("train",)), ("measure", SPLITS[1:])) if not counts.keys() & splits]
    if missing:
        raise InputError(f"expected clips to {' and '.join(missing)} on, found {dict(counts)}: repair the column split")
