"""Read annotations of recordings from Raven's selection tables and Audacity's label files.

A file of annotations is stored beside its recording and has the recording's name (`dawn.txt` or
`dawn.Table.1.selections.txt` for `dawn.wav`). A selection table may name recordings instead, in the column `Begin
File`.
"""

import csv
import io
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.errors import InputError, describe, quote
from pipeline.recordings.sound_tables import LABEL_SEPARATOR, clean, find_file, parse_times, read_text
from pipeline.recordings.tables import LabelledClip
from pipeline.segments import parse_seconds
from pipeline.sources.index import is_media
from pipeline.sources.walk import walk_files

log = logging.getLogger(__name__)

SUFFIX = ".txt"
BEGIN, END, BEGIN_FILE, FILE_OFFSET = "begin time (s)", "end time (s)", "begin file", "file offset (s)"
LABEL_COLUMNS = ("annotation", "annotations", "labels", "label", "species", "species code", "tags", "tag", "class")
AUDACITY_LINE = re.compile(r"\d+([.,]\d+)?\t\d+([.,]\d+)?(\t|$)")
FREQUENCIES = "\\"
"""Start of a line that gives the frequency range of the label above it."""


def find_annotations(folder: Path) -> list[Path]:
    """Return the files below a folder that look like annotations."""
    return [Path(path) for path in walk_files(str(folder)) if path.endswith(SUFFIX) and is_annotation(Path(path))]


def is_annotation(file: Path) -> bool:
    """Return True if a file starts like a selection table or a label file."""
    if file.suffix != SUFFIX or not file.is_file():
        return False
    with file.open("rb") as stream:
        line = stream.readline(2**16).decode("utf-8-sig", errors="replace").rstrip("\r\n")
    return BEGIN in line.lower().split("\t") or AUDACITY_LINE.match(line) is not None


def read_annotations(files: list[Path], folder: Path | None = None) -> list[LabelledClip]:
    """Return one uncut clip per annotation. Logs recordings of the folder without annotations.

    Raises InputError, with the line, for invalid annotations and missing recordings.
    """
    rows = [row for file in files for row in _read_file(file)]
    if folder:
        annotated = {row.path for row in rows}
        others = [path for path in walk_files(str(folder)) if is_media(path) and Path(path) not in annotated]
        if others:
            names = ", ".join(Path(path).name for path in others[:3])
            log.warning("%s: skipped %d recordings without annotations, such as %s", folder, len(others), names)
    return rows


def _read_file(file: Path) -> Iterator[LabelledClip]:
    text = read_text(file)
    try:
        is_raven = BEGIN in text.partition("\n")[0].lower()
        yield from _read_selections(text, file) if is_raven else _read_labels(text, file)
    except csv.Error as error:
        raise InputError(f"can't read {file}: {describe(error)}; export the annotations again") from error


def _read_labels(text: str, file: Path) -> Iterator[LabelledClip]:
    """Yield the labels of an Audacity file, which has the start, the end and the label separated by tabs."""
    recording = _recording_of(file)
    for line, content in enumerate(text.splitlines(), start=1):
        if content.strip() and not content.startswith(FREQUENCIES):
            start, end, label = (*content.split("\t", 2), "", "")[:3]
            where = f"{file}, line {line}"
            times = parse_times(start.replace(",", "."), end.replace(",", "."), where)
            yield LabelledClip(recording, _labels_of(label, where), "", *times)


def _read_selections(text: str, file: Path) -> Iterator[LabelledClip]:
    """Yield the selections of a Raven table. A selection appears once per view, with equal times."""
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    reader.fieldnames = [clean(name).lower() for name in reader.fieldnames or ()]
    column = next((name for name in LABEL_COLUMNS if name in reader.fieldnames), "")
    if not column or END not in reader.fieldnames:
        raise InputError(
            f"{file}: expected the columns Begin Time (s), End Time (s) and a column for labels"
            f" ({', '.join(LABEL_COLUMNS)}), found {quote(', '.join(reader.fieldnames))}"
        )
    for row in reader:
        cells = {name: clean(value or "") for name, value in row.items() if name}
        if any(cells.values()):
            where = f"{file}, line {reader.line_num}"
            times = parse_times(cells[BEGIN], cells[END], where)
            yield LabelledClip(
                _begin_file(cells, file, where), _labels_of(cells[column], where), "", *_in_file(cells, times, where)
            )


def _in_file(cells: Mapping[str, str], times: tuple[int, int], where: str) -> tuple[int, int]:
    """Return times relative to the recording. For a series of recordings, Raven counts from the start of the first."""
    offset = cells.get(FILE_OFFSET, "")
    if not offset:
        return times
    try:
        start_ms = round(parse_seconds(offset) * 1000)
    except ValueError as error:
        raise InputError(f"{where}: expected a File Offset in seconds, found {quote(offset)}") from error
    return start_ms, start_ms + times[1] - times[0]


def _begin_file(cells: Mapping[str, str], file: Path, where: str) -> Path:
    name = cells.get(BEGIN_FILE, "")
    if not name:
        return _recording_of(file)
    recording = find_file(file.parent, name)
    if recording is None:
        raise InputError(f"{where}: expected the recording {quote(name)} in {file.parent}, found none; move it there")
    return recording


def _recording_of(file: Path) -> Path:
    """Return the recording beside a file of annotations, which has the longest matching name."""
    beside = [path for path in file.parent.iterdir() if is_media(path.name) and path.is_file()]
    found = [path for path in beside if f"{clean(file.name)}.".startswith((f"{clean(path.stem)}.", clean(path.name)))]
    if not found:
        raise InputError(
            f"{file}: expected a recording with the same name beside it, such as {file.stem.partition('.')[0]}.wav,"
            " found none; move or rename one of them"
        )
    return max(found, key=lambda path: len(path.stem))


def _labels_of(text: str, where: str) -> tuple[str, ...]:
    labels = dict.fromkeys(clean(label) for label in text.split(LABEL_SEPARATOR) if label.strip())
    if not labels:
        raise InputError(f"{where}: expected labels separated by {LABEL_SEPARATOR}, found none; write or delete it")
    return tuple(labels)
