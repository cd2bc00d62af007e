"""Measure the clips of existing shards if their measures are missing or were written by an older version."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipeline.errors import CorruptError, InputError
from pipeline.measures.table import FROM_MEDIA, read_shard_measures, write_measures
from pipeline.shards.format import WRITTEN, map_tar, parse_fbank, read_sidecar
from pipeline.store.layout import SHARDS, TAR, Shard
from pipeline.store.storage import Store

PLACES = ["num_frames", "fbank_offset", "fbank_bytes", "audio_offset", "audio_bytes"]


def shards_with_clips(store: Store) -> list[Shard]:
    """List the finished shards that have a tar."""
    names = set(store.list(SHARDS))
    shards = [Shard.of(name) for name in sorted(names) if name.endswith(TAR)]
    return [shard for shard in shards if shard.sidecar in names]


def is_measured(shard: Shard, store: Store) -> bool:
    """Return True if a shard has measures of the current version for exactly its written clips."""
    keys = [row["key"] for row in _written_rows(shard, store, ["key"])]
    return not keys or _are_current(shard, store, keys)


def measure_shard(shard: Shard, store: Store) -> int:
    """Measure a shard's clips from their fbanks and stored audio, unless their measures are complete.

    Measures of the original media are copied from an older table if there is one. Returns the number of measured clips.
    Raises CorruptError if the shard differs from its sidecar.
    """
    from pipeline.measures.measure import measure_stored  # only workers import this, because it needs PyTorch

    rows = _written_rows(shard, store, ["key", *PLACES])
    keys = [row["key"] for row in rows]
    if _are_current(shard, store, keys):
        return 0
    of_media = _measures_of_media(shard, store)
    measures = []
    with store.local_copy(shard.tar) as tar, map_tar(tar) as content:
        for row in rows:
            fbank, flac = (
                content[row[f"{member}_offset"] :][: row[f"{member}_bytes"]] for member in ("fbank", "audio")
            )
            try:
                each = measure_stored(parse_fbank(fbank, row["num_frames"]), flac)
            except (CorruptError, InputError) as error:
                raise CorruptError(f"{store.url(shard.tar)}: clip {row['key']}: {error}") from error
            measures.append(replace(each, **of_media.get(row["key"], {})))
    write_measures(store, shard, keys, measures)
    return len(rows)


def _written_rows(shard: Shard, store: Store, columns: Sequence[str]) -> list[dict[str, Any]]:
    rows = read_sidecar(store, shard.sidecar, ["status", *columns]).to_pylist()
    return [row for row in rows if row["status"] == WRITTEN]


def _are_current(shard: Shard, store: Store, keys: list[str]) -> bool:
    if not store.exists(shard.measures):
        return False
    try:
        table = read_shard_measures(store, shard, [])
    except CorruptError:
        return False
    return table is not None and table["key"].to_pylist() == keys


def _measures_of_media(shard: Shard, store: Store) -> dict[str, dict[str, Any]]:
    """Read the measures of the original media from an existing table of any version. Returns them by key."""
    if not store.exists(shard.measures):
        return {}
    try:
        table = read_shard_measures(store, shard, FROM_MEDIA, any_version=True)
    except CorruptError:
        return {}
    return {row.pop("key"): row for row in table.to_pylist()} if table else {}
