"""Compute and verify checksums of tars."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import CorruptError
from pipeline.store.storage import Store


@dataclass(frozen=True, slots=True)
class Checksum:
    """Size and SHA-256 of a tar."""

    num_bytes: int
    digest: str
    """SHA-256 of the whole tar."""


def checksum_of(tar: Path) -> Checksum:
    """Compute the checksum of a local tar."""
    with tar.open("rb") as stream:
        return Checksum(tar.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


def verify_checksum(found: Checksum, expected: Checksum, store: Store, name: str) -> None:
    """Raise CorruptError, which names the tar, if its checksum differs from the expected checksum."""
    if found.num_bytes != expected.num_bytes:
        raise CorruptError(
            f"{describe_wrong_size(store.url(name), expected.num_bytes, found.num_bytes)}; {remedy(store)}"
        )
    if found != expected:
        raise CorruptError(
            f"{store.url(name)} has the digest {found.digest[:16]}, expected {expected.digest[:16]}. It was changed or"
            f" replaced by another shard; {remedy(store)}"
        )


def remedy(store: Store) -> str:
    return (
        "restore the file, or fetch its clips again with `python jobs/preprocess.py verify --repair --root"
        f" {store.root} --media …`"
    )


def describe_wrong_size(name: str, expected: int, found: int | None) -> str:
    if found is None:
        return f"{name} is missing"
    problem = "it is truncated" if found < expected else "it is another file"
    return f"{name} has {found} bytes, expected {expected}: {problem}"
