"""Write tags as tables for programs (CSV, JSON lines, Parquet) or as annotations for review (Raven, Audacity).

A table has one row per tag, with the columns `file`, `start_s`, `end_s`, `label` and `score`. Formats for programs put
all recordings into one file. Raven and Audacity annotate single recordings, so each recording gets its own file in a
folder.
"""

import codecs
import io
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal, get_args

import pandas as pd

from pipeline.errors import ConfigError, InputError

Format = Literal["csv", "csv-excel", "jsonl", "parquet", "raven", "audacity"]
COLUMNS = ("file", "start_s", "end_s", "label", "score")
MAX_NAME_BYTES = 200
"""Maximum bytes of a recording's name within a file name. File systems allow 255 bytes, including suffix and number."""
MAX_HZ = 8_000
"""Upper end of AST's frequency range, half the sample rate of 16 kHz."""
RAVEN_COLUMNS = (
    "Selection",
    "View",
    "Channel",
    "Begin Time (s)",
    "End Time (s)",
    "Low Freq (Hz)",
    "High Freq (Hz)",
    "Annotation",
    "Score",
    "Begin Path",
)


@dataclass(frozen=True)
class TableFormat:
    """A file format for tags."""

    suffix: str
    media_type: str
    render: Callable[[pd.DataFrame], bytes]
    is_per_recording: bool = False


def write_tags(table: pd.DataFrame, format: Format, output: Path) -> list[Path]:
    """Write a table of tags; return the written files.

    Raises ConfigError for an unknown format, InputError for missing columns.

    output: a file, or a folder for Raven and Audacity.
    """
    if missing := set(COLUMNS) - set(table.columns):
        raise InputError(f"expected a table of tags with the columns {', '.join(COLUMNS)}; missing: {sorted(missing)}")
    if format not in FORMATS:
        raise ConfigError(f"expected a format, one of {', '.join(get_args(Format))}, found {format!r}")
    if FORMATS[format].is_per_recording:
        return _write_each(table, output, FORMATS[format])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(render_tags(table, format))
    return [output]


def render_tags(table: pd.DataFrame, format: Format) -> bytes:
    """Render a table of tags as the content of a file."""
    return FORMATS[format].render(table[[*COLUMNS]])


def _write_each(table: pd.DataFrame, folder: Path, format: TableFormat) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, tags in table[[*COLUMNS]].groupby("file", sort=False):
        written.append(unused_path(folder, str(name), format.suffix, written))
        written[-1].write_bytes(format.render(tags))
    return written


def unused_path(folder: Path, recording: str, suffix: str, used: Collection[Path]) -> Path:
    """Return a path named after a recording. Adds a number if recordings from different folders have equal names."""
    name = PurePath(recording).name.encode(errors="replace")[:MAX_NAME_BYTES].decode(errors="ignore")
    path, number = folder / f"{name}{suffix}", 1
    while path in used:
        number += 1
        path = folder / f"{name}-{number}{suffix}"
    return path


def _render_csv(tags: pd.DataFrame) -> bytes:
    return tags.to_csv(index=False, float_format="%.6g").encode()


def _render_csv_for_excel(tags: pd.DataFrame) -> bytes:
    """Return CSV with a byte-order mark, which Excel on Windows needs to detect UTF-8."""
    return codecs.BOM_UTF8 + _render_csv(tags)


def _render_json_lines(tags: pd.DataFrame) -> bytes:
    return tags.to_json(orient="records", lines=True, force_ascii=False).encode()


def _render_parquet(tags: pd.DataFrame) -> bytes:
    out = io.BytesIO()
    tags.to_parquet(out, index=False)
    return out.getvalue()


def _render_raven(tags: pd.DataFrame) -> bytes:
    """Return a tab-separated selection table for Raven Pro. Each tag covers the whole frequency range."""
    lines = ["\t".join(RAVEN_COLUMNS)]
    for number, (file, start_s, end_s, label, score) in enumerate(tags.itertuples(index=False, name=None), start=1):
        times = f"{start_s:.3f}\t{end_s:.3f}\t0.0\t{MAX_HZ:.1f}"
        lines.append(f"{number}\tSpectrogram 1\t1\t{times}\t{_one_cell(label)}\t{score:.4f}\t{_one_cell(file)}")
    return ("\n".join(lines) + "\n").encode()


def _render_audacity(tags: pd.DataFrame) -> bytes:
    """Return a label track for Audacity: start, end, and label with score, tab-separated, without a header."""
    return "".join(
        f"{start_s:.6f}\t{end_s:.6f}\t{_one_cell(label)} {score:.2f}\n"
        for _, start_s, end_s, label, score in tags.itertuples(index=False, name=None)
    ).encode()


def _one_cell(text: str) -> str:
    """Replace tabs and line breaks with spaces, because neither program supports quoting."""
    return "".join(" " if character in "\t\r\n\v\f\x85\u2028\u2029" else character for character in str(text))


FORMATS: dict[Format, TableFormat] = {
    "csv": TableFormat(".csv", "text/csv; charset=utf-8", _render_csv),
    "csv-excel": TableFormat(".csv", "text/csv; charset=utf-8", _render_csv_for_excel),
    "jsonl": TableFormat(".jsonl", "application/jsonl", _render_json_lines),
    "parquet": TableFormat(".parquet", "application/vnd.apache.parquet", _render_parquet),
    "raven": TableFormat(
        ".selections.txt", "text/tab-separated-values; charset=utf-8", _render_raven, is_per_recording=True
    ),
    "audacity": TableFormat(".labels.txt", "text/plain; charset=utf-8", _render_audacity, is_per_recording=True),
}
