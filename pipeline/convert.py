"""One shard plan → one shard and its sidecar."""

import logging
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.audio import Clip, decode_segment, encode_flac
from pipeline.config import FetchConfig
from pipeline.fbank import compute_fbank
from pipeline.records import Failure, Media, Reason, Segment, ShardPlan, ShardReport
from pipeline.shards import (
    FAILED,
    WRITTEN,
    ShardWriter,
    SidecarRow,
    digest_of,
    read_sidecar,
    seal_of,
    shard_name,
    shard_settings,
    write_sidecar,
)
from pipeline.sources import Source, fetch_with_retries
from pipeline.storage import Store

log = logging.getLogger(__name__)
SHORT = "short"
"""Detail of a written clip whose media ended before its segment did."""


@dataclass(frozen=True)
class Conversion:
    """What turns any shard plan into a shard."""

    store: Store
    source: Source
    fetch: FetchConfig
    keep_audio: bool

    @property
    def fingerprint(self) -> str:
        return digest_of(shard_settings(self.keep_audio))


def convert_shard(plan: ShardPlan, conversion: Conversion) -> ShardReport:
    """Fetch, decode and convert the segments of a plan and publish the shard; skip one that is there.

    A clip that can't be had becomes a failed row. A shard without any clip has a sidecar only.
    """
    store = conversion.store
    sidecar = shard_name(plan.split, plan.shard_id, "parquet")
    if store.exists(sidecar):
        rows = read_sidecar(store, sidecar, ["status", "reason"]).to_pylist()
        return _report(plan, [(row["status"], row["reason"]) for row in rows], num_bytes=0, is_new=False)
    with store.scratch() as folder:
        tar = folder / "shard.tar"
        rows = _write_clips(plan, conversion, tar)
        seal = seal_of(tar)
        if any(row.status == WRITTEN for row in rows):
            store.publish(tar, shard_name(plan.split, plan.shard_id, "tar"))
        write_sidecar(store, sidecar, rows, conversion.fingerprint, seal)
    return _report(plan, [(row.status, row.reason) for row in rows], seal.num_bytes, is_new=True)


def _write_clips(plan: ShardPlan, conversion: Conversion, tar: Path) -> list[SidecarRow]:
    writer = ShardWriter(tar)
    rows = []
    for segment, earlier, (media, attempts) in zip(
        plan.segments, plan.attempts, _fetch_ahead(plan, conversion), strict=True
    ):
        fields: dict[str, Any]
        clip = media if isinstance(media, Failure) else decode_segment(media, segment.start_ms, segment.end_ms)
        if isinstance(clip, Failure):
            fields = {"status": FAILED, "reason": clip.reason.value, "detail": clip.detail}
        else:
            fields = _write_clip(writer, segment, clip, media.source, conversion.keep_audio)
        source = media.source if isinstance(media, Media) else ""
        rows.append(_row(segment, attempts=earlier + attempts, source=source, **fields))
    writer.close()
    return rows


def _write_clip(writer: ShardWriter, segment: Segment, clip: Clip, source: str, keep_audio: bool) -> dict[str, Any]:
    fbank_TM = compute_fbank(torch.from_numpy(clip.waveform)).numpy()
    audio = encode_flac(clip.waveform) if keep_audio else None
    written = writer.write(segment, fbank_TM.astype(np.float16), audio, source)
    return {"status": WRITTEN, "detail": SHORT if clip.is_short else "", **written}


def _row(segment: Segment, **fields: Any) -> SidecarRow:
    return SidecarRow(
        key=segment.key,
        ytid=segment.ytid,
        start_ms=segment.start_ms,
        end_ms=segment.end_ms,
        split=segment.split,
        labels=segment.labels,
        **fields,
    )


def _fetch_ahead(plan: ShardPlan, conversion: Conversion) -> Iterator[tuple[Media | Failure, int]]:
    """Yield the outcome of fetching each segment, in order, with a bounded number under way."""
    fetch = conversion.fetch
    with ThreadPoolExecutor(fetch.num_threads) as pool:
        window: deque[Future[tuple[Media | Failure, int]]] = deque()
        for segment in plan.segments:
            window.append(pool.submit(fetch_with_retries, conversion.source, segment, fetch))
            if len(window) >= 2 * fetch.num_threads:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()


def _report(plan: ShardPlan, outcomes: list[tuple[str, str]], num_bytes: int, is_new: bool) -> ShardReport:
    failures = Counter(Reason(reason) for status, reason in outcomes if status == FAILED)
    return ShardReport(
        shard_id=plan.shard_id,
        split=plan.split,
        num_planned=len(plan.segments),
        num_written=len(outcomes) - failures.total(),
        failures=dict(failures),
        num_bytes=num_bytes,
        is_new=is_new,
    )
