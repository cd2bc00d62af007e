"""Assign splits or folds to groups of clips, stratified by class. Each group is in exactly one of them.

Uses iterative stratification (Sechidis, Tsoumakas and Vlahavas, 2011), which distributes rare classes first.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

Group = TypeVar("Group", bound=Hashable)

TRAIN, EVAL = "train", "eval"


def split_groups(labels_of: Mapping[Group, Sequence[str]], eval_share: float, seed: int = 0) -> dict[Group, str]:
    """Distribute groups (files) over `train` and `eval`.

    Every class keeps at least one group in train. A class with two or more groups gets at least one in eval, unless
    this would take the last training group of a class.

    labels_of: labels of each group; repeated labels count once.
    """
    groups_of: dict[str, list[Group]] = defaultdict(list)
    order = sorted(labels_of, key=str)  # the result must not depend on the order of a folder's listing
    random.Random(seed).shuffle(order)
    for group in order:
        for label in dict.fromkeys(labels_of[group]):
            groups_of[label].append(group)
    wanted = {label: max(1, round(eval_share * len(groups))) for label, groups in groups_of.items()}
    left_in_train = Counter({label: len(groups) for label, groups in groups_of.items()})
    in_eval: set[Group] = set()
    for label in sorted(groups_of, key=lambda name: (len(groups_of[name]), name)):
        for group in groups_of[label]:
            if sum(other in in_eval for other in groups_of[label]) >= wanted[label]:
                break
            labels = set(labels_of[group])
            if group not in in_eval and all(left_in_train[name] > 1 for name in labels):
                in_eval.add(group)
                left_in_train.subtract(labels)
    return {group: EVAL if group in in_eval else TRAIN for group in labels_of}


def fold_groups(labels_of: Mapping[Group, Sequence[str]], num_folds: int, seed: int = 0) -> dict[Group, int]:
    """Distribute groups over the folds 1 to `num_folds`. Each class has about equally many clips per fold.

    labels_of: labels of all clips of each group.
    """
    order = sorted(labels_of, key=str)
    random.Random(seed).shuffle(order)
    counts_of = {group: Counter(labels_of[group]) for group in order}
    total = sum(counts_of.values(), Counter[str]())
    fold_of: dict[Group, int] = {}
    loads = {fold: Counter[str]() for fold in range(1, num_folds + 1)}
    # Groups of negative clips have no label and come last.
    for label in (*sorted(total, key=lambda name: (total[name], name)), None):
        left = [group for group in order if group not in fold_of and (label is None or label in counts_of[group])]
        for group in sorted(left, key=lambda group: -counts_of[group][label or ""]):
            fold = min(loads, key=lambda fold: (loads[fold][label or ""], loads[fold].total()))
            fold_of[group] = fold
            loads[fold].update(counts_of[group] or {"": 1})
    return fold_of
