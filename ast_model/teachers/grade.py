"""Grade a teacher against the labels of its clips, to catch a wrong index before any model learns from it."""

from dataclasses import dataclass

import numpy as np

from ast_model.metrics import tagging_metrics
from ast_model.teachers.store import ScoreRows
from pipeline.errors import MismatchError
from pipeline.snapshots.snapshot import Snapshot
from pipeline.weights import class_balanced_weights

MAX_GRADED = 20_000
"""Largest number of graded clips: enough for a stable mAP in a few seconds."""
NUM_SECTIONS = 10
"""Number of sections of the file to grade separately, to catch an index that is shifted in one part."""
MIN_SECTION = 50
"""Minimum number of clips per section. The mAP of fewer clips is too random."""
MIN_TIMES_CHANCE = 2.0
"""Minimum mAP as a multiple of the mAP for shuffled labels."""
MIN_SHARE_OF_STATED = 0.5
"""Minimum mAP as a share of the publisher's mAP. Lenient, because the publisher evaluated on other clips."""


@dataclass(frozen=True)
class Grade:
    """A teacher's mAP on labelled clips, and its chance level."""

    mAP: float
    chance: float
    """mAP of the same scores for shuffled labels. A wrong index gives about this value."""
    num_clips: int


def grade_teacher(scores: ScoreRows, clips: np.ndarray, snapshot: Snapshot, stated: float | None) -> Grade:
    """Grade stored scores on a class-balanced sample of their clips (N,).

    stated: the publisher's mAP, if known.
    Raises MismatchError if the scores, or a section of them, do not fit the labels.
    """
    targets = snapshot.targets(clips)
    weights = class_balanced_weights(targets)
    rng = np.random.default_rng(0)
    num_drawn = min(MAX_GRADED, int((weights > 0).sum()))
    rows = np.sort(rng.choice(len(clips), num_drawn, replace=False, p=weights / weights.sum()))
    drawn_scores, drawn_targets = scores.read(rows).astype(np.float32), targets[rows].toarray()
    grade = _grade(drawn_scores, drawn_targets, rng)
    published = f" (stated: {stated:.3f})" if stated is not None else ""
    found = (
        f"mAP {grade.mAP:.3f}{published} on {num_drawn} labelled clips, where shuffled labels give {grade.chance:.3f}"
    )
    is_below_stated = stated is not None and grade.mAP < MIN_SHARE_OF_STATED * stated
    if grade.mAP < MIN_TIMES_CHANCE * grade.chance or is_below_stated:
        raise MismatchError(
            f"expected scores of these clips, found {found}. Rows or columns belong to other clips or classes, for"
            " example because the index is shifted. Download the publisher's latest index; nothing was imported"
        )
    # Grade sections too, because an index that is shifted only late in a file can still reach a fair grade overall.
    for section in np.array_split(np.arange(num_drawn), min(NUM_SECTIONS, max(1, num_drawn // MIN_SECTION))):
        part = _grade(drawn_scores[section], drawn_targets[section], rng)
        if part.mAP < MIN_TIMES_CHANCE * part.chance and part.mAP < MIN_SHARE_OF_STATED * grade.mAP:
            raise MismatchError(
                f"expected scores of these clips in the whole file, found mAP {part.mAP:.3f} from its clip"
                f" {rows[section[0]]:,} to {rows[section[-1]]:,}, where shuffled labels give {part.chance:.3f}; overall"
                f" {found}. The index may be shifted in this part; nothing was imported"
            )
    return grade


def _grade(scores: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> Grade:
    shuffled = targets[rng.permutation(len(targets))]
    return Grade(tagging_metrics(scores, targets).mAP, tagging_metrics(scores, shuffled).mAP, len(scores))
