"""Split chained Ogg files, such as recordings of internet radio, into their links.

The links follow each other in time. Each link has its own clock and possibly another sample rate, so FFmpeg reads only
the first link reliably.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path

from pipeline.audio.container import open_file

FIRST_PAGE = re.compile(rb"OggS\0\x02\0{8}.{4}\0{4}", re.DOTALL)
"""Pattern of the first page of a stream: version and flag, time 0, any serial number, and sequence number 0."""
HEADER_BYTES = 27
"""Size of a page's header before its table of sizes. The last byte is the table's length."""


def split_chain(content: bytes | Path) -> Iterator[bytes | Path]:
    """Yield each link of a chained Ogg file as a separate file. Other files are yielded unchanged."""
    with open_file(content) as file:
        is_ogg = file.read(4) == b"OggS"
    if not is_ogg:
        yield content
        return
    with _view(content) as view:
        start = 0
        for end in _link_starts(view):
            yield view[start:end]
            start = end
        yield view[start:] if start else content


def _link_starts(view: bytes | mmap) -> Iterator[int]:
    """Yield the start of each link except the first. The first pages of a link's streams follow each other."""
    end_of_first_pages = 0
    for found in FIRST_PAGE.finditer(view):
        start = found.start()
        if start > end_of_first_pages:
            yield start
        num_sizes = sum(view[start + HEADER_BYTES - 1 : start + HEADER_BYTES])
        table_start = start + HEADER_BYTES
        end_of_first_pages = table_start + num_sizes + sum(view[table_start : table_start + num_sizes])


@contextmanager
def _view(content: bytes | Path) -> Iterator[bytes | mmap]:
    if isinstance(content, bytes):
        yield content
        return
    with open_file(content) as file, mmap(file.fileno(), 0, access=ACCESS_READ) as view:
        yield view
