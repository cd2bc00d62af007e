"""Draw labels that follow AudioSet's long tail, and choose the clips that get faults."""

from collections import Counter

import numpy as np
from numpy.random import Generator

from pipeline.miniature.classes import CLASSES, SILENCE

BALANCED_SHARE = 0.25
"""Share of the training segments that belong to `balanced_train`."""
EVEN_LABELS_PER_CLIP = 1.75
"""Mean number of labels per segment in `balanced_train` and `eval`."""
MAX_LABELS = 3

SHARES = {sound.mid: sound.train_share for sound in CLASSES}
RAREST_FIRST = sorted(SHARES, key=lambda mid: SHARES[mid])

Labels = tuple[str, ...]


def assign_labels(rng: Generator, num_train: int, num_eval: int) -> dict[str, list[Labels]]:
    """Draw the labels of the segments in each split, so that each class gets its share of the training segments."""
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
    # Flatten the tail by taking square roots, as in AudioSet's balanced and evaluation splits.
    roots = {mid: share**0.5 for mid, share in SHARES.items()}
    scale = EVEN_LABELS_PER_CLIP * num_segments / sum(roots.values())
    return {mid: max(at_least, round(scale * root)) for mid, root in roots.items()}


def _fill(rng: Generator, num_segments: int, quotas: dict[str, int]) -> list[Labels]:
    """Give each class its quota of segments. A silent segment never has another label."""
    rows: list[list[str]] = [[] for _ in range(num_segments - quotas[SILENCE])]
    for mid in RAREST_FIRST:
        if mid == SILENCE:
            continue
        open_rows = [row for row in rows if len(row) < MAX_LABELS]
        # Prefer rows with few labels, but add some randomness, so that some segments keep a single label.
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
    """Return the positions of the clips that get a fault.

    The clips belong to common classes, and each class keeps at least one clip in each group. This preserves the long
    tail.

    assigned: the group and the labels of each clip.
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
