"""Print a summary at the end of the main job."""

import math
import shlex
from dataclasses import dataclass

import numpy as np

from ast_model.checkpoints.async_writer import best_checkpoint
from ast_model.tracking.server import runs_page_url
from ast_model.training.step_metrics import Metrics
from pipeline.preprocess import PreprocessReport
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.layout import SHARDS, RunFiles, SnapshotFiles


@dataclass(frozen=True)
class RunSummary:
    """Results of the main job."""

    snapshot: Snapshot
    preprocessing: PreprocessReport
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
    for split, counts in summary.snapshot.manifest["split_counts"].items():
        failed = sum(counts["failed"].values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts["failed"].items())
        line = f"{split:18} {counts['planned']} planned = {counts['written']} written + {failed} failed"
        lines.append(line + (f" ({reasons})" if reasons else ""))
    done = summary.preprocessing
    if done.num_planned:
        rate = done.num_planned / done.seconds
        lines.append(f"this run attempted {done.num_planned} in {done.seconds:.0f} s: {rate:.1f} clips/s")
    else:
        lines.append("this run had no segments to attempt")
    if done.errors:
        lines.append(f"{len(done.errors)} shards failed; run the same command again to retry them")
    return lines


def _training(summary: RunSummary) -> list[str]:
    lines = []
    for metrics in summary.history:
        if "eval/mAP" in metrics:
            name, prefix = f"epoch {metrics['epoch']:.0f}", "eval"
        else:
            name, prefix = "average of the last", "eval/average"
        values = (metrics.get(f"{prefix}/{key}", math.nan) for key in ("mAP", "auc", "d_prime"))
        line = "mAP {:.3f}   AUC {:.3f}   d' {:.2f}".format(*values)
        accuracy = metrics.get(f"{prefix}/accuracy")  # only if each clip has one class
        lines.append(f"{name:20} {line if accuracy is None else f'accuracy {accuracy:.3f}   {line}'}")
    lines.append(f"{'chance':20} mAP {chance_level(summary.snapshot, summary.eval_split):.3f}   AUC 0.500   d' 0.00")
    return lines


def chance_level(snapshot: Snapshot, eval_split: str) -> float:
    """Return the expected mAP of random scores, which is the mean share of positive clips per class."""
    counts = snapshot.class_counts((eval_split,))
    return float(np.mean(counts[counts > 0]) / snapshot.stats["num_clips"][eval_split])


def _places(summary: RunSummary) -> list[str]:
    store, run = summary.snapshot.store, summary.run
    return [
        f"shards       {store.url(SHARDS)}",
        f"snapshot     {store.url(SnapshotFiles(summary.snapshot.snapshot_id).folder)}",
        f"checkpoints  {store.url(RunFiles(run).folder)}",
        f"MLflow run   {run} in {summary.tracking}",
    ]


def _next_steps(summary: RunSummary) -> list[str]:
    """Return commands that users may run next."""
    store = summary.snapshot.store
    root = shlex.quote(store.root)
    is_server = summary.tracking.startswith(("http://", "https://"))
    lines = [
        f"see the run:       {runs_page_url(summary.tracking) if is_server else f'make ui ROOT={root}'}",
        f"list the models:   python jobs/models.py list --root {root}",
    ]
    if best := best_checkpoint(store, RunFiles(summary.run).checkpoints):
        command = f"python jobs/evaluate.py --root {root} --checkpoints {shlex.quote(store.url(best[0]))}"
        if summary.eval_split != "eval":
            command += f" --split {summary.eval_split}"
        lines.append(f"evaluate again:    {command}")
    return [
        *lines,
        "use your media:    see docs/real-input.md, a run on recorded sounds",
        "see all settings:  python jobs/audioset.py --help",
    ]
