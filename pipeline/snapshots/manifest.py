"""The JSON files of a snapshot: its build manifest, and `latest.json`, which names the latest snapshot.

A snapshot's id is a digest of its clips. It does not cover the manifest, so the id stays the same if a rerun only fails
in different ways. The manifest therefore contains a digest of its own.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.errors import CorruptError
from pipeline.shards.format import digest_of
from pipeline.store.layout import LATEST
from pipeline.store.storage import Store, json_bytes

DIGEST = "digest"


def encode_manifest(manifest: Mapping[str, Any]) -> bytes:
    """Encode a manifest together with its digest."""
    return json_bytes({**manifest, DIGEST: digest_of(dict(manifest))})


def read_manifest(store: Store, name: str) -> dict[str, Any]:
    """Read a manifest. Raises CorruptError if its structure is invalid or its content was changed.

    Manifests of earlier versions have no digest, so only their structure is checked.
    """
    manifest, where = store.read_json(name), store.url(name)
    if not _is_manifest(manifest):
        raise CorruptError(f"{where}: expected the manifest of a snapshot, found {str(manifest)[:100]!r}")
    digest = manifest.pop(DIGEST, None)
    if digest not in (None, found := digest_of(manifest)):
        raise CorruptError(f"{where}: expected content with the digest {digest}, found {found}. Was it edited?")
    return manifest


def _is_manifest(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("fingerprint"), str)
        and isinstance(value.get("settings"), dict)
        and isinstance(value["settings"].get("keep_audio"), bool)
        and isinstance(value.get("split_counts"), dict)
        and all(map(_is_split, value["split_counts"].values()))
    )


def _is_split(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("failed"), dict):
        return False
    return all(type(count) is int for count in (value.get("planned"), value.get("written"), *value["failed"].values()))


def read_latest(store: Store) -> dict[str, str]:
    """Read the id of the latest snapshot, and `made_of`, the digest of its inputs.

    Raises CorruptError if the structure of the file is invalid.
    """
    latest = store.read_json(LATEST)
    if (
        not isinstance(latest, dict)
        or not isinstance(latest.get("snapshot"), str)
        or not isinstance(latest.get("made_of", ""), str)  # early versions did not write it
    ):
        raise CorruptError(
            f"{store.url(LATEST)}: expected the id of the latest snapshot, found {str(latest)[:100]!r}; preprocess"
            " again, which rewrites it"
        )
    return latest
