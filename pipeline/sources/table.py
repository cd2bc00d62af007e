"""Serve media files that are listed in a table of ids and paths."""

import csv
from pathlib import Path

from pipeline.config import FetchConfig
from pipeline.errors import InputError, describe, quote
from pipeline.records import Failure, Media, Reason, Segment

HEADER = ["id", "path"]


class ListedSource:
    """A source of media files that are listed in a table. The times of a segment are relative to the start of its
    file."""

    def __init__(self, table: str, config: FetchConfig):
        self.table, self.config = table, config
        self.path_of = read_media_table(table)

    def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
        path = self.path_of.get(segment.ytid)
        if path is None:
            return Failure(Reason.NOT_FOUND, f"no row for {segment.ytid} in {self.table}")
        try:
            if not path.is_file():
                return Failure(Reason.NOT_FOUND, f"no file at {quote(path)}, listed in {self.table}")
            num_bytes = path.stat().st_size
        except OSError as error:  # for example, if the name is too long
            return Failure(Reason.NOT_FOUND, f"{segment.ytid} in {self.table}: {describe(error)}")
        if num_bytes > self.config.max_media_bytes:
            return Failure(Reason.TOO_LARGE, f"{path}: {num_bytes} bytes, the limit is {self.config.max_media_bytes}")
        return Media(path, source=str(path))


def read_media_table(path: str) -> dict[str, Path]:
    """Read the path of the file for each id. Relative paths are relative to the folder of the table.

    Raises InputError, which names the line, if the table is invalid.
    """
    path_of: dict[str, Path] = {}
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            if header != HEADER:
                raise InputError(f"{path}: expected the header {','.join(HEADER)}, found {quote(','.join(header))}")
            for row in rows:
                if len(row) != len(HEADER):
                    found = quote(",".join(row))
                    raise InputError(f"{path}, line {rows.line_num}: expected an id and a path, found {found}")
                path_of[row[0]] = Path(path).parent / row[1]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"can't read the table of media {path}: {describe(error)}") from error
    if not path_of:
        raise InputError(f"{path}: expected one row per media file, found none")
    return path_of
