"""The protocol of a media source, and the choice of a source by `--media`."""

from typing import Protocol

from pipeline.config import PreprocessConfig
from pipeline.errors import ConfigError
from pipeline.records import Failure, Media, Segment
from pipeline.sources.archives import ParquetSource, TarSource
from pipeline.sources.folder import FolderSource
from pipeline.sources.http import HttpSource
from pipeline.sources.table import ListedSource
from pipeline.sources.youtube import YouTubeSource

YOUTUBE = "youtube"


class Source(Protocol):
    """A place to fetch media from."""

    def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
        """Make one attempt at a segment's media within the deadline. Threads may call it concurrently."""
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
