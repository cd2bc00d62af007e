"""List the members of tars at any address without unpacking, and expand patterns of addresses."""

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
"""Errors of reading from any address; fsspec doesn't wrap the errors of its HTTP and S3 libraries."""
FORMAT_ERRORS = (ValueError, OverflowError, MemoryError)
"""Errors of parsing hostile headers, where impossible numbers become sizes, offsets and allocations."""
HEADER_BLOCK_BYTES = 2**14
"""Bytes per read while listing headers; the media between two headers are skipped."""


def find_files(pattern: str) -> list[str]:
    """Return the addresses that match a pattern.

    `{000..123}` works everywhere, `*` and `**` only on storage that can list files. Raises InputError if nothing
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
    """A media file within a tar, with the range of its bytes."""

    tar: str
    name: str
    """Name in the tar, including folders."""
    offset: int
    size: int


def list_tar(file: str) -> list[Member]:
    """List the media of a tar from its headers; list a truncated tar up to its damage, with a warning.

    Raises InputError for files that aren't tars and for read errors.
    """
    members: list[Member] = []
    try:
        fs, path = fsspec.core.url_to_fs(file)
        with (
            fs.open(path, "rb", block_size=HEADER_BLOCK_BYTES) as stream,
            tarfile.open(fileobj=stream, mode="r:") as tar,  # pyright: ignore[reportCallIssue, reportArgumentType]
        ):
            for member in tar:
                # A negative size would lead back to the same header forever.
                if tar.offset <= member.offset:
                    raise tarfile.ReadError(f"the member {quote(member.name)} has an impossible size")
                if member.isreg() and is_media(member.name):
                    members.append(Member(file, member.name, member.offset_data, member.size))
                # By default tarfile keeps all headers in memory.
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
    except tarfile.TarError as error:
        if not members:
            raise InputError(f"expected a tar at {file}, found: {describe(error)}") from error
        log.warning("%s is truncated or damaged after %d media: %s", file, len(members), describe(error))
    except (*READ_ERRORS, *FORMAT_ERRORS) as error:  # fsspec raises ValueError for servers without ranges
        raise InputError(f"can't read the tar {file}: {describe(error)}") from error
    return members
