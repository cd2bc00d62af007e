"""Protocol of media sources, and the choice of a source by `--media`."""

from typing import Protocol

from pipeline.config import PreprocessConfig
from pipeline.records import Failure, Media, Segment
from pipeline.sources.folder import FolderSource
from pipeline.sources.http import HttpSource
from pipeline.sources.table import ListedSource
from pipeline.sources.youtube import YouTubeSource

YOUTUBE = "youtube"


def serves_segments(media: str) -> bool:
    """Return True if a value of `--media` serves single segments and does not name a copy."""
    return media == YOUTUBE or media.endswith(".csv") or ("{ytid}" in media and "://" in media)


class Source(Protocol):
    """A place to fetch media from."""

    def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
        """Attempt to fetch a segment's media within the deadline. Must be thread-safe."""
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
