import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import CorruptError
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.snapshots.verify import verify_sizes
from pipeline.store.storage import Store

Damage = Callable[[Path, Path], object]


def swap(one: Path, other: Path) -> None:
    content = one.read_bytes()
    shutil.copy(other, one)
    other.write_bytes(content)


@pytest.fixture
def copy(snapshot: Snapshot, tmp_path: Path) -> Snapshot:
    shutil.copytree(snapshot.store.root, tmp_path / "copy")
    return load_snapshot(Store(str(tmp_path / "copy")))


@pytest.mark.slow
def test_intact_shards_pass_on_disk_and_on_s3(snapshot: Snapshot, s3_store: Store) -> None:
    verify_sizes(snapshot)
    for name in [*snapshot.checksums, *snapshot.store.list("snapshots"), "latest.json"]:
        s3_store.write_bytes(name, snapshot.store.read_bytes(name))
    on_s3 = load_snapshot(s3_store)
    verify_sizes(on_s3)
    s3_store.write_bytes(next(iter(on_s3.checksums)), b"short")
    with pytest.raises(CorruptError, match=r"1 of .* shards .*s3://.*5 bytes, expected"):
        verify_sizes(on_s3)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda one, _: os.truncate(one, 10_000), "10000 bytes, expected .* it is truncated.*verify --repair --root "),
        (lambda one, _: one.unlink(), "is missing"),
        (swap, "expected .* another file"),
    ],
    ids=["cut", "missing", "swapped"],
)
def test_bad_shard_is_named(copy: Snapshot, damage: Damage, found: str) -> None:
    small, large = sorted(copy.checksums, key=lambda name: copy.checksums[name].num_bytes)[:: len(copy.checksums) - 1]
    file = Path(copy.store.path(small))
    damage(file, Path(copy.store.path(large)))
    with pytest.raises(CorruptError, match=f"of {len(copy.checksums)} shards .*{file.name}.*{found}"):
        verify_sizes(copy)
