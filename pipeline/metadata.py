"""Load the classes and segments of a data set from its CSV files."""

import filecmp
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa

from pipeline.config import PreprocessConfig
from pipeline.errors import InputError, describe_storage_error
from pipeline.keys import has_repeats, positions_of
from pipeline.labels import NO_LABEL, Labels, read_labels
from pipeline.segments import join_tables, read_segment_table
from pipeline.store.layout import CLASSES, CLASSES_FILE, METADATA, SEGMENTS_SUFFIX, name_in, segments_file
from pipeline.store.storage import Store

log = logging.getLogger(__name__)
NUM_NAMED = 10


@dataclass(frozen=True, eq=False)
class Metadata:
    """The classes and the segments of all splits. Keys of segments are unique."""

    labels: Labels
    segments: pa.Table
    """Segments of all splits, as a table of `SEGMENT_SCHEMA`."""
    digest: str
    """SHA-256 of the CSV files."""

    def segments_of(self, splits: Sequence[str], limit: int | None = None) -> pa.Table:
        """Return the segments of the given splits, in order. If `limit` is given, each split contributes only its first
        `limit` segments."""
        column = self.segments["split"].combine_chunks()
        code_of = {name: code for code, name in enumerate(column.dictionary.to_pylist())}
        codes = column.indices.to_numpy()
        rows = [np.flatnonzero(codes == code_of.get(split, -1))[:limit] for split in splits]
        return self.segments.take(pa.array(np.concatenate(rows)))


def load_metadata(
    config: PreprocessConfig, store: Store | None = None, check_lease: Callable[[], None] | None = None
) -> Metadata:
    """Read the classes and the segments of `config.splits`, and copy their files to the store if one is given.

    Splits that earlier runs added to the store are included. If a segment occurs in several files, it belongs to its
    split in `config.splits` or, if it has none there, to its first stored split by name. Raises InputError if a
    segment in `config.splits` has a label that is not among the classes.

    check_lease: called right before a file is published. It raises LeaseError if another run has taken over the store.
    """
    address = config.metadata.rstrip("/")
    names = [CLASSES_FILE, *(split + SEGMENTS_SUFFIX for split in config.splits)]
    with store.scratch() if store else tempfile.TemporaryDirectory() as folder:
        files = {name: _copy(f"{address}/{name}", Path(folder) / name) for name in names}
        labels = read_labels(str(files[CLASSES_FILE]))
        segments = join_tables(read_segment_table(str(files[name]), where=f"{address}/{name}") for name in names[1:])
        _check_labels(segments, labels, address)
        _check_splits(segments, address)
        digests = [_digest_of(file) for file in files.values()]
        if store:
            for name, file in files.items():
                _publish_if_new(file, f"{METADATA}/{name}", store, check_lease)
            # The names are sorted. If a segment is in two of these files, it belongs to the first.
            for name in stored_splits(store):
                if name not in config.splits:
                    file = Path(folder) / "other.csv"
                    store.fetch(segments_file(name), file)
                    digests.append(_digest_of(file))
                    segments = _add_split(segments, read_segment_table(str(file), split=name), labels, name)
    return Metadata(labels, segments, hashlib.sha256("".join(digests).encode()).hexdigest())


def read_stored_metadata(store: Store, splits: Sequence[str]) -> Metadata:
    """Read the classes and the segments of the given splits from the store's own copies."""
    labels = read_labels(store.url(CLASSES))
    tables = [read_segment_table(store.url(segments_file(split))) for split in splits]
    return Metadata(labels, join_tables(tables), digest="")


def stored_splits(store: Store) -> list[str]:
    names = store.list(METADATA, SEGMENTS_SUFFIX)
    return [name_in(METADATA, name).removesuffix(SEGMENTS_SUFFIX) for name in names]


def _copy(address: str, file: Path) -> Path:
    try:
        with fsspec.open(address, "rb") as source, file.open("wb") as copy:
            shutil.copyfileobj(source, copy)  # pyright: ignore[reportArgumentType]
    except Exception as error:  # every storage library has its own errors
        raise InputError(f"can't read {address}: {describe_storage_error(error)}; check --metadata") from error
    return file


def _publish_if_new(file: Path, name: str, store: Store, check_lease: Callable[[], None] | None) -> None:
    """Publish a file unless the store already has a file with the same content."""
    if store.exists(name):
        stored = file.with_suffix(".stored")
        store.fetch(name, stored)
        if filecmp.cmp(file, stored, shallow=False):
            return
    store.publish(file, name, check_lease)


def _digest_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _add_split(segments: pa.Table, other: pa.Table, labels: Labels, name: str) -> pa.Table:
    """Add a split from an earlier run, without the segments that now belong to another split."""
    other = other.filter(pa.array(positions_of(other["key"], segments["key"]) < 0))
    column = other["labels"].combine_chunks()
    unknown = [code for code, text in enumerate(column.dictionary.to_pylist()) if _unknown_labels([text], labels)]
    is_known = ~np.isin(column.indices.to_numpy(), unknown)
    if not is_known.all():
        log.warning(
            "skipped %d segments of %s, a split from an earlier run, with labels that are no longer classes; add the"
            " split to --splits to read it again",
            np.count_nonzero(~is_known),
            name,
        )
    return join_tables([segments, other.filter(pa.array(is_known))])


def _unknown_labels(texts: Sequence[str], labels: Labels) -> list[str]:
    return sorted({mid for text in texts for mid in text.split(",")} - labels.index_of.keys() - {NO_LABEL})


def _check_labels(segments: pa.Table, labels: Labels, address: str) -> None:
    unknown = _unknown_labels(segments["labels"].combine_chunks().dictionary.to_pylist(), labels)
    if unknown:
        raise InputError(
            f"{address}: {len(unknown)} labels of the segments are not among the {len(labels)} classes of"
            f" {CLASSES_FILE}: {', '.join(unknown[:NUM_NAMED])}. Use files of the same release"
        )


def _check_splits(segments: pa.Table, address: str) -> None:
    if not has_repeats(segments["key"]):
        return
    counts = segments["key"].combine_chunks().value_counts()
    twice = counts.field("values").filter(pa.array(counts.field("counts").to_numpy() > 1))
    if len(twice):
        raise InputError(
            f"{address}: expected each segment in one split, found {len(twice)} in several, such as {twice[0]}:"
            " evaluation clips would leak into training; remove them from one of the files"
        )
