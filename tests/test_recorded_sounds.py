from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest

from pipeline.recordings.sound_tables import COLUMNS
from scripts.recorded_sounds import PACKAGES, find_sounds, main


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """Folder with the packages' layouts and empty files."""
    names = [f"tuxpaint/stamps/animals/frog-{n}_desc_{lang}.ogg" for n in range(5) for lang in ("ca", "pt_br", "fr")]
    names += ["tuxpaint/stamps/animals/frog-1.ogg", "tuxpaint/stamps/animals/frog-1_desc_ml.ogg"]
    names += [
        f"klettres/{lang}/{kind}/x-{n}.ogg" for lang in ("ar", "en_GB") for kind in ("alpha", "syllab") for n in "ab"
    ]
    names += [f"sonic-pi/samples/{kind}_{n}.flac" for kind in ("bass", "loop") for n in ("amen", "hard_hit")]
    kits, drums = (
        ("Kit A", "Kit B", "Kit C"),
        ("Kick-1.flac", "Kick-2.flac", "hhat open-Soft.wav", "hhat open-Hard.wav"),
    )
    names += [
        f"hydrogen/data/drumkits/{kit}/{drum}" for kit in kits for drum in (*drums, "README.txt", "beats_01.flac")
    ]
    for name in names:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path


@pytest.mark.parametrize(
    ("package", "labels"),
    [
        ("tuxpaint-stamps-default", {"ca": 5, "pt_br": 5, "fr": 5}),
        ("klettres-data", {"ar": 4, "en_GB": 4}),
        ("sonic-pi-samples", {"bass": 2, "loop": 2}),
        ("hydrogen-drumkits", {"kick": 6, "hi-hat": 6}),
    ],
)
def test_package_is_written_as_a_table(package: str, labels: dict[str, int], prefix: Path, tmp_path: Path) -> None:
    out = tmp_path / "sounds.csv"
    assert main(["--package", package, "--prefix", str(prefix), "--out", str(out), "--min-per-class", "2"]) == 0
    table = pd.read_csv(out)
    assert set(table.columns) <= set(COLUMNS)
    assert table["labels"].value_counts().to_dict() == labels
    assert all(Path(path).is_file() for path in table["path"])
    assert set(table["split"]) == {"train", "eval"}
    splits_of = defaultdict(set)
    split_of = dict(zip(table["path"], table["split"], strict=True))
    for sound in find_sounds(package, prefix, 2):
        splits_of[sound.group].add(split_of[str(sound.path)])
    assert max(map(len, splits_of.values())) == 1, "a group is never divided between splits"


def test_packages_are_listed_with_their_sounds(
    prefix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--prefix", str(prefix), "--min-per-class", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PACKAGES)
    assert lines[0].endswith("15 sounds in 3 classes")
    assert lines[2].endswith("0 sounds in 0 classes")
    assert main(["--prefix", str(tmp_path / "missing")]) == 0
    assert "sonic-pi-samples          not installed" in capsys.readouterr().out
    assert main(["--package", "klettres-data", "--prefix", str(tmp_path / "missing")]) == 1
    assert "found none: apt-get install klettres-data" in capsys.readouterr().err
