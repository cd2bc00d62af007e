import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.audio.decode import encode_flac
from pipeline.config import PreprocessConfig
from pipeline.errors import ConfigError, InputError
from pipeline.preprocess import preprocess
from pipeline.records import Reason
from pipeline.shards.format import read_sidecar
from pipeline.store.storage import Store
from tests.pipeline.copies.layouts import id_in_json, nested_parquet, plain_tar, write_tar

IDS = [f"-{number:02d}_aB-cD_e" for number in range(20)]


@pytest.fixture(scope="module")
def clips() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    return {ytid: encode_flac(rng.uniform(-0.1, 0.1, 16_000).astype(np.float32)) for ytid in IDS}


@pytest.fixture
def config(tmp_path: Path) -> PreprocessConfig:
    folder = tmp_path / "csv"
    folder.mkdir()
    rows = "".join(f'{ytid}, 30.000, 31.000, "/m/1"\n' for ytid in IDS)
    (folder / "eval_segments.csv").write_text(f"# YTID, start_seconds, end_seconds, positive_labels\n{rows}")
    (folder / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/1,Sound\n")
    return PreprocessConfig(str(folder), (str(tmp_path / "copy"),), splits=("eval",), clips_per_shard=4)


def sources_of(store: Store) -> dict[str, str]:
    rows = (row for name in store.list("shards", ".parquet") for row in read_sidecar(store, name).to_pylist())
    return {row["ytid"]: row["reason"] or row["source"] for row in rows}


@pytest.mark.ray
def test_second_source_serves_clips_that_the_first_lacks_and_missing_ones_wait_for_a_change(
    ray: None, config: PreprocessConfig, clips: dict[str, bytes], tmp_path: Path
) -> None:
    nested_parquet(tmp_path / "copy", {ytid: clips[ytid] for ytid in IDS[:12]})
    (tmp_path / "disk").mkdir()
    for ytid in IDS[10:16]:
        (tmp_path / f"disk/Y{ytid}_30.000_31.000.flac").write_bytes(clips[ytid])
    config = replace(config, media=(*config.media, str(tmp_path / "disk")))
    store = Store(str(tmp_path / "store"))
    _, report = preprocess(config, store)
    assert (report.num_planned, report.num_written) == (20, 16)
    assert report.failures == {Reason.MISSING_IN_SOURCE: 4}
    sources = sources_of(store)
    assert all(".parquet/" in sources[ytid] for ytid in IDS[:12])
    assert all("disk/Y" in sources[ytid] for ytid in IDS[12:16])
    assert len(sources) == 20

    assert preprocess(config, store)[1].num_planned == 0
    (tmp_path / f"disk/Y{IDS[17]}.flac").write_bytes(clips[IDS[17]])
    snapshot, report = preprocess(config, store)
    assert (report.num_planned, report.num_written) == (4, 1)
    assert len(snapshot.index) == 17


@pytest.mark.ray
def test_copy_with_a_new_container_is_read_again_only_there(
    ray: None, config: PreprocessConfig, clips: dict[str, bytes], tmp_path: Path
) -> None:
    plain_tar(tmp_path / "copy", {ytid: clips[ytid] for ytid in IDS[:12]})
    store = Store(str(tmp_path / "store"))
    assert preprocess(config, store)[1].num_written == 12
    old_tar = tmp_path / "copy/data/bal_train00.tar"
    id_in_json(tmp_path / "copy", {ytid: clips[ytid] for ytid in IDS[12:]})
    # Content that can't be read, under the old size and time, proves that the tar is not opened again.
    status = old_tar.stat()
    old_tar.write_bytes(bytes(status.st_size))
    os.utime(old_tar, ns=(status.st_atime_ns, status.st_mtime_ns))
    snapshot, report = preprocess(config, store)
    assert report.num_written == 8
    assert len(snapshot.index) == 20


@pytest.mark.ray
def test_copy_with_unknown_names_stops_before_any_clip_is_recorded_as_missing(
    ray: None, config: PreprocessConfig, clips: dict[str, bytes], tmp_path: Path
) -> None:
    plain_tar(tmp_path / "copy", {f"take-{ytid}.x": media for ytid, media in clips.items()})
    store = Store(str(tmp_path / "store"))
    with pytest.raises(InputError, match=r"0 of 20 members .*take--00_aB-cD_e.*-00_aB-cD_e_30000.*--id-pattern"):
        preprocess(config, store)
    assert sources_of(store) == {}
    _, report = preprocess(replace(config, id_pattern=r"take-(?P<id>[\w-]{11})"), store)
    assert report.num_written == 20


@pytest.mark.ray
def test_unreadable_container_leaves_its_clips_due(
    ray: None, config: PreprocessConfig, clips: dict[str, bytes], tmp_path: Path
) -> None:
    nested_parquet(tmp_path / "copy", clips)
    broken = tmp_path / "copy/data/bal_train/01.parquet"
    content = broken.read_bytes()
    broken.write_bytes(b"<html>")
    store = Store(str(tmp_path / "store"))
    with pytest.raises(InputError, match=r"1 containers could not be read: expected a parquet at .*01.parquet"):
        preprocess(config, store)
    assert len(sources_of(store)) == 10
    broken.write_bytes(content)
    assert preprocess(config, store)[1].num_written == 10


@pytest.mark.ray
def test_clip_in_two_containers_does_not_end_the_run_early(
    ray: None, config: PreprocessConfig, clips: dict[str, bytes], tmp_path: Path
) -> None:
    twice = {ytid: clips[ytid] for ytid in IDS[:12]}
    id_in_json(tmp_path / "copy", twice)
    plain_tar(tmp_path / "copy", twice)
    write_tar(tmp_path / "copy/last.tar", {f"{ytid}.flac": clips[ytid] for ytid in IDS[12:]})
    store = Store(str(tmp_path / "store"))
    snapshot, report = preprocess(replace(config, max_in_flight=1), store)
    assert len(snapshot.index) == 20 and not report.failures
    assert report.num_planned == report.num_written == 32


def test_only_the_last_source_may_serve_single_clips(config: PreprocessConfig, tmp_path: Path) -> None:
    (tmp_path / "abcdefghijk.flac").write_bytes(b"media")
    with pytest.raises(ConfigError, match="only one source of single files"):
        preprocess(replace(config, media=("http://127.0.0.1:9/{ytid}", str(tmp_path))), Store(str(tmp_path / "store")))
