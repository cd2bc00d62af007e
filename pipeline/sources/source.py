"""The protocol of a source, opening the one that a setting names, and fetching from it within a deadline."""

import threading
from typing import Protocol

from pipeline.config import PreprocessConfig
from pipeline.errors import AudioTaggingError, ConfigError, StoreError, describe, is_disk_full
from pipeline.records import Failure, Media, Reason, Segment
from pipeline.sources.archives import ParquetSource, TarSource
from pipeline.sources.folder import FolderSource
from pipeline.sources.http import HttpSource
from pipeline.sources.table import ListedSource
from pipeline.sources.youtube import YouTubeSource

YOUTUBE = "youtube"
GRACE_S = 5.0
"""Seconds after the deadline, which most sources keep by themselves, before an attempt is abandoned."""


class Source(Protocol):
    def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
        """Make one attempt at the media of a segment, within the deadline. May be called from several threads."""
        ...


def open_source(config: PreprocessConfig) -> Source:
    """Return the source that `config.media` names."""
    media = config.media
    if not media:
        raise ConfigError(
            "--media is not set: name youtube, a folder of media files, tars or parquet files, or a URL with {ytid}"
        )
    if media == YOUTUBE:
        youtube = YouTubeSource(config.youtube, config.fetch)
        youtube.check()
        return youtube
    if media.endswith(".tar"):
        return TarSource(media, config.fetch)
    if media.endswith(".csv"):
        return ListedSource(media, config.fetch)
    if media.endswith(".parquet"):
        return ParquetSource(media, config.fetch)
    if media.startswith(("http://", "https://")):
        return HttpSource(media, config.fetch, already_cut=config.already_cut)
    return FolderSource(media, config.fetch, already_cut=config.already_cut)


def fetch_within(source: Source, segment: Segment, proxy: str | None, deadline_s: float) -> Media | Failure:
    """Make one attempt that ends at the deadline, whatever the source waits on; a late one is abandoned.

    Whatever a source raises is a failure of the clip, except what is not the clip's fault: our own errors, no memory,
    and a full disk, which becomes a StoreError.
    """
    outcome: list[Media | Failure | BaseException] = []

    def attempt() -> None:
        try:
            outcome.append(source.fetch(segment, proxy))
        except BaseException as error:
            outcome.append(error)

    # A daemon: one that hangs for good must not keep the process from ending.
    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(deadline_s + GRACE_S)
    if not outcome:
        return Failure(Reason.TIMED_OUT, f"{segment.key}: no answer within {deadline_s} s")
    result = outcome[0]
    if not isinstance(result, BaseException):
        return result
    if is_disk_full(result):
        raise StoreError(f"no space to fetch {segment.key}: {result}; free some on that disk") from result
    if isinstance(result, AudioTaggingError | MemoryError) or not isinstance(result, Exception):
        raise result
    # Other people's servers find ways through any library's own errors, and one clip must not end a shard.
    return Failure(Reason.UNKNOWN, f"{segment.key}: {describe(result)}")
