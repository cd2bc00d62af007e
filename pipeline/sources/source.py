"""The protocol of media sources, and the selection of a source by `--media`."""

from typing import Protocol

from pipeline.config import PreprocessConfig
from pipeline.records import Failure, Media, Segment
from pipeline.sources.folder import FolderSource
from pipeline.sources.http import HttpSource
from pipeline.sources.table import ListedSource
from pipeline.sources.youtube import YouTubeSource

YOUTUBE = "youtube"


def serves_segments(media: str) -> bool:
    """Return True if a value of `--media` names a source that serves single segments, and not a copy."""
    return media == YOUTUBE or media.endswith(".csv") or ("{ytid}" in media and "://" in media)


class Source(Protocol):
    """A source from which media can be fetched."""

    def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
        """Try to fetch the media of a segment before the deadline. Implementations must be thread-safe."""
        ...


def open_source(media: str, config: PreprocessConfig) -> Source:
    """Open a source that serves single segments: YouTube, an address, a table, or a folder of media files."""
    if media == YOUTUBE:
        youtube = YouTubeSource(config.youtube, config.fetch)
        youtube.check()
        return youtube
    if media.endswith(".csv"):
        return ListedSource(media, config.fetch)
    if media.startswith(("http://", "https://")):
        return HttpSource(media, config.fetch, already_cut=config.already_cut)
    return FolderSource(media, config.fetch, already_cut=config.already_cut, id_pattern=config.id_pattern)
