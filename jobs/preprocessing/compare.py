"""The command `compare`, which finds differences between two copies."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from jobs.command_line.cli import resolve_root
from jobs.preprocessing.settings import CompareCommand
from pipeline.errors import ConfigError, NoClipsError
from pipeline.page import render_page
from pipeline.quality.copy_differences import IDENTICAL, KINDS, SAME, Comparison, compare_copies, worst_of_kind
from pipeline.quality.report import player_of, spectrogram_of
from pipeline.reading.reader import ClipReader
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.storage import Store

TEMPLATE = Path(__file__).with_name("compare.html")
TABLES = (".csv", ".parquet")
CLIPS_PER_KIND = 4
MIN_SHOWN_DB = 0.1


@dataclass(frozen=True)
class ShownPair:
    """Both versions of a clip on the page."""

    key: str
    text: str
    spectrograms: tuple[str, str]
    players: tuple[str, str]
    """Empty without stored audio."""


def compare(command: CompareCommand) -> None:
    if command.output.suffix != ".html" or command.table.suffix not in TABLES:
        raise ConfigError(
            f"expected --output FILE.html and --table FILE.parquet or FILE.csv, found {command.output} and"
            f" {command.table}"
        )
    first = load_snapshot(Store(resolve_root(command.first)), command.first_snapshot or None)
    second = load_snapshot(Store(resolve_root(command.second)), command.second_snapshot or None)
    comparison = compare_copies(first, second)
    if not len(comparison.table):
        raise NoClipsError(f"expected clips that both {command.first} and {command.second} have, found none")
    counts = comparison.count_kinds()
    print(f"{len(comparison.table)} clips in both, {comparison.num_first_only} only in {command.first},", end=" ")
    print(f"{comparison.num_second_only} only in {command.second}")
    print("".join(f"{counts[kind]:>10,}  {kind}\n" for kind in KINDS if counts[kind]), end="")
    for file in (command.output, command.table):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_table = pa_csv.write_csv if command.table.suffix == ".csv" else pq.write_table
    write_table(comparison.table, command.table)
    command.output.write_text(make_page(command, comparison, (first, second)), encoding="utf-8")
    print(f"{command.output}: the worst clips; {command.table}: all clips")


def make_page(command: CompareCommand, comparison: Comparison, snapshots: tuple[Snapshot, Snapshot]) -> str:
    readers = [(ClipReader(snapshot), dict(_rows_of(snapshot))) for snapshot in snapshots]
    worst = {
        kind: [_show(row, readers) for _, row in worst_of_kind(comparison, kind, CLIPS_PER_KIND).iterrows()]
        for kind in KINDS
        if kind not in (IDENTICAL, SAME)
    }
    return render_page(
        TEMPLATE.read_text(encoding="utf-8"),
        title="Differences between two copies",
        first=command.first,
        second=command.second,
        comparison=comparison,
        num_clips=len(comparison.table),
        counts={kind: count for kind in KINDS if (count := comparison.count_kinds()[kind])},
        worst={kind: pairs for kind, pairs in worst.items() if pairs},
    )


def _rows_of(snapshot: Snapshot) -> zip:
    return zip(snapshot.index["key"].to_pylist(), range(len(snapshot.index)), strict=True)


def _show(row: pd.Series, readers: list[tuple[ClipReader, dict[str, int]]]) -> ShownPair:
    places = [(reader, row_of[row["key"]]) for reader, row_of in readers]
    return ShownPair(
        row["key"],
        _describe(row),
        (spectrogram_of(*places[0]), spectrogram_of(*places[1])),
        (player_of(*places[0]), player_of(*places[1])),
    )


def _describe(row: pd.Series) -> str:
    """Describe the differences of a clip: `offset +2.00 s, level −1.2 dB, codec flac → opus`."""
    parts = [f"offset {row['offset_s']:+.2f} s"] if row["offset_s"] else []
    parts += [f"level {row['level_db']:+.1f} dB"] if abs(row["level_db"]) >= MIN_SHOWN_DB else []
    for name, unit in (("bandwidth_hz", " Hz"), ("codec", ""), ("rate_hz", " Hz")):
        before, after = row[f"{name}_1"], row[f"{name}_2"]
        if before != after and not pd.isna(before) and not pd.isna(after):
            numbers = (before, after) if isinstance(before, str) else (f"{before:.0f}", f"{after:.0f}")
            parts.append(f"{name.removesuffix('_hz')} {numbers[0]} → {numbers[1]}{unit}")
    return ", ".join(part for part in parts if "nan" not in part)
