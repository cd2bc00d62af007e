"""Recorded sounds, and what others make of them: another codec, rate, level and start. For tests and benchmarks."""

import io
import random
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
from av.audio.stream import AudioStream

from pipeline.audio.decode import decode_file
from pipeline.errors import InputError
from pipeline.fbank import compute_fbank
from pipeline.fbank_settings import SAMPLE_RATE_HZ
from pipeline.shards.format import FBANK_DTYPE
from scripts.recorded_sounds import PACKAGES, find_sounds

CLIP_S, MAX_SHIFT_S, MAX_SOUND_S = 10.0, 0.5, 3.0
SCENE_SOUNDS = 4
ENCODINGS = [
    ("libmp3lame", "mp3", 44_100, 64_000),
    ("libmp3lame", "mp3", 22_050, 32_000),
    ("libopus", "ogg", 48_000, 24_000),
    ("aac", "adts", 44_100, 64_000),
    ("pcm_mulaw", "wav", 8_000, 64_000),
]
"""Codec, container, rate in Hz and bits per second; the last is a telephone's."""


def fbank_of(waveform_S: np.ndarray) -> np.ndarray:
    """Return a fbank (T, 128) as shards hold it."""
    return compute_fbank(torch.from_numpy(waveform_S)).numpy().astype(FBANK_DTYPE)


def reencode(waveform_S: np.ndarray, codec: str, container: str, rate_hz: int, bit_rate: int) -> np.ndarray:
    """Return a waveform (S,) at 16 kHz after its way through a codec at another rate."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate_hz)
        assert isinstance(stream, AudioStream)
        stream.layout, stream.bit_rate = "mono", bit_rate
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform_S[None], np.float32), "fltp", "mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        resampler = av.AudioResampler(stream.format, "mono", rate_hz, frame_size=stream.frame_size or None)
        for each in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(each))
        output.mux(stream.encode(None))
    return decode_file(file.getvalue())


def recorded_sounds(prefix: Path = Path("/usr/share"), max_per_package: int = 200) -> list[np.ndarray]:
    """Return waveforms (S,) of what is installed of the distribution's packages of sounds, the same ones each time."""
    found = []
    for package in PACKAGES:
        sounds = find_sounds(package, prefix, 1)
        for sound in random.Random(0).sample(sounds, min(len(sounds), max_per_package)):
            try:
                found.append(decode_file(sound.path))
            except InputError:  # a few are damaged, or not long enough
                continue
    return found


def make_scenes(sounds: Sequence[np.ndarray], num_scenes: int, seed: int = 0) -> list[np.ndarray]:
    """Return scenes of `CLIP_S` and the room to shift them: four sounds each, over a background of noise.

    Scenes that only sound alike have the same sounds, at places that are farther apart than a clip may be shifted.
    """
    chance = np.random.default_rng(seed)
    num_uses = -(-num_scenes * SCENE_SOUNDS // len(sounds))
    uses = [(sound, use) for use in range(num_uses) for sound in chance.permutation(len(sounds))]
    scenes = []
    for number in range(num_scenes):
        scene_S = np.zeros(round((CLIP_S + 2 * MAX_SHIFT_S) * SAMPLE_RATE_HZ), np.float32)
        for sound, use in uses[number * SCENE_SOUNDS :][:SCENE_SOUNDS]:
            sound_S = sounds[sound][: round(MAX_SOUND_S * SAMPLE_RATE_HZ)]
            start = round(((sound + use) * 1.6 % 8 + chance.uniform(0, 0.3)) * SAMPLE_RATE_HZ)
            scene_S[start : start + len(sound_S)] += sound_S * chance.uniform(0.3, 1.0)
        noise_S = chance.standard_normal(len(scene_S)).astype(np.float32)
        scene_S += noise_S * 10 ** chance.uniform(-4, -2)
        scenes.append(scene_S * np.float32(0.7 / np.abs(scene_S).max()))
    return scenes


def cut(scene_S: np.ndarray, shift_s: float = 0.0) -> np.ndarray:
    """Return the clip of a scene that starts `shift_s` after its middle one."""
    start = round((MAX_SHIFT_S + shift_s) * SAMPLE_RATE_HZ)
    return scene_S[start : start + round(CLIP_S * SAMPLE_RATE_HZ)]


def vary(clip_S: np.ndarray, number: int, chance: np.random.Generator) -> np.ndarray:
    """Return a clip by another codec and rate, and at another level."""
    gain = np.float32(10 ** (chance.uniform(-20, 3) / 20))
    return reencode(clip_S * gain, *ENCODINGS[number % len(ENCODINGS)])
