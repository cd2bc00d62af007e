"""Sources of media, one module each."""

from pipeline.sources.archives import ParquetSource, TarSource
from pipeline.sources.folder import FolderSource
from pipeline.sources.http import HttpSource
from pipeline.sources.proxies import read_proxies
from pipeline.sources.source import YOUTUBE, Source, open_source
from pipeline.sources.table import ListedSource
from pipeline.sources.youtube import YouTubeSource

__all__ = [
    "YOUTUBE",
    "FolderSource",
    "HttpSource",
    "ListedSource",
    "ParquetSource",
    "Source",
    "TarSource",
    "YouTubeSource",
    "open_source",
    "read_proxies",
]
