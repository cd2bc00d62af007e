"""Groups and folds of own sounds."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, InputError
from pipeline.recordings.own_sounds import CutConfig, read_sounds
from tests.pipeline.recordings.test_own_sounds import write_sound

CUT = CutConfig(clip_s=1.0)


@pytest.fixture(scope="module")
def speakers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two words by six speakers, in folders; one recording of s0 is also stored as a recording of s1."""
    folder = tmp_path_factory.mktemp("speakers")
    for word in ("yes", "no"):
        for number in range(6):
            write_sound(folder / word / f"s{number}_{word}.flac", 0.3)
    for name in ("s0_copy", "s1_copy"):
        write_sound(folder / "yes" / f"{name}.flac", 0.3, seed=5)
    return folder


def groups_of_split(folder: Path, config: CutConfig) -> dict[str, set[str]]:
    groups = defaultdict(set)
    for clip in read_sounds(folder, config)[0]:
        groups[clip.split].add(clip.path.name[:2])
    return dict(groups)


def test_groups_and_copies_are_never_in_two_splits(speakers: Path) -> None:
    for seed in range(3):
        config = replace(CUT, group_by=r"^(s\d)", seed=seed)
        found = groups_of_split(speakers, config)
        assert found.keys() == {"train", "eval"} and not found["train"] & found["eval"]
        assert len({"s0", "s1"} & found["eval"]) != 1
        folds = groups_of_split(speakers, replace(config, num_folds=3))
        assert folds.keys() == {"fold1", "fold2", "fold3"}
        assert sum(map(len, folds.values())) == 6


def test_folds_have_equally_many_clips_of_each_class(tmp_path: Path) -> None:
    for name, count in (("dog", 20), ("cat", 10)):
        for index in range(count):
            write_sound(tmp_path / name / f"{index}.flac", 0.1)
    clips, _ = read_sounds(tmp_path, replace(CUT, num_folds=5))
    for fold in range(1, 6):
        labels = [clip.labels[0] for clip in clips if clip.split == f"fold{fold}"]
        assert (labels.count("dog"), labels.count("cat")) == (4, 2)


@pytest.mark.parametrize(
    ("group_by", "num_folds", "error", "message"),
    [
        ("^x", 0, ConfigError, "--group-by: expected a pattern that occurs in names such as s0_no.flac, found '\\^x'"),
        (r"^s", 0, InputError, "at least 2 groups, found 1: 's'; a group is never in two splits"),
        (r"^s\d", 9, InputError, "at least 9 groups, found 5"),
    ],
)
def test_useless_groups_are_refused(
    speakers: Path, group_by: str, num_folds: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_sounds(speakers, replace(CUT, group_by=group_by, num_folds=num_folds))


@pytest.mark.parametrize(
    ("header", "cells", "message"),
    [
        ("group,split", "a,train a,train b,eval a,eval", "such as 'a' with 2 in train and 1 in eval"),
        ("group,fold", "a,1 b,1 b,2 c,2", "such as 'b' with 1 in fold1 and 1 in fold2"),
        ("fold", "1 1 1 1", "at least two folds, found only 'fold1'"),
        ("fold", "1 1 2 2", "found 'no' only in fold2, 'yes' only in fold1"),
    ],
)
def test_contradictory_groups_and_folds_are_named(speakers: Path, header: str, cells: str, message: str) -> None:
    table = speakers / "table.csv"
    names = ("yes/s0_yes", "yes/s1_yes", "no/s0_no", "no/s1_no")
    rows = [f"{name}.flac,{name.split('/')[0]},{row}" for name, row in zip(names, cells.split(), strict=True)]
    table.write_text("\n".join([f"path,labels,{header}", *rows]))
    with pytest.raises(InputError, match=message):
        read_sounds(table, CUT)


def test_folds_of_one_clip_are_named(speakers: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = speakers / "table.csv"
    rows = ["yes/s0_yes.flac,yes,a", "no/s0_no.flac,no,a", "yes/s1_yes.flac,yes,b b", "no/s2_no.flac,no,b b"]
    table.write_text("\n".join(["path,labels,fold", *rows, "yes/s3_yes.flac,yes,c"]))
    assert {clip.split for clip in read_sounds(table, CUT)[0]} == {"folda", "foldb_b", "foldc"}
    assert "found one in foldc; its result says little" in caplog.text
    with pytest.raises(InputError, match="has a column fold: omit --folds"):
        read_sounds(table, replace(CUT, num_folds=2))
    table.write_text("path,labels,group\nyes/s0_yes.flac,yes,a\nno/s0_no.flac,no,b\n")
    with pytest.raises(ConfigError, match="either --group-by or a column group"):
        read_sounds(table, replace(CUT, group_by="s"))


def test_files_without_a_match_are_their_own_groups(speakers: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips, _ = read_sounds(speakers, replace(CUT, group_by=r"^(s[2-5])_|_(copy)"))
    assert "4 file names do not match, such as s0_no.flac; each is its own group" in caplog.text
    assert {clip.group for clip in clips if clip.path.name.startswith("s2")} == {"s2"}
