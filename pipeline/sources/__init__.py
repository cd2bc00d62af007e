"""Where media come from. A source delivers the media of a segment, or says why not."""

import random
import time
from typing import Protocol

from pipeline.config import FetchConfig, PreprocessConfig
from pipeline.errors import ConfigError
from pipeline.records import Failure, Kind, Media, Segment
from pipeline.sources.folder import FolderSource
from pipeline.sources.http import HttpSource

MAX_BACKOFF_S = 60.0


class Source(Protocol):
    def fetch(self, segment: Segment) -> Media | Failure:
        """Make one attempt at the media of a segment, within the deadline. May be called from several threads."""
        ...


def open_source(config: PreprocessConfig) -> Source:
    """Return the source that `config.media` names."""
    media = config.media
    if not media:
        raise ConfigError("media is not set: name a folder of media files, or an address with {ytid} in it")
    if media.startswith(("http://", "https://")):
        return HttpSource(media, config.fetch, already_cut=config.already_cut)
    return FolderSource(media, config.fetch, already_cut=config.already_cut)


def fetch_with_retries(source: Source, segment: Segment, config: FetchConfig) -> tuple[Media | Failure, int]:
    """Fetch, again while the failure is transient; return the outcome and the number of attempts."""
    for attempt in range(1, config.max_attempts + 1):
        outcome = source.fetch(segment)
        transient = isinstance(outcome, Failure) and outcome.reason.kind is Kind.TRANSIENT
        if not transient or attempt == config.max_attempts:
            return outcome, attempt
        pause_s = min(MAX_BACKOFF_S, config.backoff_s * 2 ** (attempt - 1))
        time.sleep(pause_s * random.uniform(0.5, 1.5))
    raise AssertionError("max_attempts is at least 1")
