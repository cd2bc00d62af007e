"""Places of a mirror's media: an index by name that is made once, and shared by all workers without a copy."""

import logging
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa

from pipeline.audio.container import EXTENSIONS
from pipeline.errors import quote
from pipeline.records import Segment

log = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        ("stem", pa.string()),
        ("file", pa.dictionary(pa.int32(), pa.string())),
        ("extension", pa.dictionary(pa.int32(), pa.string())),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)


def is_media(name: str) -> bool:
    """Return whether a file's name has the extension of a media file."""
    return PurePosixPath(name).suffix[1:].lower() in EXTENSIONS


@dataclass(frozen=True, slots=True)
class MediaEntry:
    """A media file, alone or within another file."""

    stem: str
    """Name without folder and extension."""
    file: str
    extension: str
    offset: int = 0
    """Where it lies in its file: in bytes, or in what else the source counts."""
    size: int = 0

    @staticmethod
    def of(name: str, file: str, offset: int = 0, size: int = 0) -> "MediaEntry | None":
        """Return the entry of a name, None unless it is a media file's."""
        path = PurePosixPath(name)
        return MediaEntry(path.stem, file, path.suffix, offset, size) if is_media(name) else None

    @property
    def is_utf8(self) -> bool:
        """Whether its name can be stored. Python keeps a file system's other bytes as surrogates."""
        try:
            return bool((self.stem + self.file + self.extension).encode())
        except UnicodeEncodeError:
            return False


class MediaIndex:
    """Media by name, in the naming schemes in use.

    These are `{ytid}.*`, `Y{ytid}.*`, `id_{ytid}.*` and `{ytid}_{start}.*`, in seconds or milliseconds. Names with a
    start, and those with `Y` (PANNs) or `id_` before them, hold the segment alone. Media whose names are not UTF-8 are
    left out, with a warning: no segment's id is like that.
    """

    def __init__(self, entries: Iterable[MediaEntry]):
        columns: dict[str, list] = {name: [] for name in SCHEMA.names}
        left_out: list[MediaEntry] = []
        for entry in entries:
            if not entry.is_utf8:
                left_out.append(entry)
                continue
            for name, values in columns.items():
                values.append(getattr(entry, name))
        if left_out:
            example = f"{left_out[0].stem}{left_out[0].extension}"
            log.warning("left out %d media whose names are not UTF-8, such as %s", len(left_out), quote(example))
        table = pa.table({name: pa.array(columns[name], SCHEMA.field(name).type) for name in columns}, SCHEMA)
        self.table = table.sort_by("stem").combine_chunks()

    def __len__(self) -> int:
        return len(self.table)

    def find(self, segment: Segment) -> tuple[MediaEntry, bool] | None:
        """Return the entry of a segment and whether its name says that it holds the segment alone."""
        ytid, start_ms = segment.ytid, segment.start_ms
        starts = dict.fromkeys((f"{start_ms}", f"{start_ms / 1000:g}", f"{start_ms / 1000:.3f}"))
        for stem in (*(f"{ytid}_{start}" for start in starts), f"Y{ytid}", f"id_{ytid}", ytid):
            if entry := self._entry(stem):
                return entry, stem != ytid
        return None

    def _entry(self, stem: str) -> MediaEntry | None:
        stems = self.table["stem"]
        row = bisect_left(range(len(stems)), stem, key=lambda index: stems[index].as_py())
        if row == len(stems) or stems[row].as_py() != stem:
            return None
        return MediaEntry(**{name: self.table[name][row].as_py() for name in SCHEMA.names})
