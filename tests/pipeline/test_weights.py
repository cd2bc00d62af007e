import numpy as np
import pytest
from scipy import sparse
from sklearn.utils.class_weight import compute_class_weight

from pipeline.errors import InputError
from pipeline.weights import class_balanced_weights


def test_weights_are_those_computed_by_hand() -> None:
    # Counts are 3, 1 and 0: the labels weigh 1000/3.01, 1000/1.01 and 1000/0.01.
    targets = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]])
    expected = [332.2259136, 332.2259136 + 990.0990099, 332.2259136, 0]
    np.testing.assert_allclose(class_balanced_weights(targets), expected, rtol=1e-9)
    # PaSST adds 100: 1000/103 and 1000/101.
    expected = [9.7087379, 9.7087379 + 9.9009901, 9.7087379, 0]
    np.testing.assert_allclose(class_balanced_weights(targets, count_offset=100), expected, rtol=1e-7)


def test_one_label_per_clip_is_balanced_as_scikit_learn_does() -> None:
    classes = np.repeat(np.arange(4), [500, 300, 150, 50])
    weights = class_balanced_weights(np.eye(4)[classes])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=classes)[classes]
    np.testing.assert_allclose(weights / weights.sum(), expected / expected.sum(), rtol=3e-4)  # the 0.01 in AST's


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_dense_and_sparse_targets_weigh_the_same(dtype: type) -> None:
    # More clips of a class than its type can count.
    targets = np.random.default_rng(0).random((1000, 20)) < np.linspace(0.01, 0.9, 20)
    expected = targets.astype(float) @ (1000 / (targets.astype(float).sum(axis=0) + 0.01))
    np.testing.assert_allclose(class_balanced_weights(targets.astype(dtype)), expected)
    np.testing.assert_allclose(class_balanced_weights(sparse.csr_array(targets.astype(dtype))), expected)


def test_no_label_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="needs clips with labels, found none"):
        class_balanced_weights(np.zeros((3, 2)))
