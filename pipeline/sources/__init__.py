"""Sources of media, with one module per kind of source."""

from pipeline.sources.folder import FolderSource
from pipeline.sources.http import HttpSource
from pipeline.sources.proxies import read_proxies
from pipeline.sources.source import YOUTUBE, Source, open_source, serves_segments
from pipeline.sources.table import ListedSource
from pipeline.sources.youtube import YouTubeSource

__all__ = [
    "YOUTUBE",
    "FolderSource",
    "HttpSource",
    "ListedSource",
    "Source",
    "YouTubeSource",
    "open_source",
    "read_proxies",
    "serves_segments",
]
