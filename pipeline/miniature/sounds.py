"""Synthesize random sounds that resemble some of AudioSet's classes.

Each function takes a random generator, the number of samples and the sample rate in Hz, and returns a float32 waveform
(S,) with a peak of about 1. Most of the energy is below 4 kHz, so that media with a sample rate of 8 kHz preserve it.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.random import Generator

Wave = np.ndarray
TAU = np.float32(2 * np.pi)
MAX_TONE_HZ = 3400.0


def times(num_samples: int, rate: int) -> Wave:
    """Return the time of each sample in seconds."""
    return np.arange(num_samples, dtype=np.float32) / np.float32(rate)


def log_uniform(rng: Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def tone(frequency_hz: float, num_samples: int, rate: int) -> Wave:
    # Wrap the phase in double precision. With float32, long tones would be out of tune.
    turns = np.arange(num_samples) * (frequency_hz / rate)
    return np.sin(TAU * (turns % 1.0).astype(np.float32))


def swept_tone(frequency_hz: Wave, rate: int) -> Wave:
    """Return a tone, given its frequency at each sample."""
    turns = np.cumsum(frequency_hz, dtype=np.float64) / rate
    return np.sin(TAU * (turns % 1.0).astype(np.float32))


def filtered_noise(rng: Generator, num_samples: int, rate: int, gain: Callable[[Wave], Wave]) -> Wave:
    """Return noise with a shaped spectrum. gain: function that maps frequencies in Hz to factors."""
    # Pad to a power of two, because an FFT is many times slower if its length has large prime factors.
    padded = 1 << (num_samples - 1).bit_length()
    white = rng.standard_normal(padded, dtype=np.float32)
    frequencies_hz = np.fft.rfftfreq(padded, 1 / rate).astype(np.float32)
    return np.fft.irfft(np.fft.rfft(white) * gain(frequencies_hz), padded)[:num_samples].astype(np.float32)


def placed(bursts: list[tuple[float, Wave]], num_samples: int, rate: int) -> Wave:
    """Return silence to which the bursts are added at their start times in seconds."""
    out = np.zeros(num_samples, np.float32)
    for start_s, burst in bursts:
        start = round(start_s * rate)
        end = min(num_samples, start + len(burst))
        out[start:end] += burst[: end - start]
    return out


def onsets(num_samples: int, rate: int, period_s: Callable[[], float]) -> list[float]:
    """Return start times in seconds. Successive times are one period apart."""
    starts, now_s = [], 0.0
    while now_s < num_samples / rate:
        starts.append(now_s)
        now_s += period_s()
    return starts


def gate(wave: Wave, rate: int, ramp_s: float = 0.005) -> Wave:
    """Fade a waveform in and out, in place."""
    ramp = min(round(ramp_s * rate), len(wave) // 2)
    if ramp:
        slope = np.linspace(0, 1, ramp, dtype=np.float32)
        wave[:ramp] *= slope
        wave[-ramp:] *= slope[::-1]
    return wave


def dtmf(rng: Generator, num_samples: int, rate: int) -> Wave:
    on_s, off_s = rng.uniform(0.08, 0.2), rng.uniform(0.06, 0.2)

    def key() -> Wave:
        low_hz, high_hz = rng.choice([697, 770, 852, 941]), rng.choice([1209, 1336, 1477])
        length = round(on_s * rate)
        return gate(tone(low_hz, length, rate) + tone(high_hz, length, rate), rate)

    return placed([(at, key()) for at in onsets(num_samples, rate, lambda: on_s + off_s)], num_samples, rate)


def siren(rng: Generator, num_samples: int, rate: int) -> Wave:
    low_hz, octaves = rng.uniform(400, 600), rng.uniform(0.8, 1.3)
    wail_hz = 1 / log_uniform(rng, 1.2, 5)
    position = 0.5 - 0.5 * np.cos(TAU * (wail_hz * times(num_samples, rate) + np.float32(rng.random())))
    frequency_hz = low_hz * np.exp2(octaves * position)
    return sum_of(swept_tone(k * frequency_hz, rate) / k for k in (1, 2, 3) if k * low_hz * 2.5 < rate / 2)


def beep(rng: Generator, num_samples: int, rate: int) -> Wave:
    frequency_hz, on_s = log_uniform(rng, 1600, 3200), rng.uniform(0.1, 0.3)
    off_s = rng.uniform(0.1, 0.5)
    partials = [k for k in (1, 2) if k * frequency_hz < 0.45 * rate]
    burst = gate(sum_of(tone(k * frequency_hz, round(on_s * rate), rate) / k for k in partials), rate)
    return placed([(at, burst) for at in onsets(num_samples, rate, lambda: on_s + off_s)], num_samples, rate)


def clicking(rng: Generator, num_samples: int, rate: int) -> Wave:
    period_s, jitter = log_uniform(rng, 0.12, 0.5), rng.uniform(0, 0.4)
    decay_s = rng.uniform(0.003, 0.007)

    def click() -> Wave:
        length = round(8 * decay_s * rate)
        noise = np.diff(rng.standard_normal(length + 1, dtype=np.float32))
        return noise * np.exp(-times(length, rate) / decay_s) * rng.uniform(0.6, 1.0)

    starts = onsets(num_samples, rate, lambda: period_s * rng.uniform(1 - jitter, 1 + jitter))
    return placed([(at, click()) for at in starts], num_samples, rate)


def hum(rng: Generator, num_samples: int, rate: int) -> Wave:
    frequency_hz = log_uniform(rng, 80, 220)
    wave = sum_of(tone(k * frequency_hz, num_samples, rate) * 0.35 ** (k - 1) for k in (1, 2, 3))
    swell_hz, depth = rng.uniform(0.1, 0.6), rng.uniform(0, 0.3)
    return wave * (1 - depth * tone(swell_hz, num_samples, rate))


def silence(rng: Generator, num_samples: int, rate: int) -> Wave:
    return np.zeros(num_samples, np.float32)


def sine_wave(rng: Generator, num_samples: int, rate: int) -> Wave:
    return tone(log_uniform(rng, 300, 1800), num_samples, rate)


def harmonic(rng: Generator, num_samples: int, rate: int) -> Wave:
    frequency_hz, slope = log_uniform(rng, 180, 500), rng.uniform(0.2, 0.6)
    partials = [k for k in range(1, 13) if k * frequency_hz < 0.45 * rate]
    shift = rng.random(len(partials))
    return sum_of(
        np.roll(tone(k * frequency_hz, num_samples, rate), int(s * rate / frequency_hz)) * k**-slope
        for k, s in zip(partials, shift, strict=True)
    )


def chirp_tone(rng: Generator, num_samples: int, rate: int) -> Wave:
    low_hz, high_hz = log_uniform(rng, 250, 700), log_uniform(rng, 1800, MAX_TONE_HZ)
    sweep_s, pause_s = log_uniform(rng, 0.2, 1.5), rng.uniform(0.05, 0.5)
    position = np.linspace(0, 1, round(sweep_s * rate), dtype=np.float32)
    if rng.random() < 0.3:
        position = position[::-1]
    sweep = gate(swept_tone(low_hz * (high_hz / low_hz) ** position, rate), rate)
    starts = onsets(num_samples, rate, lambda: sweep_s + pause_s)
    return placed([(at, sweep) for at in starts], num_samples, rate)


def pulse(rng: Generator, num_samples: int, rate: int) -> Wave:
    period_s, decay_s = log_uniform(rng, 0.35, 1.1), rng.uniform(0.05, 0.12)
    length = round(6 * decay_s * rate)
    # The pitch falls while the thump decays.
    pitch_hz = rng.uniform(60, 110) * (1 + 3 * np.exp(-times(length, rate) / 0.015))
    thump = swept_tone(pitch_hz, rate) * np.exp(-times(length, rate) / decay_s)
    return placed([(at, thump) for at in onsets(num_samples, rate, lambda: period_s)], num_samples, rate)


def static(rng: Generator, num_samples: int, rate: int) -> Wave:
    # Crackle consists of sparse impulses with varying, sometimes large heights, on top of an intermittent hiss.
    crackle = rng.standard_normal(num_samples, dtype=np.float32) ** 3
    crackle[rng.random(num_samples, dtype=np.float32) > rng.uniform(60, 250) / rate] = 0
    hiss = rng.standard_normal(num_samples, dtype=np.float32) * 0.15
    block = round(rng.uniform(0.03, 0.12) * rate)
    levels = (rng.random(num_samples // block + 1) < 0.5).astype(np.float32)
    return crackle + hiss * np.repeat(levels, block)[:num_samples]


def white_noise(rng: Generator, num_samples: int, rate: int) -> Wave:
    return rng.standard_normal(num_samples, dtype=np.float32)


def pink_noise(rng: Generator, num_samples: int, rate: int) -> Wave:
    return filtered_noise(rng, num_samples, rate, lambda hz: np.maximum(hz, 20) ** -0.5)


def throbbing(rng: Generator, num_samples: int, rate: int) -> Wave:
    center_hz, beat_hz = log_uniform(rng, 150, 500), rng.uniform(1.5, 5)
    body = filtered_noise(rng, num_samples, rate, lambda hz: np.exp(-(((hz - center_hz) / center_hz) ** 2) * 3))
    return body * (0.5 - 0.5 * np.cos(TAU * np.float32(beat_hz) * times(num_samples, rate))) ** 2


def vibration(rng: Generator, num_samples: int, rate: int) -> Wave:
    motor_hz, rattle_hz = rng.uniform(140, 220), rng.uniform(18, 30)
    on_s, off_s = rng.uniform(0.4, 1.2), rng.uniform(0.2, 0.6)
    length = round(on_s * rate)
    partials = [k for k in (1, 2, 3, 5, 7, 9, 11) if k * motor_hz < 0.45 * rate]
    buzz = sum_of(tone(k * motor_hz, length, rate) * k**-0.5 for k in partials)
    burst = gate(buzz * (0.55 + 0.45 * tone(rattle_hz, length, rate)), rate)
    return placed([(at, burst) for at in onsets(num_samples, rate, lambda: on_s + off_s)], num_samples, rate)


def sum_of(waves: Iterable[Wave]) -> Wave:
    return np.add.reduce(list(waves))
