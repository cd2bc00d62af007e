"""Open untrusted media files.

FFmpeg receives bytes or an open file, never a name, and can't open other files or addresses.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import SEEK_END, SEEK_SET, BytesIO
from pathlib import Path
from typing import BinaryIO

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream

from pipeline.records import Failure, Reason

FORMATS = "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,tta,voc,w64,wav,wv"
"""Formats that FFmpeg may detect. Playlists are excluded because they refer to other files and addresses."""
EXTENSIONS = frozenset(
    "3g2 3gp aac ac3 aif aifc aiff amr ape au avi caf eac3 flac flv m4a m4b m4v mka mkv mov mp2 mp3 mp4 mpeg mpg oga"
    " ogg ogv opus snd spx ts tta voc w64 wav weba webm wma wmv wv".split()
)
"""File extensions of the formats in `FORMATS`."""
MAX_RETRIES = 1_000
"""Maximum number of damaged places that reading skips before it stops."""
MAGICS = (b"\x1aE\xdf\xa3", b"OggS", b"fLaC", b"RIFF", b"ID3")
"""First bytes of the most common formats. MP4 has `ftyp` at byte 4."""


class BrokenMediaError(Exception):
    """A file that can't be decoded. `decode` converts it to a failure or an InputError."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.failure = Failure(reason, detail)


class _Seekable:
    """A file for FFmpeg, which expects −1 instead of an exception after seeking to an invalid position."""

    def __init__(self, file: BinaryIO, size_factor: float) -> None:
        self.read, self.tell, self._seek = file.read, file.tell, file.seek
        self._size_factor = size_factor

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        try:
            position = self._seek(offset, whence)
        except (ValueError, OSError):
            return -1
        # FFmpeg seeks from the end only to ask for the size.
        return round(position * self._size_factor) if whence == SEEK_END else position


@contextmanager
def open_media(content: bytes | Path, size_factor: float = 1.0) -> Iterator[InputContainer]:
    """Open bytes or a local file. Raises BrokenMediaError if it is not media, and OSError if it can't be read.

    size_factor: factor by which the size that FFmpeg sees is larger than the real size.
    """
    # Always pass a file object, because FFmpeg would interpret a string as an address of any protocol.
    with open_file(content) as file:
        head = file.read(12)
        if not head:  # FFmpeg reports an empty local file as a disk error
            raise BrokenMediaError(Reason.NOT_MEDIA, "the file is empty")
        file.seek(0)
        # Without protocols, playlists and references inside a container can't open anything.
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
        if head[8:] == b"WAVE":
            # Otherwise FFmpeg searches 5 MB of PCM for embedded codecs, which takes longer than decoding.
            options["probesize"] = "32768"
        try:
            # Tags have any encoding. Strict decoding would refuse a file because of its artist's name.
            container = av.open(_Seekable(file, size_factor), "r", options=options, metadata_errors="replace")
        except FFmpegError as error:
            raise BrokenMediaError(_reason_of(head), str(error)) from error
        with container:
            if not container.streams:
                raise BrokenMediaError(_reason_of(head), "the file has no streams")
            yield container


def read_packets(container: InputContainer, *streams: Stream) -> Iterator[Packet]:
    """Yield the packets of all or some streams. Raises FFmpegError if the file is too damaged to read."""
    for _ in range(MAX_RETRIES):
        try:
            yield from container.demux(*streams)
        except BlockingIOError:  # FFmpeg skipped damaged MPEG-TS and must be called again
            continue
        except IndexError:  # PyAV raises this at the end of a file with a late stream
            return
        return


def open_file(content: bytes | Path) -> BinaryIO:
    if isinstance(content, bytes):
        return BytesIO(content)
    if not isinstance(content, Path):  # pyright would refuse it; a value out of a foreign table has no type
        raise TypeError(f"expected bytes or a Path, found {type(content).__name__}")
    # A named pipe or a device in a media folder would block or never end.
    if not content.is_file() and content.exists():
        raise BrokenMediaError(Reason.NOT_MEDIA, "not a regular file")
    return content.open("rb")


def _reason_of(head: bytes) -> Reason:
    """Distinguish truncated media, which another fetch may complete, from files that are not media."""
    return Reason.TRUNCATED if head.startswith(MAGICS) or head[4:8] == b"ftyp" else Reason.NOT_MEDIA
