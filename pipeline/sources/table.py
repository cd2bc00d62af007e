"""Media whose places are listed in a table of id and path."""

import csv
from pathlib import Path

from pipeline.config import FetchConfig
from pipeline.errors import InputError
from pipeline.records import Failure, Media, Reason, Segment


class ListedSource:
    """Finds `{ytid}` in the table; each file is whole, so a segment's times are those of its file."""

    def __init__(self, table: str, config: FetchConfig):
        self.table, self.config = table, config
        self.path_of = read_media_table(table)

    def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
        path = self.path_of.get(segment.ytid)
        if path is None or not Path(path).is_file():
            return Failure(Reason.NOT_FOUND, f"{segment.ytid}: no file at {path} of {self.table}")
        if (num_bytes := Path(path).stat().st_size) > self.config.max_media_bytes:
            return Failure(Reason.TOO_LARGE, f"{path}: {num_bytes} bytes, the limit is {self.config.max_media_bytes}")
        return Media(path, source=path)


def read_media_table(path: str) -> dict[str, str]:
    """Read where each id's file lies. Raises InputError if the table is none."""
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        if header == ["id", "path"] and rows:
            return {name: place for name, place in rows}
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"can't read the table of media {path}: {error}") from error
    raise InputError(f"{path}: expected the header id,path and rows, found {header} and {len(rows)} rows")
