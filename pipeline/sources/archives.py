"""List the members of tars at any address without unpacking them, and expand patterns of addresses."""

import logging
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import braceexpand
import fsspec
from aiohttp import ClientError
from botocore.exceptions import BotoCoreError
from fsspec.implementations.local import LocalFileSystem
from httpx2 import HTTPError

from pipeline.errors import InputError, describe, quote
from pipeline.sources.index import is_hidden, is_media

log = logging.getLogger(__name__)
READ_ERRORS = (OSError, ClientError, BotoCoreError, HTTPError)
"""Errors that reading can raise. fsspec does not wrap the errors of the libraries that it uses for HTTP, S3 and the
hub."""
FORMAT_ERRORS = (ValueError, OverflowError, MemoryError)
"""Errors that parsing malicious headers can raise, because impossible numbers become sizes, offsets and allocations."""
GZIP_MAGIC = b"\x1f\x8b"
END_BYTES = 2**16
HEADER_BLOCK_BYTES = 2**14
"""Number of bytes per read while listing headers. The media between two headers are skipped."""


def find_files(pattern: str) -> list[str]:
    """Return the addresses that match a pattern.

    `{000..123}` works everywhere. `*` and `**` only work on storage that can list files. Raises InputError if nothing
    matches.
    """
    found: list[str] = []
    try:
        for path in braceexpand.braceexpand(pattern):
            fs, local_path = fsspec.core.url_to_fs(path)
            names = sorted(fs.glob(local_path)) if "*" in path else [local_path]
            found += [fs.unstrip_protocol(name) for name in names]
    except (*READ_ERRORS, ValueError, ImportError) as error:
        raise InputError(f"can't list {pattern}: {describe(error)}") from error
    if not found:
        raise InputError(f"expected files at {pattern}, found none")
    return found


@dataclass(frozen=True, slots=True)
class Member:
    """A media file in a tar, and the range of its bytes."""

    tar: str
    name: str
    """Name in the tar, including its folders."""
    offset: int
    size: int
    blocks: tuple[tuple[int, int], ...] = ()
    """Position and length of each stored block of a sparse member. The blocks are stored consecutively, starting at
    `offset`, and the holes between them are zeros. Empty for ordinary members."""


def list_tar(file: str) -> list[Member]:
    """List the media in a tar by reading its headers.

    If the tar is damaged, the media before the damage are listed, and a warning is logged. Raises InputError if the
    file is not a tar or can't be read.
    """
    members: list[Member] = []
    fs, path = fsspec.core.url_to_fs(file)
    try:
        if isinstance(fs, LocalFileSystem) and not Path(path).is_file():
            raise InputError(f"expected a tar at {file}, found no regular file")  # opening a pipe would wait forever
        with fs.open(path, "rb", block_size=HEADER_BLOCK_BYTES) as stream, _open_tar(stream, file) as tar:
            for member in tar:
                # A member with a negative size would lead back to its own header, in an endless loop.
                if tar.offset <= member.offset:
                    raise tarfile.ReadError(f"the member {quote(member.name)} has an impossible size")
                blocks: tuple[tuple[int, int], ...] = tuple(getattr(member, "sparse", None) or ())
                if any(min(block) < 0 for block in blocks):
                    raise tarfile.ReadError(f"the sparse member {quote(member.name)} has an impossible map")
                if member.isreg() and is_media(member.name) and not is_hidden(member.name):
                    members.append(Member(file, member.name, member.offset_data, member.size, blocks))
                # Drop the headers, because tarfile would keep all of them in memory.
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
            stream.seek(tar.offset)
            check_end(stream)
    except tarfile.TarError as error:
        if not members:
            raise InputError(f"expected a tar at {file}, found: {describe(error)}") from error
        log.warning("%s is damaged after %d media: %s", file, len(members), describe(error))
    except (*READ_ERRORS, *FORMAT_ERRORS) as error:  # fsspec raises ValueError if the server does not support ranges
        raise InputError(f"can't read the tar {file}: {describe(error)}") from error
    return members


def _open_tar(stream: Any, file: str) -> tarfile.TarFile:
    if stream.read(len(GZIP_MAGIC)) == GZIP_MAGIC:  # members of a compressed tar can't be read separately
        raise InputError(f"expected an uncompressed tar at {file}, found gzip; decompress it with gunzip")
    stream.seek(0)
    return tarfile.open(fileobj=stream, mode="r:")


def check_end(stream: Any) -> None:
    """Check that only zeros follow the last member of a tar. Raises tarfile.ReadError otherwise.

    Like GNU tar, tarfile stops at the first empty or invalid header. Without this check, the rest of a concatenated or
    damaged tar would be lost silently.
    """
    while block := stream.read(END_BYTES):
        if block.strip(b"\0"):
            raise tarfile.ReadError(
                "more data after the end: it is damaged, or consists of several tars; try `tar --ignore-zeros -xf`"
            )
