"""Read the user's own sounds from a table of files, one folder per class, or annotations beside recordings."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.audio.length import measure_length_ms
from pipeline.errors import InputError, describe, quote
from pipeline.fbank_settings import FRAME_LENGTH_MS
from pipeline.recordings.annotations import find_annotations, is_annotation, read_annotations
from pipeline.recordings.class_folders import read_class_folders
from pipeline.recordings.grouping import check_groups, find_copies, group_by_name, join_groups
from pipeline.recordings.overlaps import check_whole_files, merge_overlaps
from pipeline.recordings.sound_tables import FOLD, SPLITS, read_sound_table
from pipeline.recordings.splits import fold_groups, split_groups
from pipeline.recordings.tables import LabelledClip

log = logging.getLogger(__name__)

NUM_READERS = 8


@dataclass(frozen=True)
class CutConfig:
    """Settings for dividing files into clips, groups and splits."""

    clip_s: float
    """Length of clips in seconds. Files are cut into such clips. A remainder of at least half the length is also a
    clip."""
    eval_share: float = 0.2
    """Share of files to hold out for evaluation if the table has no splits."""
    seed: int = 0
    group_by: str = ""
    """Regular expression that finds the name of the group in a file's name."""
    num_folds: int = 0
    """Number of folds to assign instead of splits. With 0, splits are assigned."""


def read_sounds(source: Path, config: CutConfig) -> tuple[list[LabelledClip], list[str]]:
    """Read sounds. Returns the clips with their splits and groups, and the sorted classes.

    A fold is a split with a name such as `fold1`. Raises InputError, with the line, for invalid rows, missing files and
    fewer than two classes.
    """
    rows = _read_rows(source)
    if not rows:
        raise InputError(f"{source}: expected sounds, found none")
    check_whole_files(rows, source)
    classes = sorted({label for row in rows for label in row.labels})
    if len(classes) < 2 and all(row.labels for row in rows):
        raise InputError(f"{source}: expected at least two classes, found only {quote(classes[0])}")
    rows = list(_measure(rows))
    clips = merge_overlaps(list(_cut(rows, round(config.clip_s * 1000))), rows)
    if not clips:
        raise InputError(f"{source}: none of the sounds has any audio")
    if silent := set(classes) - {label for clip in clips for label in clip.labels}:
        raise InputError(
            f"{source}: no sound of the class {quote(min(silent))} has any audio; repair its files or remove the class"
        )
    return _split(clips, config, source), classes


def _read_rows(source: Path) -> list[LabelledClip]:
    """Return one uncut clip per row, file or annotation."""
    if source.is_dir():
        annotations = find_annotations(source)
        return read_annotations(annotations, source) if annotations else read_class_folders(source)
    return read_annotations([source]) if is_annotation(source) else read_sound_table(source)


def _measure(rows: Sequence[LabelledClip]) -> Iterator[LabelledClip]:
    """Limit the rows to the audio of their files. Skips rows shorter than one fbank frame, with a warning."""
    paths = list(dict.fromkeys(row.path for row in rows))
    with ThreadPoolExecutor(NUM_READERS) as pool:
        length_of = dict(zip(paths, pool.map(_length_ms, paths), strict=True))
    num_empty = 0
    for row in rows:
        length_ms = length_of[row.path]
        end_ms = min(row.end_ms or length_ms, length_ms)
        if end_ms - row.start_ms >= FRAME_LENGTH_MS:
            yield replace(row, end_ms=end_ms)
            continue
        num_empty += 1
        bounds = f"{row.start_ms / 1000:g} s and {row.end_ms / 1000:g} s" if row.end_ms else "its start and end"
        log.warning("%s has less than %d ms of audio between %s; skipped", row.path, FRAME_LENGTH_MS, bounds)
    if num_empty:
        log.warning("%d of %d sounds were skipped", num_empty, len(rows))


def _cut(rows: Sequence[LabelledClip], clip_ms: int) -> Iterator[LabelledClip]:
    """Cut each row into clips of equal length."""
    for row in rows:
        starts = range(row.start_ms, max(row.end_ms - clip_ms // 2, row.start_ms) + 1, clip_ms)
        yield from (replace(row, start_ms=start, end_ms=min(start + clip_ms, row.end_ms)) for start in starts)


def _length_ms(path: Path) -> int:
    """Return a file's length in ms, or 0 if it contains no audio or can't be read."""
    try:
        return measure_length_ms(path)
    except OSError as error:
        log.warning("can't read %s: %s", path, describe(error))
        return 0


def _split(clips: Sequence[LabelledClip], config: CutConfig, source: Path) -> list[LabelledClip]:
    """Return the clips with their groups and splits. Splits are assigned if the source has none."""
    if config.group_by:
        clips = group_by_name(clips, config.group_by)
    check_groups(clips, source)
    has_groups = any(clip.group for clip in clips)
    clips = join_groups(clips, find_copies(clips))
    is_stated = any(clip.split for clip in clips)
    if is_stated and config.num_folds:
        raise InputError(f"{source} has a column {_column_of(clips)}: omit --folds, or remove the column")
    if is_stated:
        _check_leaks(clips)
    else:
        clips = _assign_splits(clips, config, "groups" if has_groups else "files")
    if _column_of(clips) == "fold":
        _check_folds(clips, source)
    else:
        _check_uses(clips, source)
    return clips


def _column_of(clips: Sequence[LabelledClip]) -> str:
    return "fold" if clips[0].split.startswith(FOLD) else "split"


def _assign_splits(clips: Sequence[LabelledClip], config: CutConfig, unit: str) -> list[LabelledClip]:
    labels_of: dict[str, list[str]] = defaultdict(list)
    for clip in clips:
        labels_of[clip.group] += clip.labels
    if len(labels_of) < max(2, config.num_folds):
        raise InputError(
            f"expected at least {max(2, config.num_folds)} {unit}, found {len(labels_of)}: {_name_some(labels_of)}; a"
            " group is never in two splits. Add recordings, or group them by something finer"
        )
    if config.num_folds:
        fold_of = fold_groups(labels_of, config.num_folds, config.seed)
        return [replace(clip, split=f"{FOLD}{fold_of[clip.group]}") for clip in clips]
    split_of = split_groups(labels_of, config.eval_share, config.seed)
    if len(set(split_of.values())) < 2:
        raise InputError(
            f"expected a class with at least two different {unit}, to hold one out for evaluation, found"
            f" {len(split_of)} {unit} in total; add files or a column split"
        )
    return [replace(clip, split=split_of[clip.group]) for clip in clips]


def _name_some(names: Sequence[str] | dict[str, list[str]]) -> str:
    return ", ".join(quote(name) for name in list(names)[:3])


def _check_leaks(clips: Sequence[LabelledClip]) -> None:
    """Warn about files, copies and groups that are in more than one of the stated splits."""
    splits_of: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        splits_of[clip.group].add(clip.split)
    if leaks := [group for group, splits in splits_of.items() if len(splits) > 1]:
        log.warning(
            "%d files or copies of them are in more than one split, such as %s; metrics will be too high",
            len(leaks),
            leaks[0],
        )


def _check_uses(clips: Sequence[LabelledClip], source: Path) -> None:
    counts = Counter(clip.split for clip in clips)
    uses = {"train": {"train"}, "evaluate": set(SPLITS[1:])}
    if missing := [use for use, splits in uses.items() if not counts.keys() & splits]:
        raise InputError(
            f"{source}: expected clips to {' and '.join(missing)} on, found {dict(counts)}; correct the column split"
        )


def _check_folds(clips: Sequence[LabelledClip], source: Path) -> None:
    """Raise InputError if there is only one fold or a class is in only one fold. Warns about folds with a single
    clip."""
    counts = Counter(clip.split for clip in clips)
    if len(counts) < 2:
        raise InputError(f"{source}: expected at least two folds, found only {_name_some(list(counts))}")
    folds_of: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        for label in clip.labels:
            folds_of[label].add(clip.split)
    if alone := [(label, *folds) for label, folds in sorted(folds_of.items()) if len(folds) == 1]:
        found = ", ".join(f"{quote(label)} only in {fold}" for label, fold in alone[:3])
        raise InputError(
            f"{source}: expected clips of each class in at least two folds, found {found}, so that none is left to"
            " train on when the fold is tested; add recordings of the class, or remove it"
        )
    if small := sorted(fold for fold, count in counts.items() if count == 1):
        log.warning("expected several clips in each fold, found one in %s; its result says little", ", ".join(small))
