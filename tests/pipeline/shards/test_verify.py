import shutil
from pathlib import Path

from pipeline.measures.backfill import shards_with_clips
from pipeline.shards.verify import verify_shard
from pipeline.store.storage import Store


def test_empty_tar_is_reported_like_other_damage(small_store: Store, tmp_path: Path) -> None:
    shutil.copytree(small_store.path("shards"), tmp_path / "shards")
    store = Store(str(tmp_path))
    shard = shards_with_clips(store)[0]
    assert verify_shard(shard, store) == []
    store.write_bytes(f"{shard}.tar", b"")
    of_tar, of_clips = verify_shard(shard, store)
    assert of_tar.startswith(f"{shard}.tar: expected ") and "found 0 bytes" in of_tar
    assert "clips differ from their sidecar rows" in of_clips
