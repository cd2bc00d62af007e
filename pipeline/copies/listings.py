"""Store listings of containers, so that the next run only reads containers with due clips."""

import pyarrow as pa

from pipeline.copies.containers import Container
from pipeline.errors import CorruptError, describe
from pipeline.shards.format import digest_of
from pipeline.store.layout import listing
from pipeline.store.storage import Store
from pipeline.store.tables import parquet_bytes, read_parquet


def listing_name(container: Container, search: str) -> str:
    """Return the path of a container's listing.

    search: digest of the segments and names that were searched for. If they change, a new listing is needed.
    """
    return listing(digest_of([container.address, container.num_bytes, container.version, search]))


def write_listing(store: Store, container: Container, search: str, keys: list[str]) -> None:
    """Store the keys of the segments that a container contains."""
    store.write_bytes(listing_name(container, search), parquet_bytes(pa.table({"key": pa.array(keys, pa.string())})))


def read_listing(store: Store, container: Container, search: str) -> pa.Array | None:
    """Return the keys of the segments in a container, or None if the container was never read to its end."""
    name = listing_name(container, search)
    if not store.exists(name):
        return None
    try:
        return read_parquet(store.read_bytes(name))["key"].combine_chunks()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise CorruptError(
            f"{store.url(name)} is not a valid listing: {describe(error)}; remove it and retry"
        ) from error
