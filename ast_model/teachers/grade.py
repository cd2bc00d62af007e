"""A teacher graded on clips whose labels are known, before anything learns from it."""

from dataclasses import dataclass

import numpy as np

from ast_model.metrics import tagging_metrics
from ast_model.teachers.store import ScoreRows
from pipeline.errors import MismatchError
from pipeline.snapshots.snapshot import Snapshot
from pipeline.weights import class_balanced_weights

MAX_GRADED = 20_000
NUM_SECTIONS = 10
MIN_SECTION = 50
"""Clips of a part of the file that is graded by itself."""
TIMES_CHANCE = 2.0
"""What a teacher must reach of the mAP that its scores have for the labels of other clips."""
SHARE_OF_STATED = 0.5
"""What it must reach of its publisher's figure: that is of other clips, so a good one may differ by much."""


@dataclass(frozen=True)
class Grade:
    mAP: float
    chance: float
    """mAP of the same scores for other clips' labels: what a wrong index gives."""
    num_clips: int


def grade_teacher(scores: ScoreRows, clips: np.ndarray, snapshot: Snapshot, stated: float | None) -> Grade:
    """Grade stored scores by the labels of their clips (N,), drawn by class as the evaluation split is.

    Raises MismatchError, with the figures, if they are not of these clips, in all or in a part of the file.
    """
    targets = snapshot.targets(clips)
    weights = class_balanced_weights(targets)
    rng = np.random.default_rng(0)
    num_drawn = min(MAX_GRADED, int((weights > 0).sum()))
    rows = np.sort(rng.choice(len(clips), num_drawn, replace=False, p=weights / weights.sum()))
    drawn_scores, drawn_targets = scores.read(rows).astype(np.float32), targets[rows].toarray()
    grade = _grade(drawn_scores, drawn_targets, rng)
    published = f", and {stated:.3f} is stated" if stated is not None else ""
    found = (
        f"mAP {grade.mAP:.3f} on {num_drawn} clips with labels{published}; the labels of other clips give"
        f" {grade.chance:.3f}"
    )
    if grade.mAP < TIMES_CHANCE * grade.chance or (stated is not None and grade.mAP < SHARE_OF_STATED * stated):
        raise MismatchError(
            f"expected scores of these clips, found {found}. The rows, or the columns, are of others: an index that is"
            " shifted does that. Fetch the publisher's latest index; nothing was imported"
        )
    # An index that is shifted from somewhere on still has a fair grade as a whole.
    for section in np.array_split(np.arange(num_drawn), min(NUM_SECTIONS, max(1, num_drawn // MIN_SECTION))):
        part = _grade(drawn_scores[section], drawn_targets[section], rng)
        if part.mAP < TIMES_CHANCE * part.chance and part.mAP < SHARE_OF_STATED * grade.mAP:
            raise MismatchError(
                f"expected scores of these clips in the whole file, found mAP {part.mAP:.3f} from its clip"
                f" {rows[section[0]]:,} to {rows[section[-1]]:,}, where the labels of other clips give"
                f" {part.chance:.3f}; in all {found}. The index is shifted from there on? Nothing was imported"
            )
    return grade


def _grade(scores: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> Grade:
    others = targets[rng.permutation(len(targets))]
    return Grade(tagging_metrics(scores, targets).mAP, tagging_metrics(scores, others).mAP, len(scores))
