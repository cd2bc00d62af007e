import os
import wave
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.audio.decode import Clip, decode_file, decode_segment, encode_flac
from pipeline.config import FetchConfig, PreprocessConfig
from pipeline.errors import InputError
from pipeline.labels import NO_LABEL
from pipeline.metadata import load_metadata
from pipeline.recordings.own_sounds import CutConfig, read_sounds
from pipeline.recordings.tables import digest_of_tables, write_tables
from pipeline.records import Media
from pipeline.segments import read_segments
from pipeline.sources.table import ListedSource
from tests.pipeline.audio.encoding import encode

CUT = CutConfig(clip_s=1.0)


def write_sound(path: Path, seconds: float, seed: int | None = None) -> None:
    """Write noise that depends on the path, or on the seed if given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32(str(path).encode()) if seed is None else seed
    noise = np.random.default_rng(seed).uniform(-0.1, 0.1, round(seconds * 16_000))
    path.write_bytes(encode_flac(noise.astype(np.float32)))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with files of equal names and different lengths, and an empty file."""
    folder = tmp_path_factory.mktemp("sounds")
    for name in ("dog", "cat, purring"):
        for index in range(4):
            write_sound(folder / name / f"{index}.flac", 0.7)
    write_sound(folder / "dog" / "deep" / "long.flac", 3.6)
    (folder / "dog" / "empty.wav").write_bytes(b"")
    return folder


def test_folder_per_class_becomes_audioset_tables(sounds: Path, tmp_path: Path) -> None:
    clips, classes = read_sounds(sounds, CUT)
    assert classes == ["cat, purring", "dog"]
    long = [(clip.start_ms, clip.end_ms) for clip in clips if clip.path.name == "long.flac"]
    assert long == [(0, 1000), (1000, 2000), (2000, 3000), (3000, 3600)]
    assert len(clips) == 8 + 4
    splits_of = {path: {clip.split for clip in clips if clip.path == path} for path in {clip.path for clip in clips}}
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert {(clip.split, clip.labels) for clip in clips} == {
        (split, (name,)) for split in ("train", "eval") for name in classes
    }
    assert write_tables(clips, classes, tmp_path) == ("eval", "train")
    segments = [each for split in ("train", "eval") for each in read_segments(str(tmp_path / f"{split}_segments.csv"))]
    assert len({segment.key for segment in segments}) == len(clips)
    source = ListedSource(str(tmp_path / "media.csv"), FetchConfig())
    media = [source.fetch(segment) for segment in segments]
    assert all(isinstance(each, Media) and Path(str(each.content)).exists() for each in media)


def test_files_without_a_stated_length_are_cut_to_their_end(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (3, 48_000))
    quiet_end = np.concatenate([noise[0], np.zeros(4 * 48_000)])
    options = {"write_xing": "0", "flags": "+qscale", "global_quality": "236"}
    link = encode(noise[1], 48_000, "ogg", "libopus")
    files = {
        "radio/chained.ogg": link + encode(noise[2], 48_000, "ogg", "flac") + link,
        "radio/vbr.mp3": encode(quiet_end, 48_000, "mp3", "libmp3lame", options=options),
        "wind/a.wav": encode(noise[0], 48_000),
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    clips, _ = read_sounds(tmp_path, CUT)
    counts = Counter(clip.path.name for clip in clips)
    assert counts == {"chained.ogg": 3, "vbr.mp3": 5, "a.wav": 1}
    for clip in clips:
        decoded = decode_segment(Media(clip.path, "test"), clip.start_ms, clip.end_ms)
        assert isinstance(decoded, Clip), decoded
        assert len(decoded.waveform) == pytest.approx(16_000, abs=32)


def test_changed_files_and_labels_change_the_digest(sounds: Path, tmp_path: Path) -> None:
    clips, classes = read_sounds(sounds, CUT)
    digests = set()
    for number, names in enumerate((classes, classes, [*classes, "third"])):
        write_tables(clips, names, tmp_path / str(number))
        digests.add(digest_of_tables(tmp_path / str(number)))
    assert len(digests) == 2


def test_table_states_labels_times_and_splits(sounds: Path) -> None:
    table = sounds / "sounds.csv"
    table.write_text(
        "path,labels,start,end,split\n"
        "dog/0.flac,dog;  loud,,,train\n"
        '"cat, purring/0.flac","cat, purring",0.1,0.5,train\n'
        "dog/deep/long.flac,dog,3,9,valid\n"
    )
    clips, classes = read_sounds(table, CUT)
    assert classes == ["cat, purring", "dog", "loud"]
    assert [(clip.labels, clip.start_ms, clip.end_ms, clip.split) for clip in clips] == [
        (("dog", "loud"), 0, 700, "train"),
        (("cat, purring",), 100, 500, "train"),
        (("dog",), 3000, 3600, "valid"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filename,label\na.flac,dog\n", "found 'filename,label'; did you mean path for filename and labels for label"),
        ("Path,labels\na.flac,dog\n", "did you mean path for Path"),
        ("path;labels\na.flac;dog\n", "columns are separated by ';'; save it with commas"),
        ("path,labels\ndog/0.flac,dog,loud\n", "line 2: expected 2 cells, found more, such as 'loud'"),
        ("path,labels,group\ndog/0.flac,dog,a\ndog/1.flac,cat,\n", "line 3: expected a group in each row or in none"),
        ("path,labels,fold\ndog/0.flac,dog,\ndog/1.flac,cat,2\n", "line 3: .* in none, found one here"),
        ("path,labels,split,fold\ndog/0.flac,dog,train,1\n", "line 2: expected a split or a fold, found both"),
        ("path,labels\nMüller.flac,dog\n".encode("latin-1"), "not UTF-8 .*iconv -f LATIN1"),
        ("path,labels\n" + "x" * 200_000 + ",dog\n", "field larger than field limit"),
        ("path,labels\n" + "x" * 100_000 + ",dog\n", "File name too long|expected an audio file at"),
        (
            "path,labels,end\ndog/0.flac,dog," + "9" * 6_000 + "\n",
            r"line 2: expected 0 ≤ start < end.*\(6,000 characters\)",
        ),
        ("path,labels,end\ndog/0.flac,dog,nan\n", "line 2: expected start and end in seconds"),
        ("path,labels,end\ndog/0.flac,dog,1_0\n", "line 2: expected start and end in seconds"),
        ("path,labels\ndog/0.flac,dog\nnowhere.flac,cat\n", r"line 3: expected an audio file at .*nowhere\.flac"),
        ("path,labels\ndog/0.flac, ;\n", "line 2: expected labels"),
        ("path,labels,start,end\ndog/0.flac,dog,0.5,0.2\n", "line 2: expected 0 ≤ start < end"),
        ("path,labels,start,end\ndog/0.flac,dog,soon,\n", "line 2: expected start and end in seconds"),
        (
            "path,labels,split\ndog/0.flac,dog,eval\ndog/1.flac,cat,\n",
            "line 3: expected a split in each row or in none",
        ),
        ("path,labels,split\ndog/0.flac,dog,train\ndog/1.flac,cat,dev\n", "line 3: expected a split of train"),
        ("path,labels,split\ndog/0.flac,dog,train\ndog/1.flac,cat,train\n", "expected clips to evaluate on"),
        ("path,labels\ndog/0.flac,dog\ndog/1.flac,dog\n", "at least two classes"),
        ("path,labels\ndog/empty.wav,dog\ndog/empty.wav,cat\n", "one row for .*empty.wav, found 'dog and cat'"),
        ("path,labels\ndog/empty.wav,dog;cat\n", "none of the sounds has any audio"),
        ("path,labels\ndog/empty.wav,owl\ndog/0.flac,dog\n", "no sound of the class 'owl' has any audio"),
        (
            "path,labels\ndog/0.flac,dog\ndog/0.flac,cat\n",
            "one row for .*0.flac, found 'dog and cat'",
        ),
        ("path,labels\ndog/0.flac,dog\ndog/1.flac,cat\n", "a class with at least two different files"),
        ("path,labels\n", "expected sounds, found none"),
    ],
)
def test_invalid_table_is_rejected_with_its_line(sounds: Path, text: str | bytes, message: str) -> None:
    table = sounds / "bad.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as caught:
        read_sounds(table, CUT)
    assert len(str(caught.value)) < 1_000


def test_identical_files_share_a_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("dog", "cat"):
        for index in range(3):
            write_sound(tmp_path / name / f"{index}.flac", 0.5)
        write_sound(tmp_path / name / "copy.flac", 0.5, seed=1)
    clips, _ = read_sounds(tmp_path, CUT)
    assert "1 files have the same content as a file with different labels, such as" in caplog.text
    assert len({clip.split for clip in clips if clip.path.name == "copy.flac"}) == 1  # one of each would be a leak
    table = tmp_path / "sounds.csv"
    table.write_text("path,labels,split\ncat/copy.flac,a,train\ncat/0.flac,b,train\ndog/copy.flac,a,eval\n")
    read_sounds(table, CUT)
    assert "1 files or copies of them are in more than one split" in caplog.text


def test_labels_of_identical_files_are_compared_over_all_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        write_sound(tmp_path / f"{name}.flac", 1.0, seed=1)
    table, rows = tmp_path / "sounds.csv", ["{},cat,0,0.5,train", "{},dog,0.5,1,train"]
    both = [row.format(name) for name, order in (("a.flac", 1), ("b.flac", -1)) for row in rows[::order]]
    write_sound(tmp_path / "c.flac", 1.0, seed=2)
    table.write_text("\n".join(["path,labels,start,end,split", *both, "c.flac,dog,0,1,eval"]))
    read_sounds(table, CUT)
    assert "the same content as a file with different labels" not in caplog.text


def test_unusual_names_and_lengths_are_handled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index in range(2):
        write_sound(tmp_path / 'a;b, "c"' / f"{index}.flac", 0.5)
        write_sound(tmp_path / "d" / f"{index}.flac", 0.5)
    write_sound(tmp_path / "d" / "short.flac", 0.02)
    with wave.open(str(tmp_path / "d" / "hour.wav"), "wb") as hour:
        hour.setparams((1, 2, 16_000, 3_600 * 16_000, "NONE", ""))
        hour.writeframes(bytes(2 * 3_600 * 16_000))
    Path(os.fsdecode(os.fsencode(tmp_path / "d") + b"/\xff.flac")).write_bytes(b"")
    (tmp_path / "d" / "._0.flac").write_bytes(b"what macOS keeps beside a file on a foreign disk")
    clips, classes = read_sounds(tmp_path, CutConfig(clip_s=10.0))
    assert classes == ['a;b, "c"', "d"]
    assert "._0" not in caplog.text
    assert sum(clip.path.name == "hour.wav" for clip in clips) == 360
    assert "short.flac has less than 25 ms of audio" in caplog.text
    assert "skipped 1 names that are not UTF-8" in caplog.text
    table = tmp_path / "sounds.csv"
    table.write_text("path,labels\nd/0.flac,dog/bark\nd/1.flac,dog bark\nd/hour.wav,dog/bark;dog bark\n")
    clips, classes = read_sounds(table, CutConfig(clip_s=600.0))
    splits = write_tables(clips, classes, tmp_path / "tables")
    segments = [each for split in splits for each in read_segments(str(tmp_path / f"tables/{split}_segments.csv"))]
    assert {label for each in segments for label in each.labels} == {"/c/dog_bark", "/c/dog_bark_1"}


def test_excel_tables_and_unicode_forms_are_accepted(tmp_path: Path) -> None:
    for name in ("Z\u0065\u0301ro", "x"):  # decomposed, as macOS names files
        write_sound(tmp_path / f"{name}.flac", 0.5)
    rows = ["path\tlabels\t\t", "\t\t\t", "Z\u00e9ro.flac\te\u0301\t\t", "", "x.flac\tdog;\u00e9\t\t"]
    table = tmp_path / "sounds.txt"
    for encoding in ("utf-16", "utf-8-sig"):
        table.write_text("\r\n".join(rows), encoding=encoding)
        clips, classes = read_sounds(table, CutConfig(clip_s=1.0, eval_share=0.5))
        assert classes == ["dog", "\u00e9"] and len(clips) == 2


def test_skipped_files_and_folders_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("dog/0", "dog/1", "cat/0", "_old/0", "stray0", "stray1", "stray2", "stray3"):
        write_sound(tmp_path / f"{name}.flac", 0.1)
    (tmp_path / "dog" / "notes.doc").write_text("to do")
    _, classes = read_sounds(tmp_path, CUT)
    assert classes == ["cat", "dog"]
    assert "4 files outside of class folders ('stray0.flac', 'stray1.flac', 'stray2.flac', …)" in caplog.text
    assert "1 folders that start with _; rename them ('_old')" in caplog.text
    assert "1 files that are not audio ('notes.doc')" in caplog.text


def test_negative_clips_have_no_labels_but_a_split(tmp_path: Path) -> None:
    for index in range(4):
        write_sound(tmp_path / f"{index}.flac", 0.5)
    table = tmp_path / "sounds.csv"
    rows = ["0.flac,owl,train", "1.flac,,train", "2.flac,owl,eval", "3.flac,,eval"]
    table.write_text("\n".join(["path,labels,split", *rows]))
    clips, classes = read_sounds(table, CUT)
    assert (classes, [clip.labels for clip in clips]) == (["owl"], [("owl",), (), ("owl",), ()])
    write_tables(clips, classes, tmp_path / "tables")
    metadata = load_metadata(PreprocessConfig(metadata=str(tmp_path / "tables"), splits=("train", "eval")))
    assert metadata.segments["labels"].to_pylist() == ["/c/owl", NO_LABEL, "/c/owl", NO_LABEL]
    table.write_text("path,labels\n0.flac,owl\n1.flac,\n2.flac,wren\n3.flac,wren\n")
    with pytest.raises(InputError, match=r"line 3: expected labels .*a negative clip requires data with several"):
        read_sounds(table, CUT)


def test_clip_ends_with_the_file_to_the_sample(tmp_path: Path) -> None:
    for index, num_samples in enumerate((8_001, 8_015, 8_000)):
        write_sound(tmp_path / f"{index % 2}" / f"{index}.flac", num_samples / 16_000)
        write_sound(tmp_path / f"{index % 2}" / f"{index}-other.flac", num_samples / 16_000)
    clips, _ = read_sounds(tmp_path, CUT)
    for clip in clips:
        decoded = decode_segment(Media(clip.path, "", 0), clip.start_ms, clip.end_ms)
        assert isinstance(decoded, Clip) and not decoded.is_short
        assert len(decoded.waveform) == len(decode_file(clip.path))
