"""Members of tars at any address, listed without unpacking, and patterns of files."""

import logging
import tarfile
from dataclasses import dataclass

import braceexpand
import fsspec
from aiohttp import ClientError
from botocore.exceptions import BotoCoreError

from pipeline.errors import InputError, describe, quote
from pipeline.sources.index import is_media

log = logging.getLogger(__name__)
READ_ERRORS = (OSError, ClientError, BotoCoreError)
"""Errors of reading at any address: fsspec lets its libraries' own through."""
FORMAT_ERRORS = (ValueError, OverflowError, MemoryError)
"""Errors of parsing hostile headers: numbers that no file can hold become sizes, offsets and allocations."""
HEADER_BLOCK_BYTES = 2**14
"""Bytes read at once while a tar's headers are listed; the media between them are skipped."""


def find_files(pattern: str) -> list[str]:
    """Return the addresses that a pattern matches: `{000..123}` anywhere, `*` and `**` where files can be listed."""
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
    """A media file within a tar, and where its bytes lie."""

    tar: str
    name: str
    """With its folders."""
    offset: int
    size: int


def list_tar(file: str) -> list[Member]:
    """List the media of a tar by its headers; a truncated one as far as it goes.

    Raises InputError for a file that is not a tar, or can't be read to its end now.
    """
    members: list[Member] = []
    try:
        fs, path = fsspec.core.url_to_fs(file)
        with (
            fs.open(path, "rb", block_size=HEADER_BLOCK_BYTES) as stream,
            tarfile.open(fileobj=stream, mode="r:") as tar,  # pyright: ignore[reportCallIssue, reportArgumentType]
        ):
            for member in tar:
                # A negative size leads back to the same header, for ever.
                if tar.offset <= member.offset:
                    raise tarfile.ReadError(f"the member {quote(member.name)} has an impossible size")
                if member.isreg() and is_media(member.name):
                    members.append(Member(file, member.name, member.offset_data, member.size))
                # Otherwise all headers stay in memory.
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
    except tarfile.TarError as error:
        if not members:
            raise InputError(f"expected a tar at {file}, found: {describe(error)}") from error
        log.warning("%s is truncated or damaged after %d media: %s", file, len(members), describe(error))
    except (*READ_ERRORS, *FORMAT_ERRORS) as error:  # a ValueError is also a server that sends no ranges
        raise InputError(f"can't read the tar {file}: {describe(error)}") from error
    return members
