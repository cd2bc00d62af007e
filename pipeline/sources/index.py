"""Index media files by id in an Arrow table, which the workers of a node can share without copying it."""

import logging
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa

from pipeline.audio.container import EXTENSIONS
from pipeline.errors import quote
from pipeline.records import Segment
from pipeline.sources.names import readings_of, start_matches

log = logging.getLogger(__name__)
MEDIA_SCHEMA = pa.schema(
    [
        ("ytid", pa.string()),
        ("start", pa.string()),
        ("is_cut", pa.bool_()),
        ("file", pa.string()),
    ]
)


def is_media(name: str) -> bool:
    """Return True if the extension of a file name is that of a media file."""
    return PurePosixPath(name).suffix[1:].lower() in EXTENSIONS


def is_hidden(name: str) -> bool:
    """Return True for hidden files, such as the `._` files that macOS adds to tars and to copied folders."""
    return PurePosixPath(name).name.startswith(".")


class MediaIndex:
    """An index of media files by id. It supports the naming schemes of `pipeline.sources.names`.

    Names that are not UTF-8 are skipped with a warning, because sidecars can't store them.
    """

    def __init__(self, files: Iterable[str], pattern: re.Pattern[str] | None = None):
        rows: list[tuple[str, str, bool, str]] = []
        skipped: list[str] = []
        for file in filter(is_media, files):
            if not _is_utf8(file):
                skipped.append(file)
                continue
            rows += [(each.ytid, each.start, each.is_cut, file) for each in readings_of(file, pattern)]
        if skipped:
            log.warning("skipped %d media files whose names are not UTF-8, such as %s", len(skipped), quote(skipped[0]))
        columns = zip(*rows, strict=True) if rows else [()] * len(MEDIA_SCHEMA)
        table = pa.table(
            [pa.array(column, field.type) for column, field in zip(columns, MEDIA_SCHEMA, strict=True)], MEDIA_SCHEMA
        )
        self.table = table.sort_by([("ytid", "ascending"), ("file", "ascending")]).combine_chunks()
        self.ids = np.array(self.table["ytid"].to_pylist(), np.bytes_)

    def __len__(self) -> int:
        return len(self.table)

    def find(self, segment: Segment) -> tuple[str, bool] | None:
        """Return the file of a segment, and whether its name says that it only contains the segment. None if there is
        no file.

        A file with the segment's start in its name is preferred to a file with a prefix, and both are preferred to a
        whole video.
        """
        ytid = segment.ytid.encode()
        first, end = int(np.searchsorted(self.ids, ytid, "left")), int(np.searchsorted(self.ids, ytid, "right"))
        rows = self.table.slice(first, end - first).to_pylist()
        found = [row for row in rows if start_matches(row["start"], segment.start_ms)]
        best = max(found, key=lambda row: (bool(row["start"]), row["is_cut"]), default=None)
        return (best["file"], best["is_cut"]) if best else None


def _is_utf8(name: str) -> bool:
    # Python represents bytes that are not UTF-8 as surrogates, which can't be encoded.
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False
