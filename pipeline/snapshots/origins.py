"""Count written clips by their source."""

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from pipeline.shards.format import WRITTEN, read_sidecar
from pipeline.shards.ledger import num_readers
from pipeline.store.layout import SHARDS, SIDECAR
from pipeline.store.storage import Store

YOUTUBE = re.compile(r"https?://[^/]*youtube\.com/.* \(format ([^,)]+)")
REPOSITORY = re.compile(r"(hf://(?:datasets/|spaces/)?[^/@]+/[^/@]+)")
HOST = re.compile(r"(https?://[^/]+)/")
CONTAINER = re.compile(r"(.*?)/[^/]*\.(?:tar|tar\.gz|tgz|zip|parquet)/")
MAX_FOLDERS = 8
"""Maximum number of rows for folders. More folders are counted under their parents."""


def count_origins(store: Store) -> dict[str, int]:
    """Count a store's written clips by origin, most frequent first; see `origin_of`."""
    names = store.list(SHARDS, SIDECAR)
    with ThreadPoolExecutor(num_readers(store)) as pool:
        counts = sum(pool.map(lambda name: _count_sidecar(store, name), names), Counter[str]())
    return dict(fold_folders(counts).most_common())


def _count_sidecar(store: Store, name: str) -> Counter[str]:
    rows = read_sidecar(store, name, ["status", "source"])
    pairs = zip(rows["status"].to_pylist(), rows["source"].to_pylist(), strict=True)
    return Counter(origin_of(source) for status, source in pairs if status == WRITTEN)


def origin_of(source: str) -> str:
    """Return the origin in a clip's source: YouTube with the format, a repository, a host, or a folder."""
    if found := YOUTUBE.match(source):
        return f"youtube, format {found[1]}"
    found = REPOSITORY.match(source) or HOST.match(source) or CONTAINER.match(source)
    return found[1] if found else source.rpartition("/")[0] or source


def fold_folders(counts: Counter[str]) -> Counter[str]:
    """Merge the deepest folders into their parents until at most `MAX_FOLDERS` remain."""
    counts = Counter(counts)
    while len(folders := [name for name in counts if _is_folder(name)]) > MAX_FOLDERS:
        deepest = max(name.count("/") for name in folders)
        for name in folders:
            if name.count("/") == deepest:
                counts[name.rpartition("/")[0] or "/"] += counts.pop(name)
    return counts


def _is_folder(origin: str) -> bool:
    return "/" in origin.strip("/") and not origin.startswith(("youtube,", "hf://", "http"))
