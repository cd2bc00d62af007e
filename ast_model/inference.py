"""Tag audio with a trained model. Offers ranked classes, scores, embeddings and timelines."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ast_model.evaluation.calibration import Calibration
from ast_model.model import AST
from ast_model.pretrained.load import fit_weights
from ast_model.pretrained.metadata import ModelMetadata, check_labels, read_metadata
from ast_model.pretrained.weight_files import read_weights
from ast_model.pretrained.weight_sources import find_weights
from ast_model.tagging.options import TaggingOptions
from ast_model.tagging.ranking import rank_classes
from ast_model.tagging.scorer import WindowScorer
from ast_model.tagging.windows import pool_windows
from pipeline.audio.decode import decode_file
from pipeline.errors import ConfigError, InputError
from pipeline.fbank import compute_fbank
from pipeline.fbank_settings import NUM_MEL_BINS
from pipeline.labels import Labels, read_labels

Audio = str | Path | bytes | np.ndarray | Tensor
"""A path or address, the bytes of a media file, or a waveform (S,) float in [-1, 1] at 16 kHz."""

SINGLE = (str, Path, bytes, Mapping)
"""Iterable types that are a single audio input, not a list of inputs."""
CALIBRATION = "calibration.json"
"""File name of a calibration, stored beside its weights."""


class Tagger:
    """Tags audio of any length in windows of the model's length, as in training.

    >>> from ast_model.config import ASTConfig
    >>> model = AST(ASTConfig.nano(num_classes=2, num_frames=64))
    >>> tagger = Tagger(model, ModelMetadata(["dog", "cat"], mean=-4.3, std=4.6))
    >>> sorted(label for label, score in tagger.tag(np.zeros(16_000, np.float32)))
    ['cat', 'dog']
    """

    def __init__(
        self,
        model: AST,
        metadata: ModelMetadata,
        device: str | torch.device | None = None,
        batch_size: int = 8,
        calibration: Calibration | None = None,
    ):
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.scorer = WindowScorer(model, metadata, device, batch_size, calibration)
        self.model, self.metadata, self.labels = self.scorer.model, metadata, self.scorer.labels

    @classmethod
    def load(
        cls,
        source: str | Path,
        labels: str | Path | Labels | None = None,
        device: str | torch.device | None = None,
        calibrated: bool = False,
    ) -> "Tagger":
        """Load a checkpoint's folder, a Hugging Face folder or hub name, or an official `.pth`.

        calibrated: return probabilities, using the `calibration.json` that jobs/calibrate.py writes beside the weights.
        labels: a `class_labels_indices.csv`. Required for an official `.pth`. For other checkpoints it must match their
        labels. Raises WeightsError, InputError or MismatchError.
        """
        if isinstance(labels, str | Path):
            labels = read_labels(str(labels))
        file = read_weights(source)
        model = fit_weights(file, source)
        metadata = read_metadata(file, model.config, labels)
        calibration = _read_calibration(source, metadata.labels) if calibrated else None
        return cls(model, metadata, device, calibration=calibration)

    def tag(self, audio: Audio, top_k: int = TaggingOptions.top_k) -> list[tuple[str, float]]:
        """Return the best classes with their scores, best first."""
        options = TaggingOptions(top_k=top_k)
        scores_C = self.scores([audio])[0]
        return self._name_tags(scores_C, rank_classes(scores_C, options.top_k))

    def present(self, audio: Audio) -> list[tuple[str, float]]:
        """Return the classes above their calibrated thresholds, best first. Needs `calibrated=True`."""
        if self.scorer.calibration is None:
            raise ConfigError("expected a tagger with thresholds: load it with calibrated=True")
        scores_C, thresholds_C = self.scores([audio])[0], np.asarray(self.scorer.calibration.thresholds)
        return self._name_tags(scores_C, rank_classes(scores_C, len(self.labels), thresholds_C))

    def scores(self, audios: Iterable[Audio]) -> np.ndarray:
        """Return scores (N, C) float32 in the order of `labels`.

        The score of longer audio is the mean over its windows, weighted by their numbers of frames.
        """
        return self.scorer.calibrate(self._pool(audios)[0])

    def scores_of_fbank(self, fbank_TM: np.ndarray) -> np.ndarray:
        """Return scores (C,) for unpadded, unnormalised features (T, 128) from `compute_fbank`."""
        if fbank_TM.ndim != 2 or fbank_TM.shape[1] != NUM_MEL_BINS or not len(fbank_TM):
            raise InputError(f"expected features of shape (frames, {NUM_MEL_BINS}), found {fbank_TM.shape}")
        if not np.isfinite(fbank_TM).all():
            raise InputError("expected finite features, found NaN or infinity")
        scores_C, _ = self._pool_fbank(fbank_TM.astype(np.float32))
        return self.scorer.calibrate(scores_C[None])[0]

    def embed(self, audios: Iterable[Audio]) -> np.ndarray:
        """Return embeddings (N, D) float32 from `AST.embed`, pooled over windows like scores."""
        return self._pool(audios)[1]

    def timeline(self, audio: Audio, window_s: float | None = None, hop_s: float | None = None) -> pd.DataFrame:
        """Score windows of `window_s` (default: the model's length) every `hop_s` (default: half a window).

        Returns a table with one row per window, indexed by `start_s`, and one column per class.
        """
        grid = self.scorer.timeline_grid(TaggingOptions(window_s=window_s, hop_s=hop_s))
        fbank_TM = self.fbank(audio)
        windows = grid.cut(len(fbank_TM))
        scores_WC, _ = self.scorer.score_windows(fbank_TM, windows)
        index = pd.Index([window.start_s for window in windows], name="start_s")
        return pd.DataFrame(self.scorer.calibrate(scores_WC), index=index, columns=pd.Index(self.labels))

    def fbank(self, audio: Audio) -> np.ndarray:
        """Return the unpadded, unnormalised features (T, 128) float32 of audio."""
        return compute_fbank(torch.from_numpy(read_audio(audio)).to(self.scorer.device)).cpu().numpy()

    def _name_tags(self, scores_C: np.ndarray, classes: np.ndarray) -> list[tuple[str, float]]:
        return [(self.labels[index], float(scores_C[index])) for index in classes]

    def _pool(self, audios: Iterable[Audio]) -> tuple[np.ndarray, np.ndarray]:
        """Return uncalibrated scores (N, C) and embeddings (N, D)."""
        is_single = audios.ndim < 2 if isinstance(audios, np.ndarray | Tensor) else isinstance(audios, SINGLE)
        if is_single or not isinstance(audios, Iterable):
            raise InputError(f"expected a list of audio inputs, found a single {type(audios).__name__}; pass a list")
        pairs = [self._pool_fbank(self.fbank(audio)) for audio in audios]
        if not pairs:
            raise InputError("expected at least one audio input, found none")
        scores, embeddings = zip(*pairs, strict=True)
        return np.stack(scores), np.stack(embeddings)

    def _pool_fbank(self, fbank_TM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the uncalibrated scores (C,) and the embedding (D,) of one recording."""
        windows = self.scorer.whole_grid.cut(len(fbank_TM))
        scores_WC, embeddings_WD = self.scorer.score_windows(fbank_TM, windows)
        return pool_windows(scores_WC, windows), pool_windows(embeddings_WD, windows)


def _read_calibration(source: str | Path, labels: Sequence[str]) -> Calibration:
    path = Path(source).expanduser()
    file = find_weights(path).parent / CALIBRATION if path.exists() else path / CALIBRATION
    try:
        calibration = Calibration.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"expected a calibration at {file} ({error}); create one with jobs/calibrate.py") from error
    check_labels(calibration.labels, labels, "the model", "its calibration")
    return calibration


def read_audio(audio: Audio) -> np.ndarray:
    """Return a waveform (S,) float32 at 16 kHz with its mean removed. Raises InputError for anything but `Audio`."""
    if isinstance(audio, bytes):
        return decode_file(audio)
    if isinstance(audio, str | Path):
        return decode_file(_content(str(audio)))
    waveform = _as_array(audio)
    if waveform.ndim != 1 or not len(waveform) or not np.isfinite(waveform).all() or np.abs(waveform).max() > 1:
        raise InputError(
            "expected a waveform of shape (samples,), finite and within [-1, 1] at 16 kHz, found shape"
            f" {waveform.shape}" + (f" and a peak of {np.abs(waveform).max()}" if waveform.size else "")
        )
    return waveform - waveform.mean(dtype=np.float64).astype(np.float32)


def _as_array(audio: object) -> np.ndarray:
    """Return an array or tensor as a float32 array. Raises InputError, with advice on common containers."""
    remedies = {
        dict: "resample its array to 16 kHz and pass that alone",
        tuple: "resample its waveform to 16 kHz and pass that alone",
        list: "convert samples by np.asarray; pass several audios to `scores` or `embed`",
    }
    if isinstance(audio, Tensor) and not audio.is_complex():
        return audio.detach().cpu().float().numpy()
    if isinstance(audio, np.ndarray) and audio.dtype.kind in "fiu":
        return audio.astype(np.float32)
    found = type(audio).__name__
    if isinstance(audio, np.ndarray | Tensor):
        found += f" of {audio.dtype}"
    remedy = next((f"; {text}" for kind, text in remedies.items() if isinstance(audio, kind)), "")
    raise InputError(f"expected a path, an address, bytes, or a waveform as an array or tensor, found {found}{remedy}")


def _content(path: str) -> bytes | Path:
    """Return a local path unchanged, or the bytes at an address."""
    if "://" not in path:
        if not Path(path).is_file():
            raise InputError(f"expected an audio file at {Path(path).absolute()}, found none")
        return Path(path)
    try:
        with fsspec.open(path, "rb") as file:
            return file.read()  # pyright: ignore[reportAttributeAccessIssue]
    except OSError as error:
        raise InputError(f"can't read {path}: {type(error).__name__}: {error}") from error
