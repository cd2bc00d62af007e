"""Score windows of features with a model.

Axes: W windows, C classes, T frames, M mel bins, D embedding size.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ast_model.data.augment import normalise
from ast_model.evaluation.calibration import Calibration
from ast_model.losses import scores_from_logits
from ast_model.model import AST
from ast_model.pretrained.metadata import ModelMetadata
from ast_model.tagging.options import TaggingOptions
from ast_model.tagging.windows import Window, WindowGrid, plan_grid
from pipeline.errors import WeightsError
from pipeline.fbank_settings import NUM_MEL_BINS


class WindowScorer:
    """Scores windows with a model on its device. Also holds the model's metadata and calibration."""

    def __init__(
        self,
        model: AST,
        metadata: ModelMetadata,
        device: torch.device,
        batch_size: int,
        calibration: Calibration | None = None,
    ):
        self.model = model.to(device).eval().requires_grad_(False)
        self.metadata, self.device, self.batch_size, self.calibration = metadata, device, batch_size, calibration
        self.labels = tuple(metadata.labels)

    @property
    def whole_grid(self) -> WindowGrid:
        """Windows of the model's length without overlap. A recording's score is the mean over them."""
        return WindowGrid.without_overlap(self.model.config.num_frames)

    def timeline_grid(self, options: TaggingOptions) -> WindowGrid:
        """Windows of a timeline. Raises ConfigError for windows longer than the model's."""
        return plan_grid(self.model.config.num_frames, options)

    def score_batch(self, windows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return uncalibrated scores (W, C) and embeddings (W, D) of one batch of windows.

        windows: features (T, M) from `compute_fbank`, at most as long as the model's window. They may belong to several
        recordings.
        Raises WeightsError for scores that are not finite.
        """
        with torch.inference_mode():
            embedding_BD = self.model.embed(self._pad(windows)).float()
            scores_BC = scores_from_logits(self.model.head(embedding_BD), self.metadata.loss)
        scores_WC = scores_BC.cpu().numpy()
        # NaN never reaches a threshold, so a recording would silently get no tags.
        if num_broken := int((~np.isfinite(scores_WC).all(axis=1)).sum()):
            raise WeightsError(
                f"expected finite scores, found NaN or infinity in {num_broken} of {len(windows)} windows: the weights"
                " are damaged or too large for float32; use another checkpoint"
            )
        return scores_WC, embedding_BD.cpu().numpy()

    def score_windows(self, fbank_TM: np.ndarray, windows: Sequence[Window]) -> tuple[np.ndarray, np.ndarray]:
        """Return uncalibrated scores (W, C) and embeddings (W, D) of a recording's windows, in batches."""
        parts = [
            self.score_batch([fbank_TM[each.start : each.stop] for each in windows[first : first + self.batch_size]])
            for first in range(0, len(windows), self.batch_size)
        ]
        scores, embeddings = zip(*parts, strict=True)
        return np.concatenate(scores), np.concatenate(embeddings)

    def calibrate(self, scores_NC: np.ndarray) -> np.ndarray:
        """Convert scores to probabilities. Without a calibration, return them unchanged."""
        return scores_NC if self.calibration is None else self.calibration.apply(scores_NC)

    def _pad(self, windows: Sequence[np.ndarray]) -> Tensor:
        """Pad windows (T, M) with 0 to the model's length, then normalise, as in training → (B, T, M)."""
        shape = (len(windows), self.model.config.num_frames, NUM_MEL_BINS)
        fbank_BTM = torch.zeros(shape, device=self.device)
        for padded_TM, window_TM in zip(fbank_BTM, windows, strict=True):
            padded_TM[: len(window_TM)] = torch.from_numpy(window_TM)
        return normalise(fbank_BTM, self.metadata.mean, self.metadata.std)
