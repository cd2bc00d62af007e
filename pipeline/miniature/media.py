"""Mix and encode the sounds of a clip, and damage the file if its plan has a fault."""

import zlib
from pathlib import Path

import av
import numpy as np

from pipeline.miniature.classes import CLASSES
from pipeline.miniature.plan import Fault, PlannedClip

MAKERS = {sound.mid: sound.make for sound in CLASSES}
FADE_MS = 30
FULL_SCALE = 32767
HEADROOM = 0.98

CODECS = {"webm": "libopus", "m4a": "aac", "mp3": "libmp3lame", "flac": "flac", "wav": "pcm_s16le"}
MUXERS = {"webm": "webm", "m4a": "ipod", "mp3": "mp3", "flac": "flac", "wav": "wav"}
QUICK = {
    "libopus": {"compression_level": "0"},
    "aac": {"aac_coder": "fast"},
    "libmp3lame": {"compression_level": "9"},
}
"""The fastest settings of each encoder."""


def make_media(clip: PlannedClip, folder: Path) -> None:
    """Write the clip's media file, if it has one. The same clip always gives the same bytes."""
    if clip.file_name is None:
        return
    path = folder / clip.file_name
    if clip.fault == Fault.NO_AUDIO:
        _encode_silent_video(path)
        return
    _encode(clip, mix(clip), path)
    if clip.fault == Fault.TRUNCATED:
        middle_ms = (clip.segment.start_ms + clip.segment.end_ms) // 2
        _truncate(path, middle_ms / 1000)


def mix(clip: PlannedClip) -> np.ndarray:
    """Return the clip's float32 waveform (num_channels, S) in [-1, 1]."""
    rng = np.random.default_rng(zlib.crc32(clip.segment.ytid.encode()))
    num_samples = clip.duration_ms * clip.rate_hz // 1000
    out = rng.standard_normal((clip.num_channels, num_samples), dtype=np.float32)
    out *= np.float32(10 ** (clip.floor_db / 20))
    for sound in clip.sounds:
        start, end = (ms * clip.rate_hz // 1000 for ms in (sound.start_ms, sound.end_ms))
        wave = MAKERS[sound.mid](rng, end - start, clip.rate_hz)
        peak = np.abs(wave).max()
        if peak > 0:
            wave *= np.float32(10 ** (sound.level_db / 20)) / peak
        _fade(wave, FADE_MS * clip.rate_hz // 1000)
        # The gains of the two channels add up to two, so that the mono mix keeps its level.
        gains = [1.0] if clip.num_channels == 1 else [2 - 2 * sound.pan, 2 * sound.pan]
        out[:, start:end] += np.outer(np.array(gains, np.float32), wave)
    return out * min(1.0, HEADROOM / np.abs(out).max())


def _fade(wave: np.ndarray, length: int) -> None:
    slope = np.linspace(0, 1, length, dtype=np.float32)
    wave[:length] *= slope
    wave[-length:] *= slope[::-1]


def _encode(clip: PlannedClip, waveform: np.ndarray, path: Path) -> None:
    codec = CODECS[clip.format]
    options = QUICK.get(codec, {}) | {"b": str((24_000 + clip.rate_hz) * (1 + clip.num_channels) // 2)}
    layout = "mono" if clip.num_channels == 1 else "stereo"
    # `bitexact` omits metadata that differ between runs. `faststart` puts the index first, as is usual on the web.
    muxing = {"fflags": "+bitexact"} | ({"movflags": "+faststart"} if clip.format == "m4a" else {})
    with av.open(path, "w", format=MUXERS[clip.format], options=muxing) as container:
        stream = container.add_stream(codec, rate=clip.rate_hz, layout=layout, options=options)
        assert isinstance(stream, av.AudioStream)
        stream.codec_context.thread_count = 1
        packed = (waveform.T * FULL_SCALE).astype(np.int16).reshape(1, -1)
        # Encode everything as a single frame. The encoder then runs without the GIL, so threads can encode
        # concurrently.
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
        # Set a timestamp. Without it, the encoder's delay would count as sound.
        frame.sample_rate, frame.pts = clip.rate_hz, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _encode_silent_video(path: Path) -> None:
    with av.open(path, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.thread_count = 1
        for i in range(60):
            picture = np.full((48, 64, 3), 4 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _truncate(path: Path, time_s: float) -> None:
    """Truncate the file before the first packet that starts at or after the given time."""
    with av.open(path) as container:
        positions = (p.pos for p in container.demux(audio=0) if p.pts is not None and p.pts * p.time_base >= time_s)
        length = next(positions)
    with path.open("r+b") as file:
        file.truncate(length)
