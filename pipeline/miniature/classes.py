"""The classes of the miniature, with AudioSet's names and mids in the official order."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.miniature import sounds


@dataclass(frozen=True)
class SoundClass:
    """One of AudioSet's classes and its synthesizer."""

    mid: str
    name: str
    make: Callable[[np.random.Generator, int, int], np.ndarray]
    """The synthesizer. It takes a random generator, the number of samples and the rate in Hz, and returns a float32
    waveform (S,)."""
    train_share: float
    """Share of the training segments that have this label. The shares follow AudioSet's long tail."""
    level_db: tuple[float, float] = (-13.0, -3.0)
    """Range of the peak level. Noises have low levels, so that they do not mask other sounds."""


CLASSES = (
    SoundClass("/m/02c8p", "Telephone dialing, DTMF", sounds.dtmf, 0.035),
    SoundClass("/m/03kmc9", "Siren", sounds.siren, 0.0175),
    SoundClass("/m/02fs_r", "Beep, bleep", sounds.beep, 0.16),
    SoundClass("/m/07qc9xj", "Clicking", sounds.clicking, 0.095),
    SoundClass("/m/07rcgpl", "Hum", sounds.hum, 0.53, (-24.0, -10.0)),
    SoundClass("/m/028v0c", "Silence", sounds.silence, 0.05),
    SoundClass("/m/01v_m0", "Sine wave", sounds.sine_wave, 0.23, (-16.0, -6.0)),
    SoundClass("/m/0b9m1", "Harmonic", sounds.harmonic, 0.13, (-17.0, -6.0)),
    SoundClass("/m/0hdsk", "Chirp tone", sounds.chirp_tone, 0.07, (-17.0, -6.0)),
    SoundClass("/m/07pt_g0", "Pulse", sounds.pulse, 0.06),
    SoundClass("/m/07rgkc5", "Static", sounds.static, 0.11, (-16.0, -6.0)),
    SoundClass("/m/0chx_", "White noise", sounds.white_noise, 0.2, (-34.0, -24.0)),
    SoundClass("/m/0cj0r", "Pink noise", sounds.pink_noise, 0.08, (-28.0, -18.0)),
    SoundClass("/m/07p_0gm", "Throbbing", sounds.throbbing, 0.0275),
    SoundClass("/m/01jwx6", "Vibration", sounds.vibration, 0.0425, (-15.0, -5.0)),
)
SILENCE = "/m/028v0c"
