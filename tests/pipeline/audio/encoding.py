"""Encode synthetic sounds."""

from collections.abc import Mapping
from fractions import Fraction
from io import BytesIO
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame


def encode(
    samples: np.ndarray,
    rate: int,
    container: str = "wav",
    codec: str = "pcm_s16le",
    start_s: float = 0,
    options: Mapping[str, str] | None = None,
) -> bytes:
    """Encode (S,) or (C, S) floats; `options` are for the container and the encoder."""
    samples = np.atleast_2d(samples).astype(np.float32)
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(samples)]
    file = BytesIO()
    options = dict(options or {})
    of_codec = {name: options.pop(name) for name in ("flags", "global_quality") if name in options}
    with av.open(file, "w", format=container, options=options) as output:
        of_codec["strict"] = "experimental"  # for FFmpeg's own Vorbis
        stream: Any = output.add_stream(codec, rate=rate, layout=layout, options=of_codec)
        frame = AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        converter = av.AudioResampler(stream.format, layout, rate, stream.frame_size or 1024)
        for part in [*converter.resample(frame), *converter.resample(None)]:
            part.pts = (part.pts or 0) + round(start_s * rate)
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return file.getvalue()


def tone(freq_hz: float, rate: int, seconds: float, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * freq_hz * np.arange(round(rate * seconds)) / rate)
