"""Made-up copies of AudioSet in the layouts in which people publish it."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

Clips = Mapping[str, bytes]
"""FLAC by id."""


def nested_parquet(folder: Path, clips: Clips) -> None:
    """agkphysics/AudioSet since 2025: a folder for each split, rows in no particular order."""
    (folder / "data/bal_train").mkdir(parents=True)
    rows = [{"video_id": ytid, "audio": {"bytes": media, "path": f"{ytid}.flac"}} for ytid, media in clips.items()]
    for number, part in enumerate((rows[::2], rows[1::2])):
        table = pa.Table.from_pylist([*reversed(part)])
        pq.write_table(table, folder / f"data/bal_train/{number:02d}.parquet", row_group_size=4)


def opus_parquet(folder: Path, clips: Clips) -> None:
    """danjacobellis/audioset_opus_24kbps: the id is the stem of `path`."""
    (folder / "data").mkdir(parents=True)
    rows = [{"path": f"x/{ytid}.opus", "opus": {"bytes": media, "path": None}} for ytid, media in clips.items()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "data/part_00-00000-of-00001.parquet")


def write_tar(file: Path, members: Mapping[str, bytes], mode: str = "w") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def plain_tar(folder: Path, clips: Clips) -> None:
    """agkphysics/AudioSet before 2025, with the files that macOS adds."""
    members = {f"audio/bal_train/{ytid}.flac": media for ytid, media in clips.items()}
    write_tar(folder / "data/bal_train00.tar", {"audio/bal_train/._x.flac": b"macOS"} | members)


def compressed_tar(folder: Path, clips: Clips) -> None:
    write_tar(folder / "copy.tar.gz", {f"{ytid}.flac": media for ytid, media in clips.items()}, "w:gz")


def id_in_json(folder: Path, clips: Clips) -> None:
    """confit/audioset-16khz-wds: numbered samples, the id only in their JSON."""
    members: dict[str, bytes] = {}
    for number, (ytid, media) in enumerate(clips.items()):
        about = json.dumps({"id": ytid, "label": ["Speech"], "label_id": [0]}).encode()
        members |= {f"sample-{number:09d}.wav": media, f"sample-{number:09d}.json": about}
    write_tar(folder / "20k/train/shard-00000.tar", members)


def prefixed_tar(folder: Path, clips: Clips) -> None:
    """confit/audioset-20k-wds: PANNs' names, and JSON without an id."""
    members: dict[str, bytes] = {}
    for ytid, media in clips.items():
        members |= {f"Y{ytid}.json": b'{"label": [202]}', f"Y{ytid}.wav": media}
    write_tar(folder / "balanced/train/audioset-train-0000.tar", members)


def zipped(folder: Path, clips: Clips) -> None:
    """confit/audioset-full: PANNs' names in zips."""
    (folder / "eval").mkdir(parents=True)
    with zipfile.ZipFile(folder / "eval/eval_segments.zip", "w") as archive:
        for ytid, media in clips.items():
            archive.writestr(f"eval_segments/Y{ytid}.wav", media)


LAYOUTS: list[Callable[[Path, Clips], None]] = [
    nested_parquet,
    opus_parquet,
    plain_tar,
    compressed_tar,
    id_in_json,
    prefixed_tar,
    zipped,
]
