"""Weights for class-balanced sampling."""

import numpy as np
from scipy import sparse

from pipeline.errors import InputError


def class_balanced_weights(targets: np.ndarray | sparse.csr_array, count_offset: float = 0.01) -> np.ndarray:
    """Return AST's sampling weight of each clip.

    targets: (N, C) multi-hot, dense or sparse → (N,) float64. A label weighs 1000 / (count + count_offset), a clip
    the sum over its labels; PaSST's offset is 100. Raises InputError if no clip has any label.
    Source: https://github.com/YuanGongND/ast, `egs/audioset/gen_weight_file.py`.

    >>> class_balanced_weights(np.array([[1, 0], [1, 0], [1, 1]])).round()
    array([ 332.,  332., 1322.])
    """
    counts = np.asarray(targets.sum(axis=0), dtype=np.float64).ravel()
    if not counts.any():
        raise InputError("expected clips with labels, found none: class-balanced sampling needs them")
    weight_of_label = 1000.0 / (counts + count_offset)
    return np.asarray(targets @ weight_of_label, dtype=np.float64)
