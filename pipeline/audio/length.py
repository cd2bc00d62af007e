"""The length of a file's audio: stated in the header, or measured from the packets."""

from io import SEEK_END
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError

from pipeline.audio.container import BrokenMediaError, open_file, open_media

ESTIMATING_FORMATS = ("aac", "ac3", "eac3", "amr")
"""Formats without a stated length. FFmpeg estimates it from the bit rate."""


def is_truncated_riff(content: bytes | Path) -> bool:
    """Return whether a WAV or AVI file is shorter than its header states."""
    # FFmpeg treats the last byte as the end of the audio.
    with open_file(content) as file:
        head = file.read(8)
        num_stated = 8 + int.from_bytes(head[4:], "little")
        return head[:4] == b"RIFF" and num_stated < 1 << 32 and file.seek(0, SEEK_END) < num_stated


def measure_length_ms(content: bytes | Path) -> int:
    """Return the length of a file's audio; 0 without audio or for other files. Raises OSError if it can't be read."""
    try:
        with open_media(content) as container:
            stream = container.streams.best("audio")
            if not isinstance(stream, AudioStream) or stream.time_base is None:
                return 0
            if (end_s := stated_end_s(container, stream)) is not None:
                return int(end_s * 1000)
            # Browsers record WebM without a length, but with timestamps on packets.
            times = [
                packet.pts + (packet.duration or 0) for packet in container.demux(stream) if packet.pts is not None
            ]
            return int((max(times) - (stream.start_time or 0)) * stream.time_base * 1000) if times else 0
    except (BrokenMediaError, FFmpegError, IndexError):  # IndexError: see `Track._packets`
        return 0


def stated_end_s(container: InputContainer, stream: AudioStream) -> float | None:
    """Return the file's end from its header, if stated."""
    if container.format.name in ESTIMATING_FORMATS:
        return None
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is None:
        return None
    # Matroska's duration starts at zero instead of the file's start.
    return (container.duration - max(container.start_time or 0, 0)) / av.time_base
