from pathlib import Path

import numpy as np
import pytest

from pipeline.audio.decode import encode_flac
from pipeline.config import FetchConfig
from pipeline.errors import InputError
from pipeline.recordings.own_sounds import CutConfig, read_sounds
from pipeline.recordings.tables import digest_of_tables, write_tables
from pipeline.records import Media
from pipeline.segments import read_segments
from pipeline.sources.table import ListedSource

CUT = CutConfig(clip_s=1.0)


def write_sound(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, round(seconds * 16_000))
    path.write_bytes(encode_flac(noise.astype(np.float32)))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with files of equal names, long and short ones, and one that is no audio."""
    folder = tmp_path_factory.mktemp("sounds")
    for name in ("dog", "cat, purring"):
        for index in range(4):
            write_sound(folder / name / f"{index}.flac", 0.7)
    write_sound(folder / "dog" / "deep" / "long.flac", 3.6)
    (folder / "dog" / "empty.wav").write_bytes(b"")
    return folder


def test_a_folder_per_class_becomes_the_tables_of_audioset(sounds: Path, tmp_path: Path) -> None:
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


def test_changed_files_and_labels_are_other_data(sounds: Path, tmp_path: Path) -> None:
    clips, classes = read_sounds(sounds, CUT)
    digests = set()
    for number, names in enumerate((classes, classes, [*classes, "third"])):
        write_tables(clips, names, tmp_path / str(number))
        digests.add(digest_of_tables(tmp_path / str(number)))
    assert len(digests) == 2


def test_a_table_says_labels_times_and_splits(sounds: Path) -> None:
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
        ("file,label\na.flac,dog\n", "expected the columns path,labels .* found file,label"),
        ("path,labels\ndog/0.flac,dog\nnowhere.flac,cat\n", r"line 3: expected an audio file at .*nowhere\.flac"),
        ("path,labels\ndog/0.flac, ;\n", "line 2: expected labels"),
        ("path,labels,start,end\ndog/0.flac,dog,0.5,0.2\n", "line 2: expected 0 ≤ start < end"),
        ("path,labels,start,end\ndog/0.flac,dog,soon,\n", "line 2: expected start and end in seconds"),
        ("path,labels,split\ndog/0.flac,dog,eval\ndog/1.flac,cat,\n", "a split in each row or in none"),
        ("path,labels,split\ndog/0.flac,dog,train\ndog/1.flac,cat,dev\n", "line 3: expected a split of train"),
        ("path,labels,split\ndog/0.flac,dog,train\ndog/1.flac,cat,train\n", "expected clips to measure on"),
        ("path,labels\ndog/0.flac,dog\ndog/1.flac,dog\n", "at least two classes"),
        ("path,labels\ndog/empty.wav,dog\ndog/empty.wav,cat\n", "none of 2 sounds has any audio"),
        ("path,labels\n", "expected sounds, found none"),
    ],
)
def test_a_bad_table_is_refused_with_its_line(sounds: Path, text: str, message: str) -> None:
    table = sounds / "bad.csv"
    table.write_text(text)
    with pytest.raises(InputError, match=message):
        read_sounds(table, CUT)
