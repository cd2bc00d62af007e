"""One shard plan → one shard and its sidecar."""

import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from pipeline.audio.decode import decode_segment, encode_flac
from pipeline.backoff import backoff
from pipeline.config import FetchConfig
from pipeline.errors import AudioTaggingError, StoreError, is_disk_full
from pipeline.fbank_settings import NUM_MEL_BINS
from pipeline.measures.clip_measures import Measures
from pipeline.measures.table import write_measures
from pipeline.records import CLIPS_PER_PART, Failure, FailureCategory, Media, Reason, Segment, ShardPlan, ShardReport
from pipeline.shards.checksum import checksum_of
from pipeline.shards.format import (
    FAILED,
    FBANK_DTYPE,
    SIDECAR,
    TAR,
    WRITTEN,
    ShardWriter,
    SidecarRow,
    digest_of,
    read_sidecar,
    shard_fingerprint,
    shard_name,
    write_sidecar,
)
from pipeline.shards.journal import SEGMENT_NAMES, ClipResult, Journal
from pipeline.sources import Source, fetch_within
from pipeline.sources.rate_limit import MAX_FAILURES_IN_A_ROW, LocalRateLimiter, RateLimiter, Wait
from pipeline.store.storage import Store

SHORT = "short"
"""Detail of a written clip whose media ended before its segment did."""
RESULT_NAMES = ("status", "reason", "detail", "attempts", "source")
"""Fields of a clip's result that its sidecar row has too."""
MAX_BACKOFF_S = 60.0
SHORT_COOLDOWN_S = 5.0
"""A shorter cooldown is waited for; before a longer one the shard is given back, so that its CPU is free."""
OUTAGE_REASONS = {
    Reason.CONNECTION,
    Reason.TIMED_OUT,
    Reason.SERVER_ERROR,
    Reason.EXTRACTION_FAILED,
    Reason.UNKNOWN,
    Reason.LOGIN_REQUIRED,
    Reason.FORBIDDEN,
}
"""Failures which, clip after clip, say more of the source than of the clips."""


@dataclass(frozen=True)
class Conversion:
    """Everything that turns a shard plan into a shard."""

    store: Store
    source: Source
    fetch: FetchConfig
    keep_audio: bool
    limiter: RateLimiter = field(default_factory=LocalRateLimiter)

    @property
    def fingerprint(self) -> str:
        return shard_fingerprint(self.keep_audio)


def convert_shard(plan: ShardPlan, conversion: Conversion) -> ShardReport | Wait:
    """Fetch, decode and convert the segments of a plan and publish the shard; skip one that is there.

    An unavailable clip becomes a failed row. A shard without any clip has a sidecar only. What a killed attempt kept
    is taken over. Returns a Wait, with all that was decided kept, if every address is cooling down. Raises StoreError
    if the shard can't be written.
    """
    journal = Journal(conversion.store, conversion.fingerprint, plan.split, plan.shard_id)
    report = _report_of_existing(plan, conversion.store)
    if report is None:
        report = write_shard(plan, conversion, _convert_clips(plan, conversion, journal))
    if isinstance(report, ShardReport):
        # Only now: until the sidecar is there, the journal is all that a killed task leaves.
        journal.clear()
    return report


def recover_partial_shard(journal: Journal, conversion: Conversion) -> ShardReport | None:
    """Make a shard of what a killed run had decided of one; None if there is one already, or nothing to make it of.

    Its plan died with the run, and a new one may put the same clips elsewhere; so what is kept gets a shard of its own.
    """
    sidecar = shard_name(journal.split, journal.shard_id, "parquet")
    results = [] if conversion.store.exists(sidecar) else list(journal.read())
    if not results:  # it was killed while it cleared its parts, or the first one was lost
        journal.clear()
        return None
    segments = tuple(result.segment for result in results)
    shard_id = digest_of([[segment.key, segment.end_ms, journal.folder] for segment in segments])
    plan = ShardPlan(shard_id, segments[0].split, segments, (0,) * len(segments))
    report = _report_of_existing(plan, conversion.store) or write_shard(plan, conversion, iter(results))
    assert isinstance(report, ShardReport), "nothing is fetched, so nothing has to wait"
    journal.clear()
    return report


def write_shard(plan: ShardPlan, conversion: Conversion, results: Iterator[ClipResult | Wait]) -> ShardReport | Wait:
    """Write results to a tar as they come; publish it, its measures and its sidecar. Return the first Wait instead."""
    store, shard = conversion.store, shard_name(plan.split, plan.shard_id, "tar").removesuffix(TAR)
    rows, measures = list[SidecarRow](), dict[str, Measures]()
    with store.scratch() as folder:
        tar = folder / "shard.tar"
        try:
            with closing(ShardWriter(tar)) as writer:
                for result in results:
                    if isinstance(result, Wait):
                        return result
                    segment, fields = result.segment, dict[str, Any]()
                    if result.status == WRITTEN:
                        fbank_TM = np.frombuffer(result.fbank, FBANK_DTYPE).reshape(-1, NUM_MEL_BINS)
                        fields = writer.write(segment, fbank_TM, result.audio or None, result.source)
                        measures[segment.key] = _measures_of(result, fbank_TM)
                    fields |= {name: getattr(segment, name) for name in SEGMENT_NAMES}
                    fields |= {name: getattr(result, name) for name in RESULT_NAMES}
                    rows.append(SidecarRow(key=segment.key, **fields))
        except OSError as error:
            hint = "; free some space on that disk" if is_disk_full(error) else ""
            raise StoreError(f"can't write {tar}: {type(error).__name__}: {error}{hint}") from error
        checksum = checksum_of(tar)
        if measures:
            store.publish(tar, shard + TAR)
            write_measures(store, shard, list(measures), list(measures.values()))
        # The sidecar comes last, because with it the shard counts as made.
        write_sidecar(store, shard + SIDECAR, rows, conversion.fingerprint, checksum)
    return _report(plan, [(row.status, row.reason) for row in rows], checksum.num_bytes, is_new=True)


def _convert_clips(plan: ShardPlan, conversion: Conversion, journal: Journal) -> Iterator[ClipResult | Wait]:
    """Yield what is kept of each segment, then what is fetched, which is kept too; end early with a Wait."""
    num_kept = 0
    for result in journal.read():
        yield result
        num_kept += 1
    pending: list[ClipResult] = []
    for segment, earlier_attempts, future in _prefetch_clips(plan, num_kept, conversion):
        fetched = future.result()
        if isinstance(fetched, Wait):
            # Clips that failed while the source was about to be found down are asked for again like those after them.
            while fetched.is_outage and pending and pending[-1].reason in OUTAGE_REASONS:
                pending.pop()
            if pending:
                journal.append(num_kept, pending)
            yield fetched
            return
        media, attempts = fetched
        pending.append(convert_clip(segment, media, earlier_attempts + attempts, conversion.keep_audio))
        yield pending[-1]
        # Parts are a compromise: a file per clip costs the store a request each, one per shard costs a kill all of it.
        # Failures that may yet turn out to be an outage wait a little longer.
        may_be_outage = pending[-1].reason in OUTAGE_REASONS and len(pending) < CLIPS_PER_PART + MAX_FAILURES_IN_A_ROW
        if len(pending) >= CLIPS_PER_PART and not may_be_outage:
            journal.append(num_kept, pending)
            num_kept += len(pending)
            pending = []


def _measures_of(result: ClipResult, fbank_TM: np.ndarray) -> Measures:
    if result.measures:
        return Measures.from_bytes(result.measures)
    from pipeline.measures.measure import measure_stored  # see `convert_clip`

    return measure_stored(fbank_TM, result.audio)


def convert_clip(segment: Segment, media: Media | Failure, attempts: int, keep_audio: bool) -> ClipResult:
    # Imported by workers: whoever only hands out shards needs neither PyTorch nor its 600 MB.
    import torch

    from pipeline.fbank import compute_fbank
    from pipeline.measures.measure import measure_clip

    try:
        clip = media if isinstance(media, Failure) else decode_segment(media, segment.start_ms, segment.end_ms)
        source = media.source if isinstance(media, Media) else ""
        if isinstance(clip, Failure):
            return ClipResult(segment, FAILED, attempts, clip.reason.value, clip.detail, source)
        fbank_TM = compute_fbank(torch.from_numpy(clip.waveform)).numpy().astype(FBANK_DTYPE)
        audio = encode_flac(clip.waveform) if keep_audio else b""
        measures = measure_clip(clip.waveform, fbank_TM, clip.media).to_bytes()
    except AudioTaggingError:
        raise
    except Exception as error:  # a bug of ours: it ends the shard, and whoever fixes it needs to know the clip
        raise RuntimeError(f"can't convert clip {segment.key}: {type(error).__name__}: {error}") from error
    detail = SHORT if clip.is_short else ""
    return ClipResult(segment, WRITTEN, attempts, "", detail, source, fbank_TM.tobytes(), audio, measures)


Fetched = tuple[Media | Failure, int]
"""The result of fetching a clip, and the attempts that it took."""


def _prefetch_clips(
    plan: ShardPlan, start: int, conversion: Conversion
) -> Iterator[tuple[Segment, int, Future[Fetched | Wait]]]:
    """Yield each segment from `start` on, its earlier attempts and its fetching, in order.

    Fetching waits for the network and decoding for the CPU, so the next `num_threads` clips are fetched meanwhile; no
    more of them, because all lie in memory.
    """
    pool = ThreadPoolExecutor(conversion.fetch.num_threads)
    window: deque[tuple[Segment, int, Future[Fetched | Wait]]] = deque()
    try:
        for segment, earlier_attempts in islice(zip(plan.segments, plan.attempts, strict=True), start, None):
            future = pool.submit(fetch_clip, segment, conversion, is_retry=earlier_attempts > 0)
            window.append((segment, earlier_attempts, future))
            if len(window) == conversion.fetch.num_threads:
                yield window.popleft()
        yield from window
    finally:
        # Not waited for: after a Wait the rest would only wait too, up to the deadline of an attempt under way.
        pool.shutdown(wait=False, cancel_futures=True)


def fetch_clip(segment: Segment, conversion: Conversion, *, is_retry: bool = False) -> Fetched | Wait:
    """Fetch when an address may ask, again while the failure is transient; return the result and the attempts.

    An answer that says nothing of the clip, but that the address asks too often or that the source is down, counts as
    no attempt. Too many requests become the result only if this clip gets no other answer.
    """
    config, limiter = conversion.fetch, conversion.limiter
    pauses = backoff(config.backoff_s, MAX_BACKOFF_S)
    attempts = 1
    while True:
        turn = limiter.acquire()
        if isinstance(turn, Wait):
            if turn.is_cooldown and turn.seconds > SHORT_COOLDOWN_S:
                return turn
            time.sleep(turn.seconds)
            continue
        proxy = turn.address if "://" in turn.address else None
        media = fetch_within(conversion.source, segment, proxy, config.deadline_s)
        reason = media.reason if isinstance(media, Failure) else None
        if isinstance(media, Failure) and media.reason.category is FailureCategory.THROTTLED:
            if limiter.report_throttled(turn, segment.key, media.retry_after_s) >= config.max_attempts:
                return media, attempts
            continue
        if isinstance(media, Failure) and media.reason in OUTAGE_REASONS:
            # A clip that failed in an earlier run may never work, and a rerun may ask for such clips only: they don't
            # make an outage, unless nobody was reached at all.
            is_telling = media.reason is Reason.CONNECTION or not is_retry
            if is_telling and limiter.report_outage(turn, segment.key, media.detail):
                continue
        else:
            limiter.report_success(turn)
        if reason is None or reason.category is not FailureCategory.TRANSIENT or attempts == config.max_attempts:
            return media, attempts
        time.sleep(next(pauses))
        attempts += 1


def _report_of_existing(plan: ShardPlan, store: Store) -> ShardReport | None:
    sidecar = shard_name(plan.split, plan.shard_id, "parquet")
    if not store.exists(sidecar):
        return None
    rows = read_sidecar(store, sidecar, ["status", "reason"]).to_pylist()
    return _report(plan, [(row["status"], row["reason"]) for row in rows], num_bytes=0, is_new=False)


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
