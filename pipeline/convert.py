"""One shard plan → one shard and its sidecar."""

import logging
import random
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.audio.decode import decode_segment, encode_flac
from pipeline.config import FetchConfig
from pipeline.errors import StoreError
from pipeline.fbank import NUM_MEL_BINS, compute_fbank
from pipeline.records import Failure, FailureCategory, Media, Reason, Segment, ShardPlan, ShardReport
from pipeline.shards.format import (
    FAILED,
    FBANK_DTYPE,
    WRITTEN,
    ShardWriter,
    SidecarRow,
    checksum_of,
    digest_of,
    read_sidecar,
    shard_name,
    shard_settings,
    write_sidecar,
)
from pipeline.shards.journal import CLIPS_PER_PART, SEGMENT_NAMES, ClipResult, Journal
from pipeline.sources import Source, fetch_within
from pipeline.sources.rate_limit import LocalPacer, Pacer, Wait
from pipeline.store.storage import Store

log = logging.getLogger(__name__)
SHORT = "short"
"""Detail of a written clip whose media ended before its segment did."""
MAX_BACKOFF_S = 60.0
SHORT_REST_S = 5.0
"""A shorter rest is waited for; before a longer one the shard is given back."""


@dataclass(frozen=True)
class Conversion:
    """What turns any shard plan into a shard."""

    store: Store
    source: Source
    fetch: FetchConfig
    keep_audio: bool
    pacer: Pacer = field(default_factory=LocalPacer)

    @property
    def fingerprint(self) -> str:
        return digest_of(shard_settings(self.keep_audio))


def convert_shard(plan: ShardPlan, conversion: Conversion) -> ShardReport | Wait:
    """Fetch, decode and convert the segments of a plan and publish the shard; skip one that is there.

    A clip that can't be had becomes a failed row. A shard without any clip has a sidecar only. What a killed attempt
    kept is taken over. Gives back a Wait, with all that was decided kept, if every address rests.
    """
    journal = Journal(conversion.store, conversion.fingerprint, plan.split, plan.shard_id)
    if report := _report_of_existing(plan, conversion.store):
        journal.clear()
        return report
    rest: list[Wait] = []
    report = _write_shard(plan, conversion, _clip_results(plan, conversion, journal, rest), rest)
    if report is None:
        return rest[0]
    journal.clear()
    return report


def recover_partial_shard(journal: Journal, conversion: Conversion) -> ShardReport | None:
    """Make a shard of what a killed run had decided of one; None if there is one already, or nothing to make it of."""
    is_there = conversion.store.exists(shard_name(journal.split, journal.shard_id, "parquet"))
    results = [] if is_there else list(journal.read())
    if not results:  # it was killed while it cleared its parts, or the first one was lost
        journal.clear()
        return None
    segments = tuple(result.segment for result in results)
    shard_id = digest_of([[segment.key, segment.end_ms, journal.folder] for segment in segments])
    plan = ShardPlan(shard_id, segments[0].split, segments, (0,) * len(segments))
    report = _report_of_existing(plan, conversion.store) or _write_shard(plan, conversion, iter(results), [])
    assert report is not None, "nothing is fetched, so nothing rests"
    journal.clear()
    return report


def _report_of_existing(plan: ShardPlan, store: Store) -> ShardReport | None:
    sidecar = shard_name(plan.split, plan.shard_id, "parquet")
    if not store.exists(sidecar):
        return None
    rows = read_sidecar(store, sidecar, ["status", "reason"]).to_pylist()
    return _report(plan, [(row["status"], row["reason"]) for row in rows], num_bytes=0, is_new=False)


def _write_shard(
    plan: ShardPlan, conversion: Conversion, results: Iterator[ClipResult], rest: list[Wait]
) -> ShardReport | None:
    """Write the shard; None if the results ended early, with a rest."""
    store = conversion.store
    with store.scratch() as folder:
        tar = folder / "shard.tar"
        rows = _write_clips(tar, results)
        if rest:
            return None
        checksum = checksum_of(tar)
        if any(row.status == WRITTEN for row in rows):
            store.publish(tar, shard_name(plan.split, plan.shard_id, "tar"))
        write_sidecar(store, shard_name(plan.split, plan.shard_id, "parquet"), rows, conversion.fingerprint, checksum)
    return _report(plan, [(row.status, row.reason) for row in rows], checksum.num_bytes, is_new=True)


def _write_clips(tar: Path, results: Iterator[ClipResult]) -> list[SidecarRow]:
    rows = []
    try:
        with closing(ShardWriter(tar)) as writer:
            for result in results:
                rows.append(_write_clip(writer, result))
    except OSError as error:
        raise StoreError(f"can't write {tar}: {type(error).__name__}: {error}; is the disk full?") from error
    return rows


def _write_clip(writer: ShardWriter, result: ClipResult) -> SidecarRow:
    segment = result.segment
    fields: dict[str, Any] = {}
    if result.status == WRITTEN:
        fbank_TM = np.frombuffer(result.fbank, FBANK_DTYPE).reshape(-1, NUM_MEL_BINS)
        fields = writer.write(segment, fbank_TM, result.audio or None, result.source)
    about = {name: getattr(segment, name) for name in SEGMENT_NAMES}
    about |= {name: getattr(result, name) for name in ("status", "reason", "detail", "attempts", "source")}
    return SidecarRow(key=segment.key, **about, **fields)


def _clip_results(plan: ShardPlan, conversion: Conversion, journal: Journal, rest: list[Wait]) -> Iterator[ClipResult]:
    """Yield what is kept of each segment, then what is fetched, which is kept too; end early if all rests."""
    num_done = 0
    for result in journal.read():
        yield result
        num_done += 1
    pending: list[ClipResult] = []
    for segment, earlier, fetched in _prefetch_clips(plan, num_done, conversion):
        if isinstance(fetched, Wait):
            rest.append(fetched)
            break
        media, attempts = fetched
        pending.append(_convert(segment, media, earlier + attempts, conversion.keep_audio))
        yield pending[-1]
        if len(pending) == CLIPS_PER_PART:
            journal.append(num_done, pending)
            num_done += len(pending)
            pending = []
    if rest and pending:
        journal.append(num_done, pending)


def _convert(segment: Segment, media: Media | Failure, attempts: int, keep_audio: bool) -> ClipResult:
    clip = media if isinstance(media, Failure) else decode_segment(media, segment.start_ms, segment.end_ms)
    source = media.source if isinstance(media, Media) else ""
    if isinstance(clip, Failure):
        return ClipResult(segment, FAILED, attempts, clip.reason.value, clip.detail, source)
    fbank_TM = compute_fbank(torch.from_numpy(clip.waveform)).numpy().astype(FBANK_DTYPE)
    audio = encode_flac(clip.waveform) if keep_audio else b""
    detail = SHORT if clip.is_short else ""
    return ClipResult(segment, WRITTEN, attempts, "", detail, source, fbank_TM.tobytes(), audio)


Fetched = tuple[Media | Failure, int]


def _prefetch_clips(
    plan: ShardPlan, start: int, conversion: Conversion
) -> Iterator[tuple[Segment, int, Fetched | Wait]]:
    """Yield each segment from `start` on, its earlier attempts and the result of fetching it, in order."""
    pool = ThreadPoolExecutor(conversion.fetch.num_threads)
    window: deque[tuple[Segment, int, Future[Fetched | Wait]]] = deque()
    due = islice(zip(plan.segments, plan.attempts, strict=True), start, None)
    try:
        for segment, earlier in due:
            window.append((segment, earlier, pool.submit(fetch_clip, segment, conversion)))
            if len(window) == conversion.fetch.num_threads:
                segment, earlier, future = window.popleft()
                yield segment, earlier, future.result()
        for segment, earlier, future in window:
            yield segment, earlier, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def fetch_clip(segment: Segment, conversion: Conversion) -> Fetched | Wait:
    """Fetch, at the address's pace, again while the failure is transient; return the result and the attempts.

    An answer that asks for patience counts as no attempt; it becomes the result only if it stays the same.
    """
    config, pacer = conversion.fetch, conversion.pacer
    attempts = 1
    while True:
        turn = pacer.ask()
        if isinstance(turn, Wait):
            if turn.is_rest and turn.seconds > SHORT_REST_S:
                return turn
            time.sleep(turn.seconds)
            continue
        proxy = turn.address if "://" in turn.address else None
        media = fetch_within(conversion.source, segment, proxy, config.deadline_s)
        kind = media.reason.category if isinstance(media, Failure) else None
        if isinstance(media, Failure) and kind is FailureCategory.THROTTLED:
            if pacer.throttle(turn, segment.key, media.retry_after_s) >= config.max_attempts:
                return media, attempts
            continue
        pacer.succeed(turn)
        if kind is not FailureCategory.TRANSIENT or attempts == config.max_attempts:
            return media, attempts
        pause_s = min(MAX_BACKOFF_S, config.backoff_s * 2 ** (attempts - 1))
        time.sleep(pause_s * random.uniform(0.5, 1.5))
        attempts += 1


def _report(plan: ShardPlan, results: list[tuple[str, str]], num_bytes: int, is_new: bool) -> ShardReport:
    failures = Counter(Reason(reason) for status, reason in results if status == FAILED)
    return ShardReport(
        shard_id=plan.shard_id,
        split=plan.split,
        num_planned=len(plan.segments),
        num_written=len(results) - failures.total(),
        failures=dict(failures),
        num_bytes=num_bytes,
        is_new=is_new,
    )
