"""A linear head on frozen embeddings: logistic regression with a cross-validated penalty.

Training takes seconds, because embeddings are computed only once. With one label per clip the regression is
multinomial. With several labels, each class is a binary problem, and one solver handles all of them together.

Axes: N clips, D embedding size, C classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as nnf
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits
from torch import Tensor

from ast_model.config import Loss
from ast_model.metrics import accuracy, tagging_metrics
from pipeline.errors import InputError

PENALTIES = tuple(float(10**exponent) for exponent in np.arange(0.0, -5.5, -0.5))
"""Candidate penalties. The strongest comes first, because each solution starts from the previous one."""
EXACT = {"maxiter": 300, "gtol": 1e-7, "ftol": 1e-12, "maxcor": 20}
RANKING = {"maxiter": 50, "gtol": 1e-3, "ftol": 1e-4, "maxcor": 20}
"""Options for SciPy's L-BFGS, with loose tolerances to rank penalties and strict tolerances for the final head."""
CURVATURE = 0.03
"""Approximate second derivative of the loss by a logit, which is between 0 and 0.25. Only scales the solver's steps."""
MAX_SINGLE_THREADED = 10**8
"""Largest gradient, in multiply-adds, that is computed in a single thread. For smaller ones a second thread is
slower."""
NUM_FOLDS = 5
MAX_CROSS_VALIDATION_CLIPS = 20_000
"""Maximum number of clips for cross-validation. More clips rarely change the chosen penalty."""


@dataclass(frozen=True)
class LinearHead:
    """A linear head for unscaled embeddings."""

    weight_CD: np.ndarray
    bias_C: np.ndarray
    penalty: float
    score_of_penalty: dict[float, float]
    """Cross-validated accuracy or mAP of each candidate penalty; empty if the caller gave the penalty."""

    def logits(self, embeddings_ND: np.ndarray) -> np.ndarray:
        return embeddings_ND @ self.weight_CD.T + self.bias_C


def fit_head(
    embeddings_ND: np.ndarray,
    targets_NC: np.ndarray,
    loss: Loss,
    *,
    groups_N: Sequence[str] | None = None,
    penalty: float | None = None,
    is_balanced: bool = True,
    seed: int = 0,
) -> LinearHead:
    """Fit a head. Cross-validation chooses the penalty unless it is given.

    Raises InputError for non-finite embeddings and fewer than two clips.

    groups_N: group of each clip, such as its recording. Cross-validation keeps groups together. Default: no groups.
    is_balanced: give classes equal weights, like scikit-learn's `class_weight="balanced"`.
    """
    if len(embeddings_ND) < 2 or not np.isfinite(embeddings_ND).all():
        raise InputError(f"expected at least two embeddings, all of them finite; found {len(embeddings_ND)}")
    scores = {}
    with _few_threads(embeddings_ND.size * targets_NC.shape[1]):
        if penalty is None:
            groups = np.arange(len(embeddings_ND)) if groups_N is None else np.unique(groups_N, return_inverse=True)[1]
            scores = _cross_validate(embeddings_ND, targets_NC, loss, groups, is_balanced, seed)
            penalty = max(scores, key=lambda each: scores[each])
        weight_CD, bias_C = _Problem(embeddings_ND, targets_NC, loss, is_balanced).solve(penalty, EXACT)
    return LinearHead(weight_CD, bias_C, penalty, scores)


@contextmanager
def _few_threads(num_operations: int) -> Iterator[None]:
    """Use one thread for small problems. SciPy's solver always uses one, because its vectors are short."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if num_operations < MAX_SINGLE_THREADED else before)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def _cross_validate(
    embeddings_ND: np.ndarray,
    targets_NC: np.ndarray,
    loss: Loss,
    groups: np.ndarray,
    is_balanced: bool,
    seed: int,
) -> dict[float, float]:
    """Return the score of each penalty. Heads only score clips of groups that they were not trained on."""
    rng = np.random.default_rng(seed)
    num_folds = min(NUM_FOLDS, int(groups.max()) + 1)
    fold_of_group = rng.permutation(int(groups.max()) + 1) % num_folds
    fold_N = fold_of_group[groups]
    chosen = rng.permutation(len(groups))[:MAX_CROSS_VALIDATION_CLIPS]
    fold_N, embeddings_ND, targets_NC = fold_N[chosen], embeddings_ND[chosen], targets_NC[chosen]
    logits_of = {penalty: np.zeros(targets_NC.shape) for penalty in PENALTIES}
    for fold in range(num_folds):
        is_test = fold_N == fold
        if is_test.all() or not is_test.any():
            continue
        problem = _Problem(embeddings_ND[~is_test], targets_NC[~is_test], loss, is_balanced)
        for penalty in PENALTIES:
            weight_CD, bias_C = problem.solve(penalty, RANKING)
            logits_of[penalty][is_test] = embeddings_ND[is_test] @ weight_CD.T + bias_C
    return {penalty: score_head(logits, targets_NC, loss) for penalty, logits in logits_of.items()}


def score_head(logits_NC: np.ndarray, targets_NC: np.ndarray, loss: Loss) -> float:
    """Return the accuracy for one label per clip, otherwise the mAP."""
    if loss == "ce":
        return accuracy(logits_NC, targets_NC)
    return tagging_metrics(logits_NC, targets_NC).mAP


class _Problem:
    """Logistic regression on standardised embeddings. Each call of `solve` starts from the previous solution.

    Minimises the weighted mean loss + penalty/2 · ‖W‖², without a penalty on the bias. scikit-learn's
    LogisticRegression has the same objective with C = 1 / (penalty · sum of weights).
    """

    def __init__(self, embeddings_ND: np.ndarray, targets_NC: np.ndarray, loss: Loss, is_balanced: bool):
        # Standardise, so that one penalty suits all dimensions; the final weights include the scaling.
        self.mean_D = embeddings_ND.mean(axis=0, dtype=np.float64)
        std_D = embeddings_ND.std(axis=0, dtype=np.float64)
        self.std_D = np.where(std_D > 0, std_D, 1.0)
        # Use double precision, since in single precision the line search stalls long before scikit-learn's optimum.
        standard_ND = torch.from_numpy((embeddings_ND - self.mean_D) / self.std_D)
        # Rotate to the principal axes, where the curvature of the loss is nearly diagonal. Scaling by the curvature
        # saves the solver many steps for correlated embeddings. The rotation does not change the penalty.
        covariance_DD = standard_ND.T @ standard_ND / len(standard_ND)
        self.variance_D, self.axes_DD = torch.linalg.eigh(covariance_DD)
        self.features_ND = standard_ND @ self.axes_DD
        self.targets_NC = torch.from_numpy(targets_NC.astype(np.float64))
        self.loss: Loss = loss
        self.weights = _loss_weights(self.targets_NC, loss) if is_balanced else torch.ones(1, 1)
        self.weight_CD = torch.zeros(targets_NC.shape[1], embeddings_ND.shape[1], dtype=torch.float64)
        self.bias_C = torch.zeros(targets_NC.shape[1], dtype=torch.float64)

    def solve(self, penalty: float, options: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
        """Return weights (C, D) and biases (C,) for unstandardised embeddings."""
        scale_D = (CURVATURE * self.variance_D.clamp(min=0) + penalty).sqrt()
        shape_CD = self.weight_CD.shape

        def objective(solution: np.ndarray) -> tuple[float, np.ndarray]:
            weight_CD = torch.from_numpy(solution[: shape_CD.numel()]).view(shape_CD) / scale_D
            loss, gradient_NC = self._mean_loss(weight_CD, torch.from_numpy(solution[shape_CD.numel() :]))
            gradient_CD = (gradient_NC.T @ self.features_ND + penalty * weight_CD) / scale_D
            gradient = torch.cat([gradient_CD.flatten(), gradient_NC.sum(dim=0)])
            return loss + 0.5 * penalty * float(weight_CD.square().sum()), gradient.numpy()

        found = minimize(
            objective,
            torch.cat([(self.weight_CD * scale_D).flatten(), self.bias_C]).numpy(),
            jac=True,
            method="L-BFGS-B",
            options=dict(options),
        )
        self.weight_CD = torch.from_numpy(found.x[: shape_CD.numel()]).view(shape_CD) / scale_D
        self.bias_C = torch.from_numpy(found.x[shape_CD.numel() :])
        weight_CD = (self.weight_CD @ self.axes_DD.T).numpy() / self.std_D
        return weight_CD.astype(np.float32), (self.bias_C.numpy() - weight_CD @ self.mean_D).astype(np.float32)

    def _mean_loss(self, weight_CD: Tensor, bias_C: Tensor) -> tuple[float, Tensor]:
        """Return the loss and its gradient (N, C) with respect to the logits."""
        logits_NC = torch.addmm(bias_C, self.features_ND, weight_CD.T)
        if self.loss == "ce":
            log_probs_NC = logits_NC.log_softmax(dim=1)
            losses, scores_NC = -(self.targets_NC * log_probs_NC).sum(dim=1, keepdim=True), log_probs_NC.exp()
        else:
            # Sum over classes, so that the penalty means the same for each class's separate problem.
            losses = nnf.binary_cross_entropy_with_logits(logits_NC, self.targets_NC, reduction="none")
            scores_NC = logits_NC.sigmoid()
        weights = self.weights / len(logits_NC)
        return float((losses * weights).sum()), (scores_NC - self.targets_NC) * weights


def _loss_weights(targets_NC: Tensor, loss: Loss) -> Tensor:
    """Return scikit-learn's "balanced" weights: (N, 1) for one label per clip, otherwise (N, C)."""
    num_clips = len(targets_NC)
    counts_C = targets_NC.sum(dim=0)
    if loss == "ce":
        num_present = (counts_C > 0).sum()
        return (num_clips / (num_present * counts_C.clamp(min=1)))[targets_NC.argmax(dim=1)][:, None]
    positive_C = num_clips / (2 * counts_C.clamp(min=1))
    negative_C = num_clips / (2 * (num_clips - counts_C).clamp(min=1))
    return torch.where(targets_NC > 0, positive_C, negative_C)
