"""Open the sources of a run."""

from dataclasses import dataclass, replace

from pipeline.config import PreprocessConfig
from pipeline.copies.containers import Copy, list_copy
from pipeline.errors import ConfigError
from pipeline.records import Failure, Media, Reason, Segment
from pipeline.shards.format import digest_of
from pipeline.sources import FolderSource, Source, open_source, serves_segments
from pipeline.sources.names import compile_pattern


def open_sources(config: PreprocessConfig) -> list[Copy | Source]:
    """Open the sources in `config.media`: any number of copies, followed by at most one source of single segments.

    The loose files in a folder form such a source, even if the folder also contains the containers of a copy. Raises
    ConfigError or InputError.
    """
    if not config.media:
        raise ConfigError(
            "--media is not set: name a copy (a folder, s3:// prefix or hf:// repository), youtube, or a URL with"
            " {ytid}"
        )
    compile_pattern(config.id_pattern)
    sources: list[Copy | Source] = []
    for media in config.media:
        copy = None if serves_segments(media) else list_copy(media)
        if copy and copy.containers:
            sources.append(copy)
        if copy is None or copy.num_loose or not copy.containers:
            sources.append(open_source(media, config))
    if any(not isinstance(source, Copy) for source in sources[:-1]):
        raise ConfigError(
            f"--media may contain only one source of single files, in the last place, found {' '.join(config.media)}"
        )
    return sources


def digest_of_sources(media: tuple[str, ...], sources: list[Copy | Source]) -> str:
    """Return a digest of the content of copies and folders, and of the names of all other sources."""
    contents = [source.digest for source in sources if isinstance(source, Copy | FolderSource)]
    return digest_of([list(media), contents])


@dataclass(frozen=True)
class LastSource:
    """The last source of a run. If no source has a clip, it marks the clip as missing."""

    source: Source | None
    """The source of single segments, or None if all sources are copies."""
    digest: str
    """Digest from `digest_of_sources`."""

    def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
        if self.source is None:
            return Failure(Reason.MISSING_IN_SOURCE, f"no member named {segment.ytid}", source=self.digest)
        result = self.source.fetch(segment, proxy)
        if isinstance(result, Failure) and result.reason is Reason.MISSING_IN_SOURCE:
            return replace(result, source=self.digest)
        return result
