"""Measure a clip's levels, silence, bandwidth and fingerprint.

Peak, clipping and DC describe the media. All other measures describe the clip as the model hears it: mono, at 16 kHz
and without DC. Letters: S samples, P pieces of 100 ms, F frequencies, T frames, M mel bins.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor
from torchaudio.compliance.kaldi import get_mel_banks

from pipeline.audio.levels import MediaAudio
from pipeline.fbank_settings import (
    FFT_SIZE,
    FRAME_LENGTH,
    FRAME_SHIFT,
    LOG_FLOOR,
    LOW_FREQ_HZ,
    NUM_MEL_BINS,
    PREEMPHASIS,
    SAMPLE_RATE_HZ,
)
from pipeline.measures.clip_measures import MEDIA_NAMES, Measures
from pipeline.measures.fingerprint import fingerprint_of

PIECE = SAMPLE_RATE_HZ // 10
PIECES_PER_BLOCK = 4
"""Number of 100 ms pieces per loudness block. Blocks are 400 ms long and start every 100 ms."""
FLANK = 2048 - PIECE
"""Number of samples that neighbouring pieces share in a crossfade. With them, the length of the transform is a power of
two."""
FRAMES_PER_PIECE = PIECE // FRAME_SHIFT
MIN_RMS_DB, MIN_LUFS = -120.0, -70.0
MAX_SILENT_LOG = math.log(100 * LOG_FLOOR)
"""A mel bin counts as silent up to this value. Noise below −90 dBFS, such as 16-bit dither, stays below it."""
SPECTRUM_DEPTH_DB = 40.0
"""Mel bins within this range below the loudest bin count towards the bandwidth. Softer content may be an artefact
of resampling, coding or clipping."""


def measure_clip(waveform: np.ndarray, fbank_TM: np.ndarray, media: MediaAudio | None = None) -> Measures:
    """Measure a clip from its float32 waveform (S,), its float16 fbank (T, 128) and the properties of its media."""
    log_TM = _widened(fbank_TM)
    silence, bandwidth_hz = _measure_spectrum(log_TM)
    fingerprint = fingerprint_of(log_TM.numpy())  # while the fbank is in the CPU cache
    return Measures(
        rms_db=_decibels(float(np.dot(waveform, waveform)) / len(waveform)),
        loudness_lufs=_gated_loudness(_weighted_powers(torch.from_numpy(waveform)).numpy()),
        silence=silence,
        bandwidth_hz=bandwidth_hz,
        fingerprint=fingerprint,
        **{name: getattr(media, name) for name in MEDIA_NAMES if media},
    )


def measure_stored(fbank_TM: np.ndarray, flac: bytes) -> Measures:
    """Measure a clip from its stored fbank and FLAC. `flac` is empty if the shard has no audio."""
    if not flac:
        return measure_fbank(fbank_TM)
    from pipeline.audio.decode import decode_flac  # import PyAV only if there is audio

    return measure_clip(decode_flac(flac).astype(np.float32) / 32768, fbank_TM)


def measure_fbank(fbank_TM: np.ndarray) -> Measures:
    """Estimate a clip's measures from its float16 fbank (T, 128).

    RMS and loudness are usually within 0.5 dB of the values that the waveform would give. They are less accurate if
    most of the energy is below 60 Hz.
    """
    log_TM = _widened(fbank_TM)
    silence, bandwidth_hz = _measure_spectrum(log_TM)
    # Subtract the floor, which represents zero energy. Otherwise, the large weights of the lowest bins would turn it
    # into −80 dBFS.
    powers_T, weighted_T = (((log_TM.exp() - LOG_FLOOR).clamp(min=0)) @ _power_weights()).numpy().T
    pieces = np.array_split(weighted_T, max(len(weighted_T) // FRAMES_PER_PIECE, 1))
    return Measures(
        rms_db=_decibels(float(powers_T.mean())),
        loudness_lufs=_gated_loudness(np.array([piece.mean() for piece in pieces])),
        silence=silence,
        bandwidth_hz=bandwidth_hz,
        fingerprint=fingerprint_of(log_TM.numpy()),
    )


def _widened(fbank_TM: np.ndarray) -> Tensor:
    # Copy read-only arrays, such as views of a shard's bytes, because PyTorch warns about them.
    return torch.from_numpy(np.require(fbank_TM, requirements="W")).float()


def _decibels(power: float) -> float:
    return max(10 * math.log10(power), MIN_RMS_DB) if power > 0 else MIN_RMS_DB


def _measure_spectrum(log_TM: Tensor) -> tuple[float, float | None]:
    """Return the share of silent frames, and the bandwidth of all other frames, or None if there are none."""
    is_silent_T = log_TM.amax(1).numpy() < MAX_SILENT_LOG
    silence = float(is_silent_T.mean())
    if silence == 1:
        return silence, None
    # Average the logarithms. In an average of energies, the broadband clicks of clipped peaks would dominate.
    spectrum_M = (log_TM[torch.from_numpy(~is_silent_T)] if silence else log_TM).mean(0).numpy()
    lowest = max(float(spectrum_M.max()) - SPECTRUM_DEPTH_DB * math.log(10) / 10, math.log(10 * LOG_FLOOR))
    return silence, float(_mel_freqs_hz()[np.flatnonzero(spectrum_M >= lowest)[-1]])


def _gated_loudness(powers_P: np.ndarray) -> float:
    """Compute the loudness in LUFS, gated per EBU R128, from the K-weighted powers (P,) of 100 ms pieces."""
    blocks = powers_P
    if len(powers_P) >= PIECES_PER_BLOCK:  # a shorter clip counts as one block
        blocks = np.convolve(powers_P, np.full(PIECES_PER_BLOCK, 1 / PIECES_PER_BLOCK), mode="valid")
    loud = blocks[blocks > 10 ** ((MIN_LUFS + 0.691) / 10)]
    if not len(loud):
        return MIN_LUFS
    loudest = loud[loud > loud.mean() / 10]  # the relative gate is 10 LU below the mean
    return 10 * math.log10(loudest.mean()) - 0.691


def _weighted_powers(waveform_S: Tensor) -> Tensor:
    """Return the K-weighted mean square of each complete 100 ms piece (P,).

    Weighting the spectra takes a third of the time that applying the two filters would take. Neighbouring pieces are
    crossfaded, and the squares of the fades add up to 1. With hard edges, low-frequency energy that the high-pass
    filter should remove would leak to other frequencies.
    """
    window, weights_F = _piece_tables()
    num_pieces = len(waveform_S) // PIECE
    padded_S = torch.nn.functional.pad(waveform_S, (FLANK // 2, FLANK // 2 + PIECE))
    pieces_PS = padded_S.unfold(0, PIECE + FLANK, PIECE)[: max(num_pieces, 1)]
    spectra_PF = torch.view_as_real(torch.fft.rfft(pieces_PS * window)).flatten(1)
    return spectra_PF.square_() @ weights_F


@lru_cache(maxsize=1)
def _piece_tables() -> tuple[Tensor, Tensor]:
    """Return the window of a piece, and the weights for the real and imaginary parts of each frequency."""
    length = PIECE + FLANK
    fade = np.sin(np.pi / 2 * (np.arange(FLANK) + 0.5) / FLANK)
    window = np.concatenate([fade, np.ones(PIECE - FLANK), fade[::-1]])
    # Multiply by 2 to count both halves of the spectrum, as Parseval's theorem requires.
    weights_F = 2 * _k_weighting(np.fft.rfftfreq(length, 1 / SAMPLE_RATE_HZ)) / (length * PIECE)
    return torch.from_numpy(window).float(), torch.from_numpy(weights_F.repeat(2)).float()


def _k_weighting(freqs_hz: np.ndarray) -> np.ndarray:
    """Return the power gain of the two filters of ITU-R BS.1770, which are specified at 48 kHz."""
    z = np.exp(-2j * np.pi * freqs_hz / 48_000)
    shelf = np.polyval([1.19839281085285, -2.69169618940638, 1.53512485958697], z) / np.polyval(
        [0.73248077421585, -1.69065929318241, 1], z
    )
    high_pass = np.polyval([1, -2, 1], z) / np.polyval([0.99007225036621, -1.99004745483398, 1], z)
    return np.abs(shelf * high_pass) ** 2


@lru_cache(maxsize=1)
def _power_weights() -> Tensor:
    """Return weights (M, 2) that convert mel energies to the power of a frame and to its K-weighted power."""
    bank, _ = get_mel_banks(NUM_MEL_BINS, FFT_SIZE, SAMPLE_RATE_HZ, LOW_FREQ_HZ, 0.0, 100.0, -500.0, 1.0)
    bank_MF = bank.double().numpy()[:, 1:]
    freqs_hz = np.fft.rfftfreq(FFT_SIZE, 1 / SAMPLE_RATE_HZ)[1 : FFT_SIZE // 2]
    bank_MF = bank_MF[:, : len(freqs_hz)]
    window_power = np.square(np.hanning(FRAME_LENGTH)).sum()
    emphasis = np.abs(1 - PREEMPHASIS * np.exp(-2j * np.pi * freqs_hz / SAMPLE_RATE_HZ)) ** 2
    columns = []
    for gain in (np.ones(len(freqs_hz)), _k_weighting(freqs_hz)):
        wanted = 2 * gain / (FFT_SIZE * window_power * emphasis)
        columns.append(nnls(bank_MF.T / wanted[:, None], np.ones(len(freqs_hz)))[0])
    return torch.from_numpy(np.stack(columns, 1)).float()


@lru_cache(maxsize=1)
def _mel_freqs_hz() -> np.ndarray:
    """Return the centre frequency of each mel bin (M,). For the last bin, return its upper end instead."""
    low, high = (1127 * np.log1p(hz / 700) for hz in (LOW_FREQ_HZ, SAMPLE_RATE_HZ / 2))
    centres = 700 * np.expm1(np.linspace(low, high, NUM_MEL_BINS + 2)[1:-1] / 1127)
    return np.append(centres[:-1], SAMPLE_RATE_HZ / 2)
