"""Read shards again and compare their checksums, offsets and metadata with their sidecars."""

import hashlib
import json
from collections import Counter
from pathlib import Path

from pipeline.errors import CorruptError, StoreError
from pipeline.shards.checksum import checksum_of
from pipeline.shards.format import FAILED, WRITTEN, map_tar, read_sidecar, sidecar_checksum
from pipeline.store.layout import Shard
from pipeline.store.storage import Store


def verify_shard(shard: Shard, store: Store) -> list[str]:
    """Return a list of a shard's defects, which is empty if the shard is intact.

    The tar and the sidecar both contain the labels at the time of the conversion. Later corrections appear only in
    snapshots.
    """
    try:
        sidecar = read_sidecar(store, shard.sidecar)
    except (CorruptError, StoreError) as error:
        return [str(error)]
    rows = sidecar.to_pylist()
    wrong = _verify_rows(shard, rows)
    written = [row for row in rows if row["status"] == WRITTEN]
    if not written:
        return wrong
    if not store.exists(shard.tar):
        return [*wrong, f"{shard.tar} is missing; its sidecar has {len(written)} clips"]
    with store.local_copy(shard.tar) as tar:
        found, expected = checksum_of(tar), sidecar_checksum(sidecar)
        if found != expected:
            what = f"{found.num_bytes} bytes and the digest {found.digest[:16]}"
            wrong.append(f"{shard.tar}: expected {expected.num_bytes} bytes and {expected.digest[:16]}, found {what}")
        return wrong + _verify_clips(tar, shard, written)


def _verify_rows(shard: Shard, rows: list[dict]) -> list[str]:
    wrong = []
    if strange := {row["status"] for row in rows} - {WRITTEN, FAILED}:
        wrong.append(f"{shard.sidecar}: expected the status written or failed, found {', '.join(sorted(strange))}")
    if repeated := [key for key, count in Counter(row["key"] for row in rows).items() if count > 1]:
        wrong.append(f"{shard.sidecar}: {repeated[0]} and {len(repeated) - 1} others are listed twice")
    return wrong


def _verify_clips(tar: Path, shard: Shard, rows: list[dict]) -> list[str]:
    bad = []
    with map_tar(tar) as content:
        for row in rows:
            fbank = content[row["fbank_offset"] : row["fbank_offset"] + row["fbank_bytes"]]
            text = content[row["json_offset"] : row["json_offset"] + row["json_bytes"]]
            if hashlib.sha256(fbank).hexdigest() != row["digest"] or not _agrees(text, row):
                bad.append(row["key"])
    return [f"{shard.tar}: {len(bad)} clips differ from their sidecar rows, such as {bad[0]}"] if bad else []


def _agrees(text: bytes, row: dict) -> bool:
    """Return True if a clip's JSON in the tar matches its row in the sidecar."""
    try:
        description = json.loads(text)
    except ValueError:
        return False
    names = ("key", "ytid", "start_ms", "end_ms", "num_frames", "labels")
    return isinstance(description, dict) and all(description.get(name) == row[name] for name in names)


def remove_shard(shard: Shard, store: Store) -> None:
    """Remove a shard, so that the next run converts it again. The sidecar is removed first, because it marks the shard
    as finished."""
    for name in (shard.sidecar, shard.tar, shard.measures):
        if store.exists(name):
            store.remove(name)
