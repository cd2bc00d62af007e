"""Settings for the preprocessing commands."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from jobs.command_line.settings import Data, Exists, StoreRoot
from pipeline.config import PreprocessConfig


@dataclass(frozen=True)
class RunCommand:
    """Fetch and convert missing segments and retryable failures, and publish a snapshot if anything changed.

    Exit codes: 0 for success, 75 if another run holds the store (retry later), 1 for errors with advice.
    """

    root: str = "data/audioset"
    """Folder or s3:// address of the store."""
    data: Data = field(default_factory=PreprocessConfig)
    track: bool = True
    """Log the run to MLflow."""
    notify: str = ""
    """URL, @FILE with a URL, or program that receives a JSON summary at the end."""


@dataclass(frozen=True)
class PlanCommand:
    """Show the segments that a run would fetch, with estimates. Changes nothing."""

    root: str = "data/audioset"
    """Folder or s3:// address of the store."""
    data: Data = field(default_factory=PreprocessConfig)


@dataclass(frozen=True)
class StatusCommand:
    """Show the progress of the store by split, failure reason and class. Changes nothing."""

    root: Annotated[str, Exists("run `preprocess.py run` first, or name another --root", "metadata")] = "data/audioset"
    """Folder or s3:// address of the store."""
    data: Data = field(default_factory=PreprocessConfig)
    num_classes: int = 20
    """Number of classes to show, lowest yield first."""


@dataclass(frozen=True)
class VerifyCommand:
    """Read all shards and compare them with their sidecars."""

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
    data: Data = field(default_factory=PreprocessConfig)
    repair: bool = False
    """Remove damaged shards and fetch their clips again."""


@dataclass(frozen=True)
class MeasureCommand:
    """Measure the audio quality of clips in shards without measures of the current version.

    Reads only the shards, so measures of the original media (peak, clipping, DC, codec, sample rate, position) stay
    unknown. Safe to interrupt and to run concurrently with other commands.
    """

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
    max_in_flight: int = PreprocessConfig.max_in_flight
    """Maximum number of concurrent shard tasks."""


@dataclass(frozen=True)
class ReportCommand:
    """Write a report of a snapshot as HTML and JSON: yield, levels, defects, duplicates, classes and advice."""

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
    snapshot: str = ""
    """Snapshot, or selection of a snapshot. Default: the latest snapshot."""
    against: str = ""
    """Snapshot of the same store to compare with."""
    output: Path = Path("report.html")
    """HTML file to write; the JSON file is written next to it."""


@dataclass(frozen=True)
class CompareCommand:
    """Compare the clips that two copies have in common, by their stored measures and fingerprints.

    Finds other offsets, levels, bandwidths and codecs, and different recordings under one id. Convert each copy to a
    store of its own first; `--limit 500` takes a sample of each split.
    """

    first: StoreRoot = ""
    """Store of the first copy."""
    second: StoreRoot = ""
    """Store of the second copy; snapshots of one store can be compared as well."""
    first_snapshot: str = ""
    """Snapshot in the first store. Default: the latest."""
    second_snapshot: str = ""
    """Snapshot in the second store. Default: the latest."""
    output: Path = Path("compare.html")
    """HTML file to write, with counts and players for the worst clips."""
    table: Path = Path("compare.parquet")
    """Table to write (`.parquet` or `.csv`), with a row per clip."""


@dataclass(frozen=True)
class DuplicatesCommand:
    """List near-identical clips of a snapshot, within and across splits, and store the list next to the snapshot.

    Compares fingerprints, which are part of the measures. Shards without measures are measured first. Repeating the
    command shows the stored list.
    """

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
    snapshot: str = ""
    """Snapshot to search. Default: the latest."""
    num_pairs: int = 20
    """Number of pairs to show, pairs across splits first. The stored list has all pairs."""
    max_in_flight: int = PreprocessConfig.max_in_flight
    """Maximum number of concurrent shard tasks while measuring."""


@dataclass(frozen=True)
class ListSnapshots:
    """List the snapshots, with the latest at the end, and the runs in the store that use them."""

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""


@dataclass(frozen=True)
class DiffSnapshots:
    """Compare two snapshots: added, removed, moved and relabelled clips, and clips per split and class."""

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
    old: str = ""
    """Snapshot to compare from."""
    new: str = ""
    """Snapshot to compare with. Default: the latest."""


@dataclass(frozen=True)
class PruneSnapshots:
    """Remove snapshots that no run uses, in the store or in MLflow, except the latest. Keeps all shards."""

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
    keep: tuple[str, ...] = ()
    """Additional snapshots to keep."""
    track: bool = True
    """Keep snapshots that runs in MLflow use."""
    dry_run: bool = False
    """List the snapshots without removing them."""
