"""Annotations as Raven and Audacity write them."""

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.recordings.own_sounds import CutConfig, read_sounds
from tests.pipeline.recordings.test_own_sounds import write_sound

CUT = CutConfig(clip_s=10.0)
RAVEN_HEADER = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"


def found_labels(source: Path, config: CutConfig = CUT) -> dict[tuple[str, int, int], tuple[str, ...]]:
    clips, _ = read_sounds(source, config)
    return {(clip.path.name, clip.start_ms, clip.end_ms): clip.labels for clip in clips}


def test_audacity_labels_beside_recordings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("dawn", "dusk", "noon"):
        write_sound(tmp_path / f"{name}.wav.flac", 5)
    (tmp_path / "dawn.wav.txt").write_text("0.500000\t1.250000\twren\n\\\t2000.0\t8000.0\n3.0\t4.0\trobin; loud\n")
    (tmp_path / "dusk.txt").write_text("0,5\t1,5\trobin\n")
    with pytest.raises(InputError, match=r"dusk.txt: expected a recording with the same name beside it, such as dusk"):
        read_sounds(tmp_path, CUT)
    (tmp_path / "dusk.txt").rename(tmp_path / "dusk.wav.txt")
    assert found_labels(tmp_path) == {
        ("dawn.wav.flac", 500, 1250): ("wren",),
        ("dawn.wav.flac", 3000, 4000): ("robin", "loud"),
        ("dusk.wav.flac", 500, 1500): ("robin",),
    }
    assert "skipped 1 recordings without annotations, such as noon.wav.flac" in caplog.text
    (tmp_path / "dusk.wav.txt").write_text("0.5\t1.5\trobin\n2.0\t2.0\twren\n")
    with pytest.raises(InputError, match=r"dusk.wav.txt, line 2: expected 0 ≤ start < end, found '2.0' and '2.0'"):
        read_sounds(tmp_path, CUT)


def test_selection_tables_name_their_recordings_or_share_their_names(tmp_path: Path) -> None:
    for name in ("day1", "day2"):
        write_sound(tmp_path / f"{name}.flac", 5)
    view = "{}\tSpectrogram 1\t1\t{}\t{}\t100.0\t9000.0\t{}\n"
    table = tmp_path / "day1.Table.1.selections.txt"
    rows = view.format(1, 0.5, 1.5, "wren") + view.format(1, 0.5, 1.5, "wren") + view.format(2, 3.0, 4.0, "robin")
    table.write_text(f"{RAVEN_HEADER}\tAnnotation\n{rows}")
    other = tmp_path / "season.txt"
    rows = view.format(1, 60.5, 61.0, "day2.flac\t0.5\trobin") + view.format(2, 62, 63, "day2.flac\t2\twren")
    other.write_text(f"{RAVEN_HEADER}\tBegin File\tFile Offset (s)\tSpecies\n{rows}")
    of_day1 = {("day1.flac", 500, 1500): ("wren",), ("day1.flac", 3000, 4000): ("robin",)}
    of_day2 = {("day2.flac", 500, 1000): ("robin",), ("day2.flac", 2000, 3000): ("wren",)}
    assert found_labels(tmp_path) == of_day1 | of_day2
    table.unlink()
    write_sound(tmp_path / "day3.flac", 5)
    other.write_text(other.read_text() + view.format(3, 70, 71, "day3.flac\t2.5\trobin"))
    assert ("day3.flac", 2500, 3500) in found_labels(other)
    other.write_text(f"{RAVEN_HEADER}\tBird\n{rows}")
    with pytest.raises(InputError, match=r"season.txt: expected .* a column for labels .*found .*bird"):
        read_sounds(other, CUT)


def test_overlapping_annotations_give_clips_all_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        write_sound(tmp_path / f"{name}.flac", 25)
    table = tmp_path / "sounds.csv"
    rows = ["a.flac,rain,,", "a.flac,wren,12,13", "a.flac,robin,12,12.5", "b.flac,robin,0,5", "b.flac,wren,4.9,9"]
    table.write_text("\n".join(["path,labels,start,end", *rows]))
    assert found_labels(table) == {
        ("a.flac", 0, 10_000): ("rain",),
        ("a.flac", 10_000, 20_000): ("rain", "wren", "robin"),
        ("a.flac", 20_000, 25_000): ("rain",),
        ("a.flac", 12_000, 13_000): ("wren", "rain", "robin"),  # the longer one of two that start here
        ("b.flac", 0, 5_000): ("robin",),  # bounds drawn by hand may overlap a little
        ("b.flac", 4_900, 9_000): ("wren",),
    }
    assert "3 of 7 clips overlap annotations with other labels" in caplog.text
