"""Determine the length of a file's audio from its header or its packets."""

import math
from contextlib import suppress
from io import SEEK_END
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Stream

from pipeline.audio.chain import split_chain
from pipeline.audio.container import BrokenMediaError, open_file, open_media, read_packets

TIMESTAMP_FORMATS = ("mpeg", "mpegts")
"""Formats whose headers give no length. FFmpeg estimates it from timestamps near the end."""
PLACEHOLDERS = ((0x7F000000, 0x80010000), (0xFFFF0000, 0xFFFFFFFF))
"""Sizes that programs write into a header before they know the real size. They are close to the largest signed or
unsigned 32-bit number; SoX uses the smallest."""
MAX_LENGTH_S = 1_000_000
"""Stated lengths above this mean that the length is unknown, such as AVI's 2³⁰ frames."""
ENLARGEMENT = 1.01
"""Factor by which a file is made to look larger. This changes lengths that FFmpeg estimates from the size, but not
stated lengths. MP3's demultiplexer ignores a stated length if the size differs by more than 6 %."""


def is_truncated_riff(content: bytes | Path) -> bool:
    """Return True if a WAV or AVI file is shorter than its header states."""
    # Check the size, because FFmpeg treats the last byte as the end of the audio.
    with open_file(content) as file:
        head = file.read(8)
        num_stated = int.from_bytes(head[4:], "little")
        return head[:4] == b"RIFF" and not _is_placeholder(num_stated) and file.seek(0, SEEK_END) < 8 + num_stated


def _is_placeholder(num_bytes: float) -> bool:
    """Return True if a stated size is a placeholder for an unknown size."""
    return any(start <= num_bytes <= end for start, end in PLACEHOLDERS)


def measure_length_ms(content: bytes | Path) -> int:
    """Return the length of a file's audio in ms, rounded up. It is 0 if the file has no audio or is not media.

    Raises OSError if the file can't be read.
    """
    try:
        length_ms = sum(map(measure_length_s, split_chain(content))) * 1000
        return math.ceil(round(length_ms, 6))  # the error of binary fractions must not add a millisecond
    except BrokenMediaError:
        return 0


def measure_length_s(content: bytes | Path) -> float:
    """Return the length of a file in seconds, like `measure_length_ms`. The file must not be chained."""
    try:
        with open_media(content) as container:
            stream = container.streams.best("audio")
            if not isinstance(stream, AudioStream):
                return 0.0
            # Ogg's last page counts Opus's pre-skip, which would add up over the links of a chain.
            end_s = None if container.format.name == "ogg" else stated_end_s(content, container, stream)
            return _measured_length_s(container, stream) if end_s is None else end_s
    except (BrokenMediaError, FFmpegError):
        return 0.0


def _measured_length_s(container: InputContainer, stream: AudioStream) -> float:
    """Return the latest end of the packets. MP3, ADTS and WebM from browsers often state no length."""
    if stream.time_base is None:
        return 0.0
    ends = (packet.pts + (packet.duration or 0) for packet in read_packets(container, stream) if packet.pts is not None)
    return float((max(ends, default=0) - (stream.start_time or 0)) * stream.time_base)


def stated_end_s(content: bytes | Path, container: InputContainer, stream: Stream) -> float | None:
    """Return the end of a file's audio according to its header, or None if the header gives none."""
    end_s = _end_s(container, stream)
    if end_s is None or end_s > MAX_LENGTH_S:
        return None
    if not stream.duration:  # FFmpeg stores estimates in streams
        return end_s
    if container.format.name == "ogg":  # FFmpeg reads the last page
        return end_s
    if container.format.name in TIMESTAMP_FORMATS:
        return None
    if container.format.name == "aiff" and stream.codec_context is not None:
        num_bytes = end_s * (stream.codec_context.bit_rate or 0) / 8
        if _is_placeholder(num_bytes) and num_bytes > container.size:
            return None
    with suppress(BrokenMediaError), open_media(content, ENLARGEMENT) as enlarged:
        is_estimate = end_s != _end_s(enlarged, enlarged.streams[stream.index])
        return None if is_estimate else end_s
    return end_s


def _end_s(container: InputContainer, stream: Stream) -> float | None:
    """Return the end of a stream, relative to the container's start, if FFmpeg reads or estimates it."""
    if stream.duration and stream.time_base is not None:  # WavPack states 0 for unknown
        return float(stream.duration * stream.time_base)
    if not container.duration:
        return None
    # Matroska's duration starts at zero instead of the file's start.
    return (container.duration - max(container.start_time or 0, 0)) / av.time_base
