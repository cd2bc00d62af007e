"""AST's log-mel filterbank, shared by conversion, training and inference.

The features are the same as those of `torchaudio.compliance.kaldi.fbank` with AST's settings. This implementation is
faster because it caches the window and the mel bank, and skips most zeros of the mel bank.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torchaudio.compliance.kaldi import get_mel_banks

from pipeline.errors import InputError
from pipeline.fbank_settings import (
    FFT_SIZE,
    FRAME_LENGTH,
    FRAME_LENGTH_MS,
    FRAME_SHIFT,
    LOG_FLOOR,
    LOW_FREQ_HZ,
    NUM_MEL_BINS,
    PREEMPHASIS,
    SAMPLE_RATE_HZ,
    num_frames_of,
)

NUM_MEL_BLOCKS = 8
"""Number of blocks of neighbouring mel bins. Each block is multiplied only with the narrow range of frequencies that it
covers."""
CHUNK_FRAMES = 256
"""Number of frames per chunk on a CPU. The buffers of one chunk fit in the CPU cache, and the allocator can reuse
them."""


def compute_fbank(waveform: Tensor) -> Tensor:
    """Compute log-mel features without padding or normalisation.

    Converts float32 waveforms (S,) or (B, S) in [-1, 1] at 16 kHz to float32 features (T, 128) or (B, T, 128) on the
    same device, where T is `num_frames_of(S)`. The mean of each frame is removed. If the mean of the whole clip should
    be removed as well, the caller has to do this. Raises InputError if the waveform has another shape or dtype, or is
    shorter than one frame.

    >>> compute_fbank(torch.zeros(16_000)).shape
    torch.Size([98, 128])
    """
    _check(waveform)
    # In lower precision, as inside `torch.autocast`, the features would lose two digits.
    with torch.autocast(waveform.device.type, enabled=False):
        # A GPU is fastest if it processes all frames in one launch. A CPU is fastest if the buffers fit in its cache.
        if waveform.device.type != "cpu":
            return _log_mel(waveform.unfold(-1, FRAME_LENGTH, FRAME_SHIFT))
        if waveform.dim() == 2:
            return torch.stack([_fbank_in_chunks(clip) for clip in waveform])
        return _fbank_in_chunks(waveform)


def stream_fbank(blocks: Iterable[np.ndarray]) -> Iterator[Tensor]:
    """Yield the features (t, 128) for each block (S,) of a waveform. Concatenated, they equal the features of the whole
    waveform."""
    rest_S = torch.zeros(0)
    for block_S in blocks:
        waveform_S = torch.cat([rest_S, torch.from_numpy(block_S)])
        if num_frames := num_frames_of(len(waveform_S)):
            yield compute_fbank(waveform_S)
        # Keep the samples that belong to the next frame.
        rest_S = waveform_S[num_frames * FRAME_SHIFT :]


def _check(waveform: Tensor) -> None:
    if waveform.dtype != torch.float32 or waveform.dim() not in (1, 2):
        raise InputError(
            f"compute_fbank takes float32 of shape (samples,) or (clips, samples), "
            f"got {waveform.dtype} of shape {tuple(waveform.shape)}"
        )
    if waveform.shape[-1] < FRAME_LENGTH:
        raise InputError(
            f"compute_fbank needs at least {FRAME_LENGTH} samples ({FRAME_LENGTH_MS} ms at {SAMPLE_RATE_HZ} Hz), got"
            f" {waveform.shape[-1]}; skip shorter clips"
        )


def _fbank_in_chunks(waveform: Tensor) -> Tensor:
    frames = waveform.unfold(0, FRAME_LENGTH, FRAME_SHIFT)
    return torch.cat([_log_mel(chunk) for chunk in frames.split(CHUNK_FRAMES)])


def _log_mel(frames: Tensor) -> Tensor:
    """Convert samples (..., T, FRAME_LENGTH) to features (..., T, NUM_MEL_BINS)."""
    window, mel_blocks = _tables(frames.device)
    frames = frames - frames.mean(-1, keepdim=True)
    padded = frames.new_zeros(*frames.shape[:-1], FFT_SIZE)
    # Apply pre-emphasis in place: x[i] - 0.97 x[i - 1]. Kaldi uses the first sample as its own predecessor. This makes
    # no difference here, because the window starts with 0.
    padded[..., 1:FRAME_LENGTH] = frames[..., :-1]
    padded[..., :FRAME_LENGTH].mul_(-PREEMPHASIS).add_(frames).mul_(window)
    # This is twice as fast as `abs().square()`, which computes a square root first.
    squares = torch.view_as_real(torch.fft.rfft(padded)).square_()
    power = squares[..., 0] + squares[..., 1]
    energies = [power[..., low:high].to(block.dtype) @ block for low, high, block in mel_blocks]
    return torch.cat(energies, -1).to(frames.dtype).clamp_(min=LOG_FLOOR).log_()


@lru_cache(maxsize=16)
def _tables(device: torch.device) -> tuple[Tensor, list[tuple[int, int, Tensor]]]:
    """Return the window and the mel bank. The bank is a list of blocks (first row, last row + 1, weights).

    Each mel bin covers only a few neighbouring frequencies. Multiplying with the whole bank would spend three quarters
    of the time on zeros. On CUDA the weights are float64, because training may enable TF32, which would reduce the
    precision of float32 products.
    """
    # Leave inference mode, because tensors created in it can never be used to compute gradients.
    with torch.inference_mode(False):
        window = torch.hann_window(FRAME_LENGTH, periodic=False)
        bank, _ = get_mel_banks(NUM_MEL_BINS, FFT_SIZE, SAMPLE_RATE_HZ, LOW_FREQ_HZ, 0.0, 100.0, -500.0, 1.0)
        dtype = torch.float64 if device.type == "cuda" else torch.float32
        blocks = []
        for bins in bank.chunk(NUM_MEL_BLOCKS):
            used = bins.any(0).nonzero()
            low, high = int(used.min()), int(used.max()) + 1
            blocks.append((low, high, bins[:, low:high].T.contiguous().to(device, dtype)))
        return window.to(device), blocks
