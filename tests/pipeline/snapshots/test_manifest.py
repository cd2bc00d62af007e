import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import PreprocessConfig
from pipeline.errors import CorruptError
from pipeline.miniature import Miniature
from pipeline.preprocess import preprocess
from pipeline.snapshots.history import list_snapshots
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.storage import Store

OTHER_SHAPES = ["[]", "null", "7", '"text"', "{}", '{"snapshot": 1}', '{"settings": [], "split_counts": {}}']


@pytest.fixture
def copy(snapshot: Snapshot, tmp_path: Path) -> Store:
    shutil.copytree(snapshot.store.root, tmp_path / "store")
    return Store(str(tmp_path / "store"))


def count_one_more(manifest: Any) -> None:
    manifest["split_counts"]["eval"]["planned"] += 1


def count_text(manifest: Any) -> None:
    del manifest["digest"]
    manifest["split_counts"]["eval"]["planned"] = "many"


@pytest.mark.parametrize("content", OTHER_SHAPES)
@pytest.mark.parametrize("file", ["latest.json", "manifest.json"])
def test_unexpected_json_is_corrupt_and_restored_by_the_next_preprocessing(
    snapshot: Snapshot, copy: Store, miniature: Miniature, file: str, content: str
) -> None:
    name = file if file == "latest.json" else f"snapshots/{snapshot.snapshot_id}/{file}"
    before = copy.read_bytes(name)
    copy.write_bytes(name, content.encode())
    with pytest.raises(CorruptError, match=f"{file}: expected"):
        load_snapshot(copy)
    with pytest.raises(CorruptError, match=f"{file}: expected"):
        list_snapshots(copy)
    media = (str(miniature.media_folder),)
    preprocess(PreprocessConfig(str(miniature.metadata_folder), media, keep_audio=True, retry=()), copy)
    assert copy.read_bytes(name) == before


@pytest.mark.parametrize("change", [count_one_more, count_text])
def test_changed_counts_of_a_manifest_are_corrupt(
    snapshot: Snapshot, copy: Store, change: Callable[[Any], None]
) -> None:
    name = f"snapshots/{snapshot.snapshot_id}/manifest.json"
    manifest = json.loads(copy.read_bytes(name))
    change(manifest)
    copy.write_json(name, manifest)
    with pytest.raises(CorruptError, match=r"manifest\.json: expected"):
        load_snapshot(copy)


def test_manifests_without_a_digest_are_read(snapshot: Snapshot, copy: Store) -> None:
    name = f"snapshots/{snapshot.snapshot_id}/manifest.json"
    copy.write_json(name, snapshot.manifest)
    assert load_snapshot(copy).manifest == snapshot.manifest
