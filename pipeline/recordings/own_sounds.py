"""Read your own sounds from a table of files or from a folder per class."""

import csv
import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.audio.length import measure_length_ms
from pipeline.errors import InputError, describe, quote
from pipeline.fbank_settings import FRAME_LENGTH_MS
from pipeline.recordings.splits import split_groups
from pipeline.recordings.tables import LabelledClip
from pipeline.segments import parse_seconds
from pipeline.sources.index import is_media
from pipeline.sources.walk import walk_files

log = logging.getLogger(__name__)

SPLITS = ("train", "valid", "eval", "test")
COLUMNS = ("path", "labels", "start", "end", "split")
REQUIRED_COLUMNS = COLUMNS[:2]
COLUMN_OF_NAME = {
    **dict.fromkeys(("filename", "file", "filepath", "file_name", "fname", "audio"), "path"),
    **dict.fromkeys(("label", "class", "category", "tags", "target"), "labels"),
}
"""Common names of our columns in other programs' tables, for suggestions in error messages."""
LABEL_SEPARATOR = ";"
NUM_READERS = 8
NO_END = 0
MAX_S = 2**31 / 1000
"""Times are stored as milliseconds in 32 bits."""


@dataclass(frozen=True)
class CutConfig:
    """Division of files into clips and splits."""

    clip_s: float
    """Length of the clips that files are cut into. A remainder of at least half this length is a clip as well."""
    eval_share: float = 0.2
    """Share of files to hold out for evaluation if the table states no splits."""
    seed: int = 0


def read_sounds(source: Path, config: CutConfig) -> tuple[list[LabelledClip], list[str]]:
    """Read a table or a folder per class; return the clips with their splits, and the sorted classes.

    Raises InputError, with the line, for invalid rows, missing files and fewer than two classes.
    """
    rows = _read_folder(source) if source.is_dir() else _read_table(source)
    if not rows:
        raise InputError(f"{source}: expected sounds, found none")
    classes = sorted({label for row in rows for label in row.labels})
    if len(classes) < 2:
        raise InputError(f"{source}: expected at least two classes, found only {quote(classes[0])}")
    clips = list(_cut(rows, config))
    if not clips:
        raise InputError(f"{source}: none of {len(rows)} sounds has any audio")
    if silent := set(classes) - {label for clip in clips for label in clip.labels}:
        raise InputError(
            f"{source}: no sound of the class {quote(min(silent))} has any audio; repair its files or remove the class"
        )
    _check_contradictions(clips, source)
    original_of = _find_copies(clips)
    if not any(clip.split for clip in clips):
        clips = _assign_splits(clips, original_of, config)
    _check_splits(clips, original_of, source)
    return clips, classes


def _read_folder(folder: Path) -> list[LabelledClip]:
    found: list[LabelledClip] = []
    for class_folder in sorted(child for child in folder.iterdir() if child.is_dir() and child.name[0] not in "._"):
        files = sorted(Path(path) for path in walk_files(str(class_folder)) if is_media(path))
        if not files:
            raise InputError(f"expected audio files in {class_folder}, found none; fill or remove the folder")
        if not _is_utf8(class_folder):
            raise InputError(f"expected a folder whose name is UTF-8, found {quote(class_folder)}; rename it")
        named = [file for file in files if _is_utf8(file)]
        if len(named) < len(files):
            log.warning("%s: skipped %d names that are not UTF-8", class_folder, len(files) - len(named))
        found += [LabelledClip(file, (class_folder.name.strip(),), "", 0, NO_END) for file in named]
    if not found:
        raise InputError(f"expected a folder of audio files for each class in {folder}, found no folders")
    return found


def _is_utf8(path: Path) -> bool:
    """Return whether tables can store a path. Python represents bytes that are not UTF-8 as surrogates."""
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:
        return False


def _read_table(table: Path) -> list[LabelledClip]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            if not set(REQUIRED_COLUMNS) <= set(columns):
                raise InputError(
                    f"{table}: expected the columns path,labels and optionally start,end,split, found"
                    f" {quote(','.join(columns))}{_suggestion(columns)}"
                )
            rows = [_read_row(row, f"{table}, line {reader.line_num}", table.parent) for row in reader]
    except UnicodeDecodeError as error:
        raise InputError(
            f"can't read {table}: it is not UTF-8 ({describe(error)}); save it as UTF-8, for example with"
            " `iconv -f LATIN1 -t UTF-8 OLD.csv > NEW.csv`"
        ) from error
    except (OSError, csv.Error) as error:
        raise InputError(f"can't read {table}: {describe(error)}; expected a CSV file in UTF-8 or a folder") from error
    if any(row.split for row in rows) and not all(row.split for row in rows):
        raise InputError(f"{table}: expected a split in each row or in none, found both")
    return rows


def _suggestion(columns: Sequence[str]) -> str:
    """Suggest how to repair a header that looks like another program's."""
    if len(columns) == 1 and (separator := next((each for each in ";\t|" if each in columns[0]), "")):
        return f": its columns are separated by {separator!r}; save it with commas"
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    renamed = {COLUMN_OF_NAME[name.lower()]: name for name in columns if name.lower() in COLUMN_OF_NAME}
    renamed |= {name.lower(): name for name in columns if name.lower() in REQUIRED_COLUMNS}
    pairs = [f"{name} for {renamed[name]}" for name in missing if name in renamed]
    return f"; did you mean {' and '.join(pairs)}? Rename the columns" if pairs else ""


def _read_row(row: Mapping[str, str | None], where: str, base: Path) -> LabelledClip:
    cells = {name: (row.get(name) or "").strip() for name in COLUMNS}
    labels = tuple(dict.fromkeys(label.strip() for label in cells["labels"].split(LABEL_SEPARATOR) if label.strip()))
    path = base / cells["path"]
    if not labels:
        raise InputError(f"{where}: expected labels separated by {LABEL_SEPARATOR}, found none")
    if not cells["path"] or not path.is_file():
        raise InputError(f"{where}: expected an audio file at {quote(path)}, found none")
    times = f"{quote(cells['start'])} and {quote(cells['end'])}"
    try:
        start_s, end_s = parse_seconds(cells["start"] or "0"), parse_seconds(cells["end"] or str(NO_END))
    except ValueError as error:
        raise InputError(f"{where}: expected start and end in seconds, found {times}") from error
    # All comparisons with NaN are false, so this form rejects NaN.
    if not (0 <= start_s < MAX_S and (end_s == NO_END or start_s < end_s < MAX_S)):
        raise InputError(f"{where}: expected 0 ≤ start < end, found {times}")
    if cells["split"] and cells["split"] not in SPLITS:
        raise InputError(f"{where}: expected a split of {', '.join(SPLITS)}, found {quote(cells['split'])}")
    return LabelledClip(path, labels, cells["split"], round(start_s * 1000), round(end_s * 1000))


def _check_contradictions(clips: Sequence[LabelledClip], source: Path) -> None:
    """Raise InputError if two rows give the same start of a file different labels or ends."""
    first_of: dict[tuple[Path, int], LabelledClip] = {}
    for clip in clips:
        first = first_of.setdefault((clip.path, clip.start_ms), clip)
        if (set(first.labels), first.end_ms) != (set(clip.labels), clip.end_ms):
            found = " and ".join(
                f"{LABEL_SEPARATOR.join(each.labels)} to {each.end_ms / 1000:g} s" for each in (first, clip)
            )
            raise InputError(
                f"{source}: expected one row for {clip.path} from {clip.start_ms / 1000:g} s, found {quote(found)};"
                f" write all labels of a segment into one row, separated by {LABEL_SEPARATOR}"
            )


def _cut(rows: Sequence[LabelledClip], config: CutConfig) -> Iterator[LabelledClip]:
    """Cut each row into clips of equal length; skip rows shorter than one fbank frame, with a warning."""
    paths = list(dict.fromkeys(row.path for row in rows))
    with ThreadPoolExecutor(NUM_READERS) as pool:
        length_of = dict(zip(paths, pool.map(_length_ms, paths), strict=True))
    clip_ms = round(config.clip_s * 1000)
    num_empty = 0
    for row in rows:
        length_ms = length_of[row.path]
        end_ms = min(row.end_ms or length_ms, length_ms)
        if end_ms - row.start_ms < FRAME_LENGTH_MS:
            num_empty += 1
            bounds = f"{row.start_ms / 1000:g} s and {row.end_ms / 1000:g} s" if row.end_ms else "its start and end"
            log.warning("%s has less than %d ms of audio between %s; skipped", row.path, FRAME_LENGTH_MS, bounds)
            continue
        starts = range(row.start_ms, max(end_ms - clip_ms // 2, row.start_ms) + 1, clip_ms)
        yield from (replace(row, start_ms=start, end_ms=min(start + clip_ms, end_ms)) for start in starts)
    if num_empty:
        log.warning("%d of %d sounds were skipped", num_empty, len(rows))


def _length_ms(path: Path) -> int:
    """Return a file's length in ms, or 0 if it contains no audio or can't be read."""
    try:
        return measure_length_ms(path)
    except OSError as error:
        log.warning("can't read %s: %s", path, describe(error))
        return 0


def _find_copies(clips: Sequence[LabelledClip]) -> dict[Path, Path]:
    """Map each file to the first file with the same content; warn about copies with different labels.

    Copies count as one file when splits are assigned, so that no copy of a training file is evaluated on. Only files of
    equal size are read.
    """
    labels_of: dict[Path, set[str]] = defaultdict(set)
    for clip in clips:
        labels_of[clip.path].update(clip.labels)
    paths_of: dict[int, list[Path]] = defaultdict(list)
    for path in labels_of:
        paths_of[path.stat().st_size].append(path)
    first_of: dict[tuple[int, str], Path] = {}
    original_of: dict[Path, Path] = {}
    for size, paths in paths_of.items():
        for path in paths:
            digest = _digest(path) if len(paths) > 1 else ""
            original_of[path] = first_of.setdefault((size, digest), path)
    copies = [(path, original) for path, original in original_of.items() if path != original]
    if contradictions := [(path, first) for path, first in copies if labels_of[path] != labels_of[first]]:
        path, first = contradictions[0]
        log.warning(
            "%d files have the same content as a file with different labels, such as %s (%s) and %s (%s); correct the"
            " wrong labels, or give both files all labels",
            len(contradictions),
            path,
            LABEL_SEPARATOR.join(sorted(labels_of[path])),
            first,
            LABEL_SEPARATOR.join(sorted(labels_of[first])),
        )
    return original_of


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _assign_splits(
    clips: Sequence[LabelledClip], original_of: Mapping[Path, Path], config: CutConfig
) -> list[LabelledClip]:
    labels_of: dict[Path, list[str]] = defaultdict(list)
    for clip in clips:
        labels_of[original_of[clip.path]] += clip.labels
    split_of = split_groups(labels_of, config.eval_share, config.seed)
    if len(set(split_of.values())) < 2:
        raise InputError(
            f"expected a class with at least two different files, to hold one out for evaluation, found"
            f" {len(split_of)} files in total; add files or a column split"
        )
    return [replace(clip, split=split_of[original_of[clip.path]]) for clip in clips]


def _check_splits(clips: Sequence[LabelledClip], original_of: Mapping[Path, Path], source: Path) -> None:
    splits_of: dict[Path, set[str]] = defaultdict(set)
    for clip in clips:
        splits_of[original_of[clip.path]].add(clip.split)
    if leaks := [path for path, splits in splits_of.items() if len(splits) > 1]:
        log.warning(
            "%d files or copies of them are in more than one split, such as %s; metrics will be too high",
            len(leaks),
            leaks[0],
        )
    counts = Counter(clip.split for clip in clips)
    uses = {"train": {"train"}, "evaluate": set(SPLITS[1:])}
    missing = [use for use, splits in uses.items() if not counts.keys() & splits]
    if missing:
        raise InputError(
            f"{source}: expected clips to {' and '.join(missing)} on, found {dict(counts)}; correct the column split"
        )
