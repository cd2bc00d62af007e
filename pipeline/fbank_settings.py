"""Settings of the filterbank. This module does not import PyTorch, because some code only counts frames."""

SAMPLE_RATE_HZ = 16_000
FRAME_LENGTH_MS = 25
FRAME_SHIFT_MS = 10
FRAMES_PER_S = 1000 // FRAME_SHIFT_MS
NUM_MEL_BINS = 128
LOW_FREQ_HZ = 20.0
PREEMPHASIS = 0.97
LOG_FLOOR = 2.0**-23
"""Lower bound of the power before taking the logarithm. This is the machine epsilon of float32, as in Kaldi."""

FRAME_LENGTH = SAMPLE_RATE_HZ * FRAME_LENGTH_MS // 1000
FRAME_SHIFT = SAMPLE_RATE_HZ * FRAME_SHIFT_MS // 1000
FFT_SIZE = 1 << (FRAME_LENGTH - 1).bit_length()

FBANK_SETTINGS: dict[str, int | float | str] = {
    "sample_rate_hz": SAMPLE_RATE_HZ,
    "frame_length_ms": FRAME_LENGTH_MS,
    "frame_shift_ms": FRAME_SHIFT_MS,
    "fft_size": FFT_SIZE,
    "num_mel_bins": NUM_MEL_BINS,
    "low_freq_hz": LOW_FREQ_HZ,
    "preemphasis": PREEMPHASIS,
    "log_floor": LOG_FLOOR,
    "window": "hann",
    "log": "natural",
}
"""All settings that affect the features. They are part of the shards' fingerprint."""


def num_frames_of(num_samples: int) -> int:
    """Return the number of full frames in a waveform. Samples after the last full frame are ignored."""
    if num_samples < FRAME_LENGTH:
        return 0
    return 1 + (num_samples - FRAME_LENGTH) // FRAME_SHIFT
