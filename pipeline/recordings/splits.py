"""Assign splits to recordings: stratified by class, and each file in exactly one split.

The method is iterative stratification (Sechidis, Tsoumakas and Vlahavas, 2011): rare classes are distributed first.
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

    labels_of: labels of each group; repeats don't count.
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
