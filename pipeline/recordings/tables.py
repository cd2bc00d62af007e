"""Describe audio files on disk in AudioSet's tables, so that the same pipeline processes them.

folder/
    class_labels_indices.csv
    {split}_segments.csv
    media.csv                  the path of each id
"""

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError
from pipeline.labels import NO_LABEL, Labels

MEDIA_TABLE = "media.csv"
MAX_STEM_CHARS = 40


@dataclass(frozen=True, slots=True)
class LabelledClip:
    """A segment of an audio file, with its labels."""

    path: Path
    labels: tuple[str, ...]
    """Class names; empty for a negative clip."""
    split: str
    start_ms: int
    end_ms: int
    group: str = ""
    """Name of a group of clips, such as a recording or a speaker. All clips of a group are in the same split."""

    @property
    def key(self) -> str:
        """Key by which snapshots identify the clip."""
        return f"{make_id(self.path)}_{self.start_ms}"


def check_files(clips: Sequence[LabelledClip], table: Path, folder: Path) -> None:
    """Raise InputError if a table lists no files, or files missing from the folder."""
    missing = [clip.path.name for clip in clips if not clip.path.is_file()]
    if missing or not clips:
        raise InputError(
            f"{table} names {len(clips)} files; {len(missing)} are not in {folder}"
            f" ({', '.join(missing[:3])}): unpack the archive again"
        )


def write_tables(clips: Sequence[LabelledClip], classes: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Write the tables of labelled clips and return their splits."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = make_labels(classes)
    mid_of = dict(zip(labels.names, labels.mids, strict=True))
    id_of = {path: make_id(path) for path in dict.fromkeys(clip.path for clip in clips)}
    # Write absolute paths, because workers may run in another folder.
    paths = [(name, str(path.absolute())) for path, name in id_of.items()]
    (folder / "class_labels_indices.csv").write_text(labels.to_csv(), encoding="utf-8")
    _write_rows(folder / MEDIA_TABLE, [("id", "path"), *paths])
    splits = tuple(sorted({clip.split for clip in clips}))
    for split in splits:
        lines = []
        for each in clips:
            if each.split == split:
                mids = ",".join(mid_of[label] for label in each.labels) or NO_LABEL
                lines.append(f'{id_of[each.path]}, {each.start_ms / 1000:.3f}, {each.end_ms / 1000:.3f}, "{mids}"\n')
        (folder / f"{split}_segments.csv").write_text("".join(lines), encoding="utf-8")
    return splits


def make_labels(classes: Sequence[str]) -> Labels:
    """Give each class a mid that is safe in tables, made of `/c/` and its name without special characters."""
    mids: dict[str, str] = {}
    for index, name in enumerate(classes):
        mid = "/c/" + re.sub(r"[^\w-]+", "_", name)
        mids[mid if mid not in mids else f"{mid}_{index}"] = name
    return Labels(tuple(mids), tuple(mids.values()))


def make_id(path: Path) -> str:
    """Make a file's id from its name and a digest of its path, size and modification time."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", path.stem)[:MAX_STEM_CHARS]
    found = path.stat()
    return f"{stem}-{_digest(f'{path.absolute()}|{found.st_size}|{found.st_mtime_ns}')}"


def digest_of_tables(folder: Path) -> str:
    """Return a digest of all tables in a folder (12 hexadecimal digits)."""
    return _digest("\0".join(file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.csv"))))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _write_rows(file: Path, rows: Iterable[Sequence[str]]) -> None:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    file.write_text(out.getvalue(), encoding="utf-8")
