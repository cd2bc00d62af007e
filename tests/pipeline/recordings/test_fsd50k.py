import csv
import hashlib
import shutil
import subprocess
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.recordings import fsd50k
from pipeline.recordings.fsd50k import fetch_fsd50k, read_fsd50k

MID_OF = {"Bark": "/m/05tny_", "Dog": "/m/0bt9lr", "Keyboard_(musical)": "/m/05148p4"}
DEV = [("64760", "Bark,Dog", "train"), ("16399", "Keyboard_(musical)", "val"), ("4258", "Dog", "train")]
EVAL = [("37199", "Bark,Dog")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in the official layout, with quotes as in the official tables."""
    folder = tmp_path / "FSD50K"
    tables = folder / "FSD50K.ground_truth"
    tables.mkdir(parents=True)
    vocabulary = [f"{index},{name},{mid}\n" for index, (name, mid) in enumerate(MID_OF.items())]
    (tables / "vocabulary.csv").write_text("".join(vocabulary))
    dev = [(name, labels, ",".join(MID_OF[label] for label in labels.split(",")), split) for name, labels, split in DEV]
    rows = [(name, labels, ",".join(MID_OF[label] for label in labels.split(","))) for name, labels in EVAL]
    for part, header, content in (
        ("dev", ["fname", "labels", "mids", "split"], dev),
        ("eval", ["fname", "labels", "mids"], rows),
    ):
        with (tables / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *content])
        (folder / f"FSD50K.{part}_audio").mkdir()
        for row in content:
            (folder / f"FSD50K.{part}_audio" / f"{row[0]}.wav").touch()
    return folder


def replace_in(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_official_folder_is_read(folder: Path) -> None:
    recordings, classes = read_fsd50k(folder)
    assert classes == list(MID_OF)
    assert Counter(each.split for each in recordings) == {"train": 2, "valid": 1, "test": 1}
    first, *_, last = recordings
    assert (first.path.name, first.labels, first.split) == ("64760.wav", ("Bark", "Dog"), "train")
    assert (last.path.parent.name, last.labels, last.end_ms) == ("FSD50K.eval_audio", ("Bark", "Dog"), 30_000)


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("vocabulary", "1,Dog,/m/0bt9lr\n", "", r"line 2: expected index 1, a new label and its mid, found '2,Key"),
        ("vocabulary", "1,Dog", "1,Bark", r"line 2: expected index 1, a new label .* found '1,Bark"),
        ("vocabulary", "/m/0bt9lr", "/m/other", r"dev\.csv, line 2: expected the mids of 'Bark,Dog'"),
        ("dev", '"Bark,Dog"', '"Bark,Wolf"', r"dev\.csv, line 2: the label 'Wolf' is not in .*vocabulary\.csv"),
        ("dev", ",val", ",dev", r"dev\.csv, line 3: expected the split train or val, found 'dev'"),
        ("dev", "labels,mids,split", "labels,split", r"with the columns fname,labels,mids,split at .*dev\.csv"),
        ("eval", "fname", "name", r"with the columns fname,labels,mids at .*eval\.csv"),
    ],
)
def test_contradictory_tables_are_rejected(folder: Path, table: str, old: str, new: str, message: str) -> None:
    replace_in(folder / f"FSD50K.ground_truth/{table}.csv", old, new)
    with pytest.raises(InputError, match=message):
        read_fsd50k(folder)


def test_missing_audio_is_reported_with_its_archive(folder: Path) -> None:
    shutil.rmtree(folder / "FSD50K.eval_audio")
    with pytest.raises(InputError, match=r"1 are not in .*eval_audio \(37199\.wav\): unpack FSD50K\.eval_audio\.zip"):
        read_fsd50k(folder)
    with pytest.raises(InputError, match=r"expected FSD50K's FSD50K\.ground_truth/vocabulary\.csv at"):
        read_fsd50k(folder / "FSD50K.dev_audio")


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a server with the data set as on Zenodo: tables in a zip, audio in split zips, and their digests."""
    program = shutil.which("zip")
    if program is None:
        pytest.skip("Info-ZIP's zip makes split zips")
    served = tmp_path / "served"
    served.mkdir()
    for name, *_ in DEV:
        # Each clip spans at most two parts, as in the real set: joining corrupts files that span three.
        (folder / "FSD50K.dev_audio" / f"{name}.wav").write_bytes(hashlib.shake_256(name.encode()).digest(50_000))
    with zipfile.ZipFile(served / "FSD50K.ground_truth.zip", "w") as archive:
        for file in sorted((folder / "FSD50K.ground_truth").iterdir()):
            archive.write(file, file.relative_to(folder))
    for name in ("FSD50K.dev_audio", "FSD50K.eval_audio"):
        subprocess.run([program, "-q", "-r", "-s", "64k", served / f"{name}.zip", name], cwd=folder, check=True)
    digests = {name: {} for name in fsd50k.ARCHIVES}
    for file in sorted(served.iterdir()):
        digests[file.stem][file.suffix[1:]] = hashlib.md5(file.read_bytes()).hexdigest()
    assert list(digests["FSD50K.dev_audio"]) == ["z01", "z02", "zip"]
    monkeypatch.setattr(fsd50k, "ARCHIVES", digests)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(served))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_split_archives_are_fetched_joined_and_unpacked_once(address: str, folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    fetched = fetch_fsd50k(address, home)
    assert [each.labels for each in read_fsd50k(fetched)[0]] == [each.labels for each in read_fsd50k(folder)[0]]
    for name, *_ in DEV:
        file = f"FSD50K.dev_audio/{name}.wav"
        assert (fetched / file).read_bytes() == (folder / file).read_bytes()
    (home / "FSD50K.dev_audio.joined.zip").write_bytes(b"")  # unpacking it again would fail
    assert fetch_fsd50k("http://127.0.0.1:9/nobody", home) == fetched
