"""Labels with AudioSet's long tail, and the choice of the clips that get a fault."""

from collections import Counter

import numpy as np
from numpy.random import Generator

from pipeline.miniature.classes import CLASSES, SILENCE

BALANCED_SHARE = 0.25
"""Share of the training segments that are in `balanced_train`."""
EVEN_LABELS_PER_CLIP = 1.75
"""Mean in the balanced and the evaluation segments; over all of training the classes' shares decide."""
MAX_LABELS = 3

SHARES = {sound.mid: sound.train_share for sound in CLASSES}
RAREST_FIRST = sorted(SHARES, key=lambda mid: SHARES[mid])

Labels = tuple[str, ...]


def assign_labels(rng: Generator, num_train: int, num_eval: int) -> dict[str, list[Labels]]:
    """Draw the labels of each segment of each split; a class keeps its share of the training segments."""
    num_balanced = round(num_train * BALANCED_SHARE)
    balanced = _fill(rng, num_balanced, _even_quotas(num_balanced, at_least=0))
    assigned = Counter(mid for labels in balanced for mid in labels)
    left = {mid: max(2, round(share * num_train)) - assigned[mid] for mid, share in SHARES.items()}
    return {
        "balanced_train": balanced,
        "unbalanced_train": _fill(rng, num_train - num_balanced, left),
        "eval": _fill(rng, num_eval, _even_quotas(num_eval, at_least=1)),
    }


def _even_quotas(num_segments: int, at_least: int) -> dict[str, int]:
    # Square roots flatten the tail, as AudioSet's balanced and evaluation segments do.
    roots = {mid: share**0.5 for mid, share in SHARES.items()}
    scale = EVEN_LABELS_PER_CLIP * num_segments / sum(roots.values())
    return {mid: max(at_least, round(scale * root)) for mid, root in roots.items()}


def _fill(rng: Generator, num_segments: int, quotas: dict[str, int]) -> list[Labels]:
    """Give each class as many segments as its quota; silence shares a segment with nothing."""
    rows: list[list[str]] = [[] for _ in range(num_segments - quotas[SILENCE])]
    for mid in RAREST_FIRST:
        if mid == SILENCE:
            continue
        open_rows = [row for row in rows if len(row) < MAX_LABELS]
        # Rows with fewer labels are likely to come first, but not certain to: some segments keep a single label.
        ranks = [len(row) + rng.uniform(0, 4) for row in open_rows]
        for i in np.argsort(ranks)[: quotas[mid]]:
            open_rows[i].append(mid)
    for row in rows:
        if not row:
            row.append(RAREST_FIRST[-1])
    rows += [[SILENCE] for _ in range(num_segments - len(rows))]
    order = rng.permutation(num_segments)
    return [tuple(rng.permutation(rows[i]).tolist()) for i in order]


def choose_faulty(rng: Generator, assigned: list[tuple[str, Labels]], num_faulty: int) -> list[int]:
    """Choose the clips, each given as (group, labels), that get a fault; return their positions.

    They are clips of common classes, so that the long tail stays as planned when they are lost: never of the rarest
    class, and never the last of a class in its group.
    """
    shuffled = rng.permutation(len(assigned)).tolist()
    common_first = sorted(shuffled, key=lambda i: -min(SHARES[mid] for mid in assigned[i][1]))
    half = len(assigned) // 2
    left = Counter((group, mid) for group, labels in assigned for mid in labels)
    chosen: list[int] = []
    for i in [*rng.permutation(common_first[:half]).tolist(), *common_first[half:]]:
        group, labels = assigned[i]
        safe = RAREST_FIRST[0] not in labels and all(left[group, mid] > 1 for mid in labels)
        if safe and len(chosen) < num_faulty:
            left.subtract((group, mid) for mid in labels)
            chosen.append(i)
    return chosen
