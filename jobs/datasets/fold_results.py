"""Summarise the results of a cross-validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ast_model.tracking.run import TrackedRun
from ast_model.training.step_metrics import Metrics

INTRODUCTION = "Cross-validation with one child run per fold.\n\n"


@dataclass(frozen=True)
class FoldResults:
    """Scores of all folds at the same epoch."""

    scores: Mapping[str, float]
    """Score of each fold, by the name of its split."""
    metric: str
    epoch: int
    how: str
    """Explanation of how the epoch was chosen."""
    mean_after_epoch: Sequence[float]
    baselines: Mapping[str, float]
    """Baseline score of each fold; empty without a baseline."""

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.scores.values())))

    @property
    def deviation(self) -> float:
        return deviation(self.scores)

    def to_json(self) -> dict[str, Any]:
        return {
            "folds": list(self.scores),
            "accuracies": list(self.scores.values()),
            "accuracy": self.mean,
            "deviation": self.deviation,
            "epoch": self.epoch,
            "how": self.how,
            "mean_after_epoch": list(self.mean_after_epoch),
        }

    def lines(self) -> list[str]:
        """Return one line per fold, and a line with the mean and the deviation."""
        lines = [f"{name:10} {self.metric} {score:.4f}{self._baseline(name)}" for name, score in self.scores.items()]
        baseline = ""
        if self.baselines:
            mean = float(np.mean(list(self.baselines.values())))
            baseline = f"   baseline {mean:.4f} ± {deviation(self.baselines):.4f}"
        how = f"   ({self.how})"
        return [*lines, f"{'mean':10} {self.metric} {self.mean:.4f} ± {self.deviation:.4f}{baseline}{how}"]

    def _baseline(self, name: str) -> str:
        return f"   baseline {self.baselines[name]:.4f}" if name in self.baselines else ""

    def log(self, parent: TrackedRun) -> None:
        """Log the mean of each epoch and the scores of the chosen epoch to the parent run."""
        for epoch, mean in enumerate(self.mean_after_epoch, start=1):
            parent.log_metrics({f"eval/{self.metric}": mean}, epoch)
        values = {self.metric: self.mean, f"{self.metric}/deviation": self.deviation}
        values |= {f"{self.metric}/{name}": score for name, score in self.scores.items()}
        if self.baselines:
            values[f"baseline/{self.metric}"] = float(np.mean(list(self.baselines.values())))
        parent.log_metrics(values, self.epoch)
        parent.describe(INTRODUCTION + "\n".join(f"- {line}" for line in self.lines()))


def deviation(scores: Mapping[str, float]) -> float:
    """Return the standard deviation of a sample, or 0 for a single score."""
    return float(np.std(list(scores.values()), ddof=1)) if len(scores) > 1 else 0.0


def choose_epoch(
    histories: Mapping[str, Sequence[Metrics]],
    choose: Literal["last", "best_on_test"],
    metric: str = "accuracy",
    baselines: Mapping[str, float] | None = None,
) -> FoldResults:
    """Choose one epoch for all folds, and return their scores."""
    name = f"eval/{metric}"
    curves = np.array([[epoch[name] for epoch in each if name in epoch] for each in histories.values()])
    last = curves.shape[1]
    epoch = last if choose == "last" else int(curves.mean(axis=0).argmax()) + 1
    how = f"epoch {epoch} of {last}, the last one"
    if choose != "last":
        how = f"epoch {epoch} of {last}, chosen by the mean {metric} on the test folds: optimistic"
    scores = dict(zip(histories, curves[:, epoch - 1].tolist(), strict=True))
    return FoldResults(scores, metric, epoch, how, curves.mean(axis=0).tolist(), baselines or {})
