"""Tag audio with a trained model: ranked classes, scores, embeddings and a timeline."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ast_model.data.augment import normalise
from ast_model.evaluation.calibration import Calibration
from ast_model.losses import scores_from_logits
from ast_model.model import AST
from ast_model.pretrained.load import fit_weights
from ast_model.pretrained.metadata import ModelMetadata, check_labels, read_metadata
from ast_model.pretrained.weight_files import read_weights
from ast_model.pretrained.weight_sources import find_weights
from pipeline.audio.decode import decode_file
from pipeline.errors import ConfigError, InputError
from pipeline.fbank import compute_fbank
from pipeline.fbank_settings import FRAMES_PER_S, NUM_MEL_BINS, SAMPLE_RATE_HZ, num_frames_of
from pipeline.labels import Labels, read_labels

Audio = str | Path | bytes | np.ndarray | Tensor
"""A path or address, the bytes of a media file, or a waveform (S,) float in [-1, 1] at 16 kHz."""
Compute = Callable[[Tensor], Tensor]

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
        self, model: AST, metadata: ModelMetadata, device: str | torch.device | None = None, batch_size: int = 8
    ):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.metadata = metadata
        self.batch_size = batch_size
        self.calibration: Calibration | None = None

    @classmethod
    def load(
        cls,
        source: str | Path,
        labels: str | Path | Labels | None = None,
        device: str | torch.device | None = None,
        calibrated: bool = False,
    ) -> "Tagger":
        """Load a checkpoint's folder, a Hugging Face folder or hub name, or an official `.pth`.

        calibrated: return probabilities, with the `calibration.json` that jobs/calibrate.py stored beside the weights.
        labels: a `class_labels_indices.csv`. An official `.pth` needs it; otherwise it must equal the checkpoint's
        labels. Raises WeightsError, InputError or MismatchError.
        """
        if isinstance(labels, str | Path):
            labels = read_labels(str(labels))
        file = read_weights(source)
        model = fit_weights(file, source)
        tagger = cls(model, read_metadata(file, model.config, labels), device)
        if calibrated:
            tagger.calibration = _read_calibration(source, tagger.labels)
        return tagger

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.metadata.labels)

    def tag(self, audio: Audio, top_k: int = 5) -> list[tuple[str, float]]:
        """Return the best classes with their scores, best first."""
        scores_C = self.scores([audio])[0]
        best = np.argsort(-scores_C, kind="stable")[:top_k]
        return [(self.labels[index], float(scores_C[index])) for index in best]

    def present(self, audio: Audio) -> list[tuple[str, float]]:
        """Return the classes above their calibrated thresholds, best first. Needs `calibrated=True`."""
        if self.calibration is None:
            raise ConfigError("expected a tagger with thresholds: load it with calibrated=True")
        thresholds = dict(zip(self.labels, self.calibration.thresholds, strict=True))
        return [(label, score) for label, score in self.tag(audio, len(self.labels)) if score >= thresholds[label]]

    def scores(self, audios: Iterable[Audio]) -> np.ndarray:
        """Return scores (N, C) float32 in the order of `labels`.

        Longer audio gets the mean over its windows, weighted by the filled share of each.
        """
        return self.calibrate(self._pool(audios, self._score))

    def scores_of_fbank(self, fbank_TM: np.ndarray) -> np.ndarray:
        """Return scores (C,) of features (T, 128) from `compute_fbank`, neither padded nor normalised."""
        if fbank_TM.ndim != 2 or fbank_TM.shape[1] != NUM_MEL_BINS or not len(fbank_TM):
            raise InputError(f"expected features of shape (frames, {NUM_MEL_BINS}), found {fbank_TM.shape}")
        frames_TM = torch.from_numpy(fbank_TM.astype(np.float32)).to(self.device)
        return self.calibrate(self._pool_fbank(frames_TM, self._score)[None])[0]

    def embed(self, audios: Iterable[Audio]) -> np.ndarray:
        """Return embeddings (N, D) float32 from `AST.embed`, pooled over windows like scores."""
        return self._pool(audios, self.model.embed)

    def embed_windows(self, fbank_TM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return starts in seconds (W,) and embeddings (W, D) float32 of windows of the model's length.

        fbank_TM: features from `fbank`.
        """
        window = self.model.config.num_frames
        starts = window_starts(len(fbank_TM), window, window)
        frames_TM = torch.from_numpy(fbank_TM).to(self.device)
        return np.asarray(starts) / FRAMES_PER_S, self._run(frames_TM, starts, window, self.model.embed)

    def run_windows(self, windows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return uncalibrated scores (W, C) and embeddings (W, D) of windows (T, 128) in one batch.

        Windows are intervals of features from `fbank`, at most as long as the model's, possibly of several sounds.
        """
        with torch.inference_mode():
            embedding_BD = self.model.embed(self._pad([torch.from_numpy(window_TM) for window_TM in windows])).float()
            scores_BC = scores_from_logits(self.model.head(embedding_BD), self.metadata.loss)
        return scores_BC.cpu().numpy(), embedding_BD.cpu().numpy()

    def timeline(self, audio: Audio, window_s: float | None = None, hop_s: float | None = None) -> pd.DataFrame:
        """Score windows of `window_s` (default: the model's length) every `hop_s` (default: half a window).

        Returns a table with a row per window, indexed by `start_s`, and a column per class.
        """
        return self.timeline_of_fbank(self._fbank(audio), window_s, hop_s)

    def timeline_of_fbank(
        self, fbank_TM: np.ndarray | Tensor, window_s: float | None = None, hop_s: float | None = None
    ) -> pd.DataFrame:
        """Return the `timeline` of features (T, 128) from `compute_fbank`."""
        window = self.num_window_frames(window_s)
        hop = self.num_hop_frames(window, hop_s)
        fbank_TM = torch.as_tensor(fbank_TM, dtype=torch.float32, device=self.device)
        starts = window_starts(len(fbank_TM), window, hop)
        scores = self.calibrate(self._run(fbank_TM, starts, window, self._score))
        index = pd.Index(np.asarray(starts) / FRAMES_PER_S, name="start_s")
        return pd.DataFrame(scores, index=index, columns=pd.Index(self.labels))

    def fbank(self, audio: Audio) -> np.ndarray:
        """Return the features (T, 128) float32 of audio, neither padded nor normalised."""
        return self._fbank(audio).cpu().numpy()

    def _score(self, fbank_BTM: Tensor) -> Tensor:
        return scores_from_logits(self.model(fbank_BTM), self.metadata.loss)

    def calibrate(self, scores_NC: np.ndarray) -> np.ndarray:
        """Convert scores to probabilities if loaded with `calibrated=True`; otherwise return them unchanged."""
        return scores_NC if self.calibration is None else self.calibration.apply(scores_NC)

    def _pool(self, audios: Iterable[Audio], compute: Compute) -> np.ndarray:
        if isinstance(audios, str | Path | bytes) or (isinstance(audios, np.ndarray | Tensor) and audios.ndim == 1):
            raise InputError(f"expected several audios, found a single {type(audios).__name__}; pass a list")
        rows = [self._pool_fbank(self._fbank(audio), compute) for audio in audios]
        if not rows:
            raise InputError("expected at least one audio, found none")
        return np.stack(rows)

    def _pool_fbank(self, fbank_TM: Tensor, compute: Compute) -> np.ndarray:
        window = self.model.config.num_frames
        starts = window_starts(len(fbank_TM), window, window)
        filled = [min(window, len(fbank_TM) - start) for start in starts]
        return np.average(self._run(fbank_TM, starts, window, compute), axis=0, weights=filled).astype(np.float32)

    def _fbank(self, audio: Audio) -> Tensor:
        """Return unnormalised features (T, M) on the device."""
        return compute_fbank(torch.from_numpy(read_audio(audio)).to(self.device))

    def _run(self, fbank_TM: Tensor, starts: Sequence[int], window: int, compute: Compute) -> np.ndarray:
        with torch.inference_mode():
            parts = [compute(batch).float().cpu().numpy() for batch in self._batches(fbank_TM, starts, window)]
        return np.concatenate(parts)

    def _batches(self, fbank_TM: Tensor, starts: Sequence[int], window: int) -> Iterator[Tensor]:
        """Yield windows (B, T, M), padded and normalised."""
        for first in range(0, len(starts), self.batch_size):
            yield self._pad([fbank_TM[start : start + window] for start in starts[first : first + self.batch_size]])

    def _pad(self, windows: Sequence[Tensor]) -> Tensor:
        """Pad windows (T, M) with 0 to the model's length, then normalise, as in training → (B, T, M)."""
        shape = (len(windows), self.model.config.num_frames, NUM_MEL_BINS)
        fbank_BTM = torch.zeros(shape, device=self.device)
        for padded_TM, window_TM in zip(fbank_BTM, windows, strict=True):
            padded_TM[: len(window_TM)] = window_TM
        return normalise(fbank_BTM, self.metadata.mean, self.metadata.std)

    def num_window_frames(self, window_s: float | None) -> int:
        """Return the frames of a window of `window_s` (default: the model's length). Raises ConfigError."""
        longest = self.model.config.num_frames
        if window_s is None:
            return longest
        window = num_frames_of(round(window_s * SAMPLE_RATE_HZ))
        if not 1 <= window <= longest:
            raise ConfigError(
                f"expected window_s between 0.025 and the model's {longest / FRAMES_PER_S} s, found {window_s}"
            )
        return window

    def num_hop_frames(self, window: int, hop_s: float | None) -> int:
        """Return the frames of `hop_s` (default: half a window). Raises ConfigError."""
        hop = window // 2 if hop_s is None else round(hop_s * FRAMES_PER_S)
        if hop < 1:
            raise ConfigError(f"hop_s must be at least {1 / FRAMES_PER_S}, found {hop_s}")
        return hop


def _read_calibration(source: str | Path, labels: Sequence[str]) -> Calibration:
    path = Path(source).expanduser()
    file = find_weights(path).parent / CALIBRATION if path.exists() else path / CALIBRATION
    try:
        calibration = Calibration.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"expected a calibration at {file} ({error}); create one with jobs/calibrate.py") from error
    check_labels(calibration.labels, labels, "the model", "its calibration")
    return calibration


def window_starts(num_frames: int, window: int, hop: int) -> list[int]:
    """Return the first frames of windows. Only the last window reaches the end."""
    return list(range(0, min(max(num_frames - window, 0) + hop, num_frames), hop))


def stream_windows(fbanks: Iterable[Tensor], window: int, hop: int) -> Iterator[tuple[int, Tensor]]:
    """Cut streamed features (t, M) into windows like `window_starts`; yield first frame and frames of each."""
    buffer_TM = torch.zeros(0, NUM_MEL_BINS)
    first = start = 0  # first frame of the buffer; first frame of the next window
    num_covered = num_frames = 0
    for fbank_TM in fbanks:
        buffer_TM = torch.cat([buffer_TM, fbank_TM])
        num_frames = first + len(buffer_TM)
        while start + window <= num_frames:
            yield start, buffer_TM[start - first : start - first + window]
            num_covered, start = start + window, start + hop
        num_used = min(start - first, len(buffer_TM))
        first, buffer_TM = first + num_used, buffer_TM[num_used:]
    if num_covered < num_frames and start < num_frames:
        yield start, buffer_TM[start - first :]


def read_audio(audio: Audio) -> np.ndarray:
    """Return a waveform (S,) float32 at 16 kHz without its mean. Raises InputError for other content."""
    if isinstance(audio, bytes):
        return decode_file(audio)
    if isinstance(audio, str | Path):
        return decode_file(_content(str(audio)))
    waveform = np.asarray(audio, dtype=np.float32)
    if waveform.ndim != 1 or not len(waveform) or not np.isfinite(waveform).all() or np.abs(waveform).max() > 1:
        raise InputError(
            "expected a waveform of shape (samples,), finite and within [-1, 1] at 16 kHz, found shape"
            f" {waveform.shape}" + (f" and a peak of {np.abs(waveform).max()}" if waveform.size else "")
        )
    return waveform - waveform.mean(dtype=np.float64).astype(np.float32)


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
