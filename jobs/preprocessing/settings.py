"""Settings of the commands about clips and snapshots."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from jobs.command_line.settings import Data, Exists, StoreRoot
from pipeline.config import PreprocessConfig
from pipeline.estimate import CostConfig


@dataclass(frozen=True)
class RunCommand:
    """Fetch and convert what is missing or failed in a way that may pass, and publish a snapshot if something changed.

    Exit codes: 0 done; 75 another run holds the store, try later; 1 an error, whose message says what to do.
    """

    root: str = "data/audioset"
    """Folder or s3:// address of the store."""
    data: Data = field(default_factory=PreprocessConfig)
    track: bool = True
    """Log the run to MLflow."""


@dataclass(frozen=True)
class PlanCommand:
    """Show what is due in a run and what that costs. Touches nothing."""

    root: str = "data/audioset"
    """Folder or s3:// address of the store."""
    data: Data = field(default_factory=PreprocessConfig)
    costs: CostConfig = field(default_factory=CostConfig)


@dataclass(frozen=True)
class StatusCommand:
    """Show how far the store is, per split, reason and class. Touches nothing."""

    root: Annotated[str, Exists("run `preprocess.py run` first, or name another --root", "metadata")] = "data/audioset"
    """Folder or s3:// address of the store."""
    data: Data = field(default_factory=PreprocessConfig)
    num_classes: int = 20
    """Classes to show, those with the least yield first."""


@dataclass(frozen=True)
class VerifyCommand:
    """Reread all shards and compare them with their sidecars."""

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
    data: Data = field(default_factory=PreprocessConfig)
    repair: bool = False
    """Remove the shards that are wrong and fetch their clips again."""


@dataclass(frozen=True)
class MeasureCommand:
    """Measure the clips of shards that have no measures of this version, from what the shards hold.

    Nothing is fetched, so what only the media had stays unknown: peak, clipping, DC, codec, rate and place. May be
    interrupted, and run beside anything else.
    """

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
    max_in_flight: int = PreprocessConfig.max_in_flight
    """Shard tasks handed to Ray at a time."""


@dataclass(frozen=True)
class ReportCommand:
    """Write what is in a snapshot as a page and as JSON: yield, levels, flaws, duplicates, classes, and what to do."""

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
    snapshot: str = ""
    """Snapshot, or a selection of one; unset the latest."""
    against: str = ""
    """Snapshot of the same store whose figures are shown beside."""
    output: Path = Path("report.html")
    """The page to write; the JSON lies beside it."""


@dataclass(frozen=True)
class DuplicatesCommand:
    """List the near-identical clips of a snapshot, within and across its splits, and keep the list beside it.

    Clips are known by fingerprints, which the measures hold: shards that have none are measured first. A snapshot that
    was searched is not searched again.
    """

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
    snapshot: str = ""
    """Snapshot to search; unset the latest."""
    num_pairs: int = 20
    """Pairs to show, those across splits first; all are in the file."""
    max_in_flight: int = PreprocessConfig.max_in_flight
    """Shard tasks handed to Ray at a time, where shards have to be measured."""


@dataclass(frozen=True)
class ListSnapshots:
    """List the snapshots, the latest last, and the runs in the store that refer to them."""

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""


@dataclass(frozen=True)
class DiffSnapshots:
    """Compare two snapshots: clips that are new, gone, moved or relabelled, and clips per split and class."""

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
    old: str = ""
    """Snapshot to compare from."""
    new: str = ""
    """Snapshot to compare with; unset the latest."""


@dataclass(frozen=True)
class PruneSnapshots:
    """Remove snapshots that are not the latest and that no run refers to, in the store or in MLflow. Shards stay."""

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
    keep: tuple[str, ...] = ()
    """Snapshots to keep all the same."""
    track: bool = True
    """Ask MLflow which runs there are."""
    dry_run: bool = False
    """Only list what would be removed."""
