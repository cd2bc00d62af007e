"""Deal out labels with AudioSet's long tail, and choose the clips that are broken on purpose."""

from collections import Counter

import numpy as np
from numpy.random import Generator

from pipeline.miniature.classes import CLASSES, SILENCE

BALANCED_PART = 0.25
"""Of the training segments."""
EVEN_LABELS_PER_CLIP = 1.75
"""In the balanced and the evaluation segments; over all of training the classes' shares decide."""
MAX_LABELS = 3

SHARES = {sound.mid: sound.train_share for sound in CLASSES}
RAREST_FIRST = sorted(SHARES, key=lambda mid: SHARES[mid])

Labels = tuple[str, ...]


def deal_labels(rng: Generator, num_train: int, num_eval: int) -> dict[str, list[Labels]]:
    """Return the labels of each segment of each split; a class keeps its share of the training segments."""
    num_balanced = round(num_train * BALANCED_PART)
    balanced = _deal(rng, num_balanced, _even_quotas(num_balanced, at_least=0))
    dealt = Counter(mid for labels in balanced for mid in labels)
    left = {mid: max(2, round(share * num_train)) - dealt[mid] for mid, share in SHARES.items()}
    return {
        "balanced_train": balanced,
        "unbalanced_train": _deal(rng, num_train - num_balanced, left),
        "eval": _deal(rng, num_eval, _even_quotas(num_eval, at_least=1)),
    }


def _even_quotas(num_segments: int, at_least: int) -> dict[str, int]:
    # Square roots flatten the tail, as AudioSet's balanced and evaluation segments do.
    roots = {mid: share**0.5 for mid, share in SHARES.items()}
    scale = EVEN_LABELS_PER_CLIP * num_segments / sum(roots.values())
    return {mid: max(at_least, round(scale * root)) for mid, root in roots.items()}


def _deal(rng: Generator, num_segments: int, quotas: dict[str, int]) -> list[Labels]:
    """Give each class as many segments as its quota; silence shares a segment with nothing."""
    hands: list[list[str]] = [[] for _ in range(num_segments - quotas[SILENCE])]
    for mid in RAREST_FIRST:
        if mid == SILENCE:
            continue
        open_hands = [hand for hand in hands if len(hand) < MAX_LABELS]
        # The emptier a hand the sooner it is served, but not strictly: some stay single.
        haste = [len(hand) + rng.uniform(0, 4) for hand in open_hands]
        for i in np.argsort(haste)[: quotas[mid]]:
            open_hands[i].append(mid)
    for hand in hands:
        if not hand:
            hand.append(RAREST_FIRST[-1])
    hands += [[SILENCE] for _ in range(num_segments - len(hands))]
    order = rng.permutation(num_segments)
    return [tuple(rng.permutation(hands[i]).tolist()) for i in order]


def choose_faulty(rng: Generator, dealt: list[tuple[str, Labels]], num_faulty: int) -> list[int]:
    """Return the positions of clips, each given as (group, labels), that may be lost.

    They are clips of common classes, so that the long tail stays as planned: never of the rarest class, and never the
    last of a class in its group.
    """
    shuffled = rng.permutation(len(dealt)).tolist()
    common_first = sorted(shuffled, key=lambda i: -min(SHARES[mid] for mid in dealt[i][1]))
    half = len(dealt) // 2
    left = Counter((group, mid) for group, labels in dealt for mid in labels)
    chosen: list[int] = []
    for i in [*rng.permutation(common_first[:half]).tolist(), *common_first[half:]]:
        group, labels = dealt[i]
        safe = RAREST_FIRST[0] not in labels and all(left[group, mid] > 1 for mid in labels)
        if safe and len(chosen) < num_faulty:
            left.subtract((group, mid) for mid in labels)
            chosen.append(i)
    return chosen
