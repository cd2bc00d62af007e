import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from webdataset.compat import WebDataset
from webdataset.writer import TarWriter

from pipeline.errors import CorruptError
from pipeline.records import Segment
from pipeline.shards.checksum import Checksum, checksum_of
from pipeline.shards.format import (
    ShardWriter,
    parse_fbank,
    read_sidecar,
    sidecar_checksum,
    write_sidecar,
)
from pipeline.store.layout import Shard
from pipeline.store.storage import Store


def sidecar_of(tar: str) -> str:
    return tar.removesuffix("tar") + "parquet"


def written_rows(store: Store, tar: str) -> list[dict]:
    rows = read_sidecar(store, sidecar_of(tar)).to_pylist()
    return [row for row in rows if row["status"] == "written"]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its tars open
def test_webdataset_and_the_offsets_in_the_sidecar_read_the_same_clips(small_store: Store) -> None:
    tars = small_store.list("shards", ".tar")
    assert len(tars) == 6
    for tar in tars:
        rows = written_rows(small_store, tar)
        samples = list(WebDataset(small_store.path(tar), shardshuffle=False, empty_check=False))
        assert checksum_of(Path(small_store.path(tar))) == sidecar_checksum(read_sidecar(small_store, sidecar_of(tar)))
        assert [sample["__key__"] for sample in samples] == [row["key"] for row in rows]
        for row, sample in zip(rows, samples, strict=True):
            fbank_TM = np.load(io.BytesIO(sample["fbank.npy"]))
            assert (fbank_TM.dtype, fbank_TM.shape) == (np.float16, (row["num_frames"], 128))
            member = small_store.read_range(tar, row["fbank_offset"], row["fbank_bytes"])
            np.testing.assert_array_equal(parse_fbank(member, row["num_frames"]), fbank_TM)
            assert small_store.read_range(tar, row["json_offset"], row["json_bytes"]) == sample["json"]
            assert small_store.read_range(tar, row["audio_offset"], row["audio_bytes"]) == sample["flac"]
            assert sample["flac"].startswith(b"fLaC")


def test_sidecar_describes_its_clips(small_store: Store) -> None:
    tar = small_store.list("shards/eval", ".tar")[0]
    for row in written_rows(small_store, tar):
        member = small_store.read_range(tar, row["fbank_offset"], row["fbank_bytes"])
        fbank_TM = np.load(io.BytesIO(member)).astype(np.float64)
        description = json.loads(small_store.read_range(tar, row["json_offset"], row["json_bytes"]))
        assert row["digest"] == hashlib.sha256(member).hexdigest()
        assert row["fbank_sum"] == pytest.approx(fbank_TM.sum())
        assert row["fbank_sum_squares"] == pytest.approx(np.square(fbank_TM).sum())
        fields = ("key", "ytid", "start_ms", "end_ms", "labels", "num_frames")
        assert {field: description[field] for field in fields} == {field: row[field] for field in fields}
        assert row["key"] == f"{row['ytid']}_{row['start_ms']}"


def test_same_clips_give_identical_bytes(tmp_path: Path) -> None:
    segments = [Segment("-a_b", 0, 10_000, ("/m/1",), "eval"), Segment("__c", 30_500, 40_500, ("/m/1", "/m/2"), "eval")]
    fbank_TM = np.random.default_rng(0).normal(size=(998, 128)).astype(np.float32)
    for name, host in (("one", "http://a.example"), ("other", "http://b.example")):
        writer = ShardWriter(tmp_path / name)
        for segment in segments:
            writer.write(segment, fbank_TM, b"audio", f"{host}/{segment.ytid}.webm")
        writer.close()
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    with (
        tarfile.open(tmp_path / "one") as ours,
        (tmp_path / "theirs").open("wb") as stream,
        TarWriter(stream, mtime=0) as theirs,
    ):
        for member in ours:
            key, extension = member.name.split(".", 1)
            theirs.write({"__key__": key, extension: ours.extractfile(member).read()})  # pyright: ignore[reportOptionalMemberAccess]
    assert (tmp_path / "theirs").read_bytes() == (tmp_path / "one").read_bytes()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@pytest.mark.parametrize(
    ("member", "found"),
    [
        (b"", "found 0 bytes"),
        (npy(np.zeros((9, 128), np.float16)), "found 2432 bytes"),
        (npy(np.zeros((10, 128), np.float16))[1:], "start with b'NUMPY"),
        (b"x" * 3000, "start with b'xxxxxx'"),
    ],
)
def test_bytes_that_are_not_an_fbank_of_the_expected_length_are_rejected(member: bytes, found: str) -> None:
    with pytest.raises(CorruptError, match=f"expected an .npy of 10 frames .*{found}"):
        parse_fbank(member, 10)


@pytest.fixture
def sidecar(small_store: Store, tmp_path: Path) -> tuple[Store, str]:
    """A copy of a sidecar in a separate store."""
    store = Store(str(tmp_path))
    name = small_store.list("shards/eval", ".parquet")[0]
    store.write_bytes(name, small_store.read_bytes(name))
    assert read_sidecar(store, name).num_rows == 7
    return store, name


def test_truncated_sidecar_is_named(sidecar: tuple[Store, str]) -> None:
    store, name = sidecar
    for data in (store.read_bytes(name)[:-100], b"", b"PAR1"):
        store.write_bytes(name, data)
        with pytest.raises(CorruptError, match=f"{name} is not a valid sidecar.*remove it and run again"):
            read_sidecar(store, name)


def test_sidecar_with_missing_columns_is_named(sidecar: tuple[Store, str]) -> None:
    store, name = sidecar
    table = read_sidecar(store, name)
    without_metadata = table.replace_schema_metadata(None)
    for changed in (table.drop_columns(["attempts", "digest"]), without_metadata):
        out = io.BytesIO()
        pq.write_table(changed, out)
        store.write_bytes(name, out.getvalue())
        with pytest.raises(CorruptError, match=f"{name} is a sidecar of another version"):
            read_sidecar(store, name)


def test_shard_without_rows_is_read_as_empty(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write_sidecar(store, Shard("eval", "abc").sidecar, [], "print", Checksum(0, "digest"))
    sidecar = read_sidecar(store, "shards/eval/abc.parquet")
    assert (sidecar.num_rows, sidecar_checksum(sidecar)) == (0, Checksum(0, "digest"))
