"""Compute weights for class-balanced sampling."""

import numpy as np
from scipy import sparse

from pipeline.errors import InputError


def class_balanced_weights(targets: np.ndarray | sparse.csr_array, count_offset: float = 0.01) -> np.ndarray:
    """Return each clip's sampling weight as defined by AST.

    A class has the weight 1000 / (count + count_offset), and a clip has the sum of its classes' weights. PaSST uses an
    offset of 100.

    targets: dense or sparse multi-hot labels (N, C).
    Returns float64 weights (N,). Raises InputError if no clip has any label.
    Source: https://github.com/YuanGongND/ast, `egs/audioset/gen_weight_file.py`.

    >>> class_balanced_weights(np.array([[1, 0], [1, 0], [1, 1]])).round()
    array([ 332.,  332., 1322.])
    """
    counts = np.asarray(targets.sum(axis=0), dtype=np.float64).ravel()
    if not counts.any():
        raise InputError("class-balanced sampling needs clips with labels, found none")
    weight_of_label = 1000.0 / (counts + count_offset)
    return np.asarray(targets @ weight_of_label, dtype=np.float64)
