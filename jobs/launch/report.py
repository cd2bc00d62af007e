"""The short report at the end of the main job."""

from dataclasses import dataclass

import numpy as np

from ast_model.training.reporter import Metrics
from pipeline.preprocess import PreprocessReport
from pipeline.snapshots.snapshot import Snapshot


@dataclass(frozen=True)
class RunSummary:
    """What the main job made."""

    snapshot: Snapshot
    visit: PreprocessReport
    run: str
    history: list[Metrics]
    eval_split: str
    tracking: str


def print_report(summary: RunSummary) -> None:
    for title, lines in (
        ("Clips", _clips(summary)),
        ("Training", _training(summary)),
        ("Where things are", _places(summary)),
        ("Next", _next_steps(summary)),
    ):
        print(f"\n{title}")
        print("\n".join(f"  {line}" for line in lines))


def _clips(summary: RunSummary) -> list[str]:
    lines = []
    for split, book in summary.snapshot.manifest["split_counts"].items():
        failed = sum(book["failed"].values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in book["failed"].items())
        line = f"{split:18} {book['planned']} planned = {book['written']} written + {failed} failed"
        lines.append(line + (f" ({reasons})" if reasons else ""))
    visit = summary.visit
    if visit.num_planned:
        rate = visit.num_planned / visit.seconds
        lines.append(f"this run visited {visit.num_planned} in {visit.seconds:.0f} s: {rate:.1f} clips/s")
    else:
        lines.append("this run had nothing to visit")
    if visit.errors:
        lines.append(f"{len(visit.errors)} shards could not be made; run the same command again to try them again")
    return lines


def _training(summary: RunSummary) -> list[str]:
    lines = []
    for metrics in summary.history:
        if "eval/mAP" in metrics:
            name, prefix = f"epoch {metrics['epoch']:.0f}", "eval"
        else:
            name, prefix = "average of the last", "eval/average"
        values = (metrics[f"{prefix}/{key}"] for key in ("mAP", "auc", "d_prime"))
        lines.append("{:20} mAP {:.3f}   AUC {:.3f}   d' {:.2f}".format(name, *values))
    lines.append(f"{'chance':20} mAP {chance_level(summary.snapshot, summary.eval_split):.3f}   AUC 0.500   d' 0.00")
    return lines


def chance_level(snapshot: Snapshot, eval_split: str) -> float:
    """Return the mAP of random scores: a class's average precision is then the share of its clips."""
    counts = snapshot.class_counts((eval_split,))
    return float(np.mean(counts[counts > 0]) / snapshot.stats["num_clips"][eval_split])


def _places(summary: RunSummary) -> list[str]:
    store, run = summary.snapshot.store, summary.run
    return [
        f"shards       {store.url('shards')}",
        f"snapshot     {store.url(f'snapshots/{summary.snapshot.snapshot_id}')}",
        f"checkpoints  {store.url(f'runs/{run}')}",
        f"MLflow run   {run} in {summary.tracking}",
    ]


def _next_steps(summary: RunSummary) -> list[str]:
    return [
        f"see the run:       make ui ROOT={summary.snapshot.store.root}",
        "use your media:    python jobs/audioset.py --metadata CSV_FOLDER --media MEDIA_FOLDER --root FOLDER",
        "see all settings:  python jobs/audioset.py --help; docs/real-input.md shows a run on recorded sounds",
    ]
