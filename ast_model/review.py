"""Write tables of tags: for programs (CSV, JSON lines, Parquet) and for review (Raven, Audacity).

A table has a row per tag: `file`, `start_s`, `end_s`, `label`, `score`. The first three formats put all sounds into one
file. Raven and Audacity annotate single sounds, so each sound gets its own file in the folder `output`.
"""

from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Literal, get_args

import numpy as np
import pandas as pd

from pipeline.errors import ConfigError, InputError

Format = Literal["csv", "jsonl", "parquet", "raven", "audacity"]
COLUMNS = ("file", "start_s", "end_s", "label", "score")
MAX_HZ = 8_000
"""Upper end of AST's frequency range, half of 16 kHz."""
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
RAVEN_SUFFIX, AUDACITY_SUFFIX = ".selections.txt", ".labels.txt"


def best_classes(scores_C: np.ndarray, top_k: int, thresholds: np.ndarray) -> np.ndarray:
    """Return the classes at or above their thresholds, at most `top_k`, best first."""
    ranked = np.argsort(-scores_C, kind="stable")
    return ranked[scores_C[ranked] >= thresholds[ranked]][:top_k]


def write_tags(table: pd.DataFrame, format: Format, output: Path) -> list[Path]:
    """Write a table of tags; return the written files.

    Raises ConfigError for an unknown format, InputError for missing columns.

    output: a file, or a folder for Raven and Audacity.
    """
    if missing := set(COLUMNS) - set(table.columns):
        raise InputError(
            f"expected a table of tags with the columns {', '.join(COLUMNS)}; {sorted(missing)} are missing"
        )
    table = table[[*COLUMNS]]
    if format == "raven":
        return _write_each(table, output, RAVEN_SUFFIX, _raven)
    if format == "audacity":
        return _write_each(table, output, AUDACITY_SUFFIX, _audacity)
    output.parent.mkdir(parents=True, exist_ok=True)
    if format == "csv":
        table.to_csv(output, index=False, float_format="%.6g")
    elif format == "jsonl":
        table.to_json(output, orient="records", lines=True, force_ascii=False)
    elif format == "parquet":
        table.to_parquet(output, index=False)
    else:
        raise ConfigError(f"expected a format, one of {', '.join(get_args(Format))}, found {format!r}")
    return [output]


def _write_each(table: pd.DataFrame, folder: Path, suffix: str, as_text: Callable[[pd.DataFrame], str]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[Path, str] = {}
    for sound, tags in table.groupby("file", sort=False):
        path = folder / f"{PurePath(str(sound)).name}{suffix}"
        number = 1
        while path in written:  # recordings with equal names from several folders
            number += 1
            path = folder / f"{PurePath(str(sound)).name}-{number}{suffix}"
        path.write_text(as_text(tags), encoding="utf-8", newline="")
        written[path] = str(sound)
    return list(written)


def _raven(tags: pd.DataFrame) -> str:
    """Return a selection table for Raven Pro: tab-separated, one view, the whole band."""
    lines = ["\t".join(RAVEN_COLUMNS)]
    for number, (file, start_s, end_s, label, score) in enumerate(tags.itertuples(index=False, name=None), start=1):
        times = f"{start_s:.3f}\t{end_s:.3f}\t0.0\t{MAX_HZ:.1f}"
        lines.append(f"{number}\tSpectrogram 1\t1\t{times}\t{_one_cell(label)}\t{score:.4f}\t{_one_cell(file)}")
    return "\n".join(lines) + "\n"


def _audacity(tags: pd.DataFrame) -> str:
    """Return a label track for Audacity: start, end, and label with score, tab-separated, without a header."""
    return "".join(
        f"{start_s:.6f}\t{end_s:.6f}\t{_one_cell(label)} {score:.2f}\n"
        for _, start_s, end_s, label, score in tags.itertuples(index=False, name=None)
    )


def _one_cell(text: str) -> str:
    """Replace tabs and line breaks by blanks, because neither program supports quotes."""
    return "".join(" " if character in "\t\r\n\v\f\x85\u2028\u2029" else character for character in str(text))
