import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.audio.decode import encode_flac
from pipeline.config import FetchConfig
from pipeline.convert import Conversion
from pipeline.copies import convert as convert_module
from pipeline.copies.containers import Container, list_copy
from pipeline.copies.convert import ContainerReport, CopyConversion, convert_container
from pipeline.copies.listings import read_listing
from pipeline.copies.segment_index import SegmentIndex
from pipeline.records import Segment
from pipeline.segments import SEGMENT_SCHEMA
from pipeline.shards.format import FBANK_DTYPE, _npy_bytes, read_sidecar
from pipeline.shards.journal import ClipResult
from pipeline.sources import FolderSource
from pipeline.store.storage import Store
from tests.pipeline.copies.layouts import id_in_json, nested_parquet, plain_tar

IDS = [f"-{number:02d}_aB-cD_e" for number in range(20)]


@pytest.fixture(scope="module")
def clips() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    return {ytid: encode_flac(rng.uniform(-0.1, 0.1, 16_000).astype(np.float32)) for ytid in IDS}


def segment_index(is_due: np.ndarray | None = None) -> SegmentIndex:
    rows = [
        {"key": f"{ytid}_30000", "start_ms": 30_000, "end_ms": 31_000, "labels": "/m/1", "split": split}
        for number, ytid in enumerate(IDS)
        for split in (["eval", "train"][number % 2],)
    ]
    table = pa.Table.from_pylist(rows, SEGMENT_SCHEMA)
    return SegmentIndex(table, np.ones(len(IDS), bool) if is_due is None else is_due, np.zeros(len(IDS), np.int32))


def work_on(store: Store, is_due: np.ndarray | None = None) -> CopyConversion:
    conversion = Conversion(store, None, FetchConfig(), keep_audio=False)  # pyright: ignore[reportArgumentType]
    return CopyConversion(conversion, segment_index(is_due), clips_per_shard=4)


def the_container(folder: Path) -> Container:
    (container,) = list_copy(str(folder)).containers
    return container


def convert(container: Container, work: CopyConversion) -> ContainerReport:
    """Convert a container of a source that doesn't throttle."""
    report = convert_container(container, work)
    assert isinstance(report, ContainerReport)
    return report


def rows_of(store: Store) -> list[dict]:
    return [row for name in store.list("shards", ".parquet") for row in read_sidecar(store, name).to_pylist()]


def digests_of(store: Store) -> dict[str, str]:
    return {name: hashlib.sha256(store.read_bytes(name)).hexdigest() for name in store.list("shards", ".tar")}


def test_container_becomes_shards_of_one_split_each(tmp_path: Path, clips: dict[str, bytes]) -> None:
    id_in_json(tmp_path / "copy", dict(reversed(clips.items())) | {"unknown_000": b"no media"})
    store = Store(str(tmp_path / "store"))
    report = convert(the_container(tmp_path / "copy"), work_on(store))
    assert not report.error
    assert (report.matches.num_matched, report.matches.num_unmatched) == (20, 1)
    assert report.matches.examples == ["sample-000000020.wav"]
    listing = read_listing(store, the_container(tmp_path / "copy"), work_on(store).segments.search)
    assert listing is not None and sorted(listing.to_pylist()) == [f"{ytid}_30000" for ytid in IDS]
    assert sorted((shard.shard.split, shard.num_written) for shard in report.shards) == [
        *(("eval", count) for count in (2, 4, 4)),
        *(("train", count) for count in (2, 4, 4)),
    ]
    rows = rows_of(store)
    assert sorted(row["ytid"] for row in rows) == IDS
    assert all(row["status"] == "written" and row["num_frames"] == 98 and row["attempts"] == 1 for row in rows)
    assert not store.list("parts")


def test_broken_member_is_one_failed_row(tmp_path: Path, clips: dict[str, bytes]) -> None:
    plain_tar(tmp_path / "copy", clips | {IDS[3]: b"no media at all"})
    store = Store(str(tmp_path / "store"))
    convert_container(the_container(tmp_path / "copy"), work_on(store))
    assert {row["ytid"]: row["reason"] for row in rows_of(store) if row["reason"]} == {IDS[3]: "not_media"}
    assert len(rows_of(store)) == 20


def test_segments_that_are_not_due_are_matched_but_not_converted(tmp_path: Path, clips: dict[str, bytes]) -> None:
    plain_tar(tmp_path / "copy", clips)
    store = Store(str(tmp_path / "store"))
    report = convert(the_container(tmp_path / "copy"), work_on(store, np.arange(20) < 6))
    assert sorted(row["ytid"] for row in rows_of(store)) == IDS[:6]
    assert report.matches.num_matched == 20


@pytest.mark.parametrize(("num_before_kill", "num_parts"), [(3, 1), (11, 5), (17, 8)])
def test_killed_task_continues_and_writes_the_same_bytes(
    tmp_path: Path, clips: dict[str, bytes], num_before_kill: int, num_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_tar(tmp_path / "copy", clips)
    undisturbed, store = Store(str(tmp_path / "undisturbed")), Store(str(tmp_path / "store"))
    container = the_container(tmp_path / "copy")
    convert_container(container, work_on(undisturbed))
    converted: list[str] = []

    def convert_clip(segment: Segment, *args: Any) -> ClipResult:
        if len(converted) == num_before_kill:
            raise KeyboardInterrupt
        converted.append(segment.key)
        return original(segment, *args)

    original = convert_module.convert_clip
    monkeypatch.setattr(convert_module, "convert_clip", convert_clip)
    monkeypatch.setattr(convert_module, "CLIPS_PER_PART", 2)
    with pytest.raises(KeyboardInterrupt):
        convert_container(container, work_on(store))
    assert convert_module.count_stored_parts(container, work_on(store)) == num_parts
    monkeypatch.setattr(convert_module, "convert_clip", original)
    report = convert(container, work_on(store))
    assert report.matches.num_matched == 20
    assert digests_of(store) == digests_of(undisturbed)
    assert len(rows_of(store)) == 20


def test_features_equal_features_of_the_same_media_as_loose_files(tmp_path: Path, clips: dict[str, bytes]) -> None:
    nested_parquet(tmp_path / "copy", clips)
    (tmp_path / "loose").mkdir()
    for ytid, media in clips.items():
        (tmp_path / f"loose/Y{ytid}.flac").write_bytes(media)
    store = Store(str(tmp_path / "store"))
    for container in list_copy(str(tmp_path / "copy")).containers:
        convert_container(container, work_on(store))
    source = FolderSource(str(tmp_path / "loose"), FetchConfig())
    index = segment_index()
    for row in rows_of(store):
        media = source.fetch(index.segment(IDS.index(row["ytid"])))
        result = convert_module.convert_clip(index.segment(IDS.index(row["ytid"])), media, 1, False)
        fbank_TM = np.frombuffer(result.fbank, FBANK_DTYPE).reshape(-1, 128)
        assert row["digest"] == hashlib.sha256(_npy_bytes(fbank_TM)).hexdigest()
