"""Decode a time window of an audio stream.

Memory and time are bounded for any content. Only the window is decoded, in blocks, and reading stops if timestamps do
not advance. Only FFmpeg's own errors are caught.
"""

from collections.abc import Iterator
from math import ceil
from pathlib import Path
from statistics import median

import av
import numpy as np
from av.audio.frame import AudioFrame, format_dtypes
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet

from pipeline.audio.container import BrokenMediaError, read_packets
from pipeline.audio.length import stated_end_s
from pipeline.audio.levels import MAX_BIT_RATE, Levels
from pipeline.audio.mono import ChannelMixer
from pipeline.records import Reason

GAP_S = 0.1
"""If a timestamp is more than this many seconds ahead of the sample count, the gap is filled with silence. Smaller
differences are rounding errors of containers with millisecond timestamps, or come from Vorbis's varying block sizes."""
OVERRUN_S = 1.0
"""Seconds to read beyond the end of an incomplete window, because timestamps may be inaccurate."""
BLOCK_SAMPLES = 1 << 19
"""Samples per block, half a minute at 16 kHz. Ten hours of silence thus never fill the memory."""
MIN_RATE_HZ, MAX_RATE_HZ, MAX_CHANNELS = 1_000, 768_000, 64
MAX_FRAME_SAMPLES = 1 << 24
"""Maximum decoded samples per packet, over all channels."""
MAX_STALLED_PACKETS = 10_000
"""Maximum consecutive packets without samples or progress in time."""
MAX_RUN_UP_S = 3_600
"""Maximum seconds to decode outside the window if timestamps are missing or wrong."""


class Track:
    """The audio of a container within a time window, as mono at the source's rate.

    Times are relative to the start of the container. The public attributes are valid once `blocks` is exhausted.
    """

    def __init__(
        self,
        content: bytes | Path,
        container: InputContainer,
        window_ms: tuple[int, int],
        measured_ms: tuple[int, int] | None = None,
    ) -> None:
        """Prepare to decode a window.

        container: the opened content.
        window_ms: start and end of the window in the file.
        measured_ms: start and end of the interval in which levels are measured.
        """
        stream = container.streams.best("audio")
        # FFmpeg has no context for unknown codecs.
        if not isinstance(stream, AudioStream) or stream.codec_context is None or stream.time_base is None:
            raise BrokenMediaError(Reason.NO_AUDIO, "the file has no audio stream that can be decoded")
        # Use one thread. Each core already decodes its own clip, and more threads would wait for each other.
        stream.codec_context.thread_count = 1
        # In some codecs a packet of a few bytes can claim minutes of audio.
        stream.codec_context.options = {"max_samples": str(MAX_FRAME_SAMPLES)}
        self.content = content
        self._container = container
        self._stream = stream
        self._tick_s = float(stream.time_base)
        # MP3 and MPEG-TS start above 0. A start below 0 is a codec's pre-roll, which the decoder drops.
        self._origin_s = max(container.start_time or 0, 0) / av.time_base
        window_start_ms, window_end_ms = window_ms
        self._window_start_s = window_start_ms / 1000
        self._window_s = (window_end_ms - window_start_ms) / 1000
        self._window_end_s = window_end_ms / 1000
        self._measured_s = tuple((time_ms - window_start_ms) / 1000 for time_ms in measured_ms or ())
        self._ends_s: dict[int, float] = {}
        self._num_stalled = 0
        self._num_outside = 0
        self._drifts: list[int] = []

        self.rate_hz = 0
        """Sample rate of the source; 0 until a frame is decoded."""
        self.num_channels = 0
        """Channels of the first frame; later frames may differ."""
        self.codec = stream.codec_context.codec.canonical_name
        self.is_lossless = stream.codec_context.codec.lossless
        self.bit_rate = _bit_rate(container, stream)
        """Bit rate from the header, or from the file's size."""
        self.levels = Levels()
        """Levels of the measured interval."""
        self.mixer = ChannelMixer()
        """Mixes the window's channels and detects whether they cancel each other."""
        self.position: int | None = None
        """Samples since the window's start, including gaps, up to the next samples; None before the first samples."""
        self.num_decoded = 0
        """Number of decoded samples within the window, without gaps."""
        self.missed_start = True
        """True while all frames started after the window's start, because a seek went too far or the audio starts
        late."""
        self.stated_end_s = stated_end_s(content, container, stream)
        """End of the audio according to the header, if stated."""
        self.error = ""
        """Latest error message of the demultiplexer or the decoder."""
        self.reached_eof = False
        """True if all packets were read, so `end_s` is the end of the file."""
        self.is_truncated = False
        """True if the demultiplexer failed early, so `end_s` is not the file's original end."""

    @property
    def end_s(self) -> float:
        """Latest time that any stream has reached."""
        return max(self._ends_s.values(), default=0.0)

    def blocks(self, first_ms: int) -> Iterator[np.ndarray]:
        """Decode from `first_ms` and yield the window's samples as contiguous blocks (S,) float32."""
        position = 0
        for samples_CS in self._samples(first_ms / 1000):
            self._measure(samples_CS, position)
            position += samples_CS.shape[1]
            yield self.mixer.mix(samples_CS)

    def _samples(self, first_s: float) -> Iterator[np.ndarray]:
        """Yield the window's samples (C, S) in the decoder's type, in blocks."""
        # Collect frames into larger blocks, because codecs return only about 20 ms per frame. This saves calls of NumPy
        # and the resampler.
        pieces: list[np.ndarray] = []
        num_pending = 0
        for frame in self._frames(first_s):
            for piece_CS in self._place(frame):
                changed = pieces and (len(piece_CS), piece_CS.dtype) != (len(pieces[0]), pieces[0].dtype)
                if changed or num_pending >= _block_samples(len(piece_CS)):
                    yield np.concatenate(pieces, axis=1)
                    pieces, num_pending = [], 0
                pieces.append(piece_CS)
                num_pending += piece_CS.shape[1]
        if pieces:
            yield np.concatenate(pieces, axis=1)

    def _measure(self, samples_CS: np.ndarray, position: int) -> None:
        """Measure the samples that are in the measured interval. position: position of the first sample in the
        window."""
        if self._measured_s:
            first, last = (max(round(time_s * self.rate_hz) - position, 0) for time_s in self._measured_s)
            # Floats may be NaN or infinite, which `decode` rejects.
            with np.errstate(over="ignore", invalid="ignore"):
                self.levels.add(samples_CS[:, first:last])

    def _frames(self, first_s: float) -> Iterator[AudioFrame]:
        if self._has_wrong_times():
            first_s = 0
        if first_s > 0 and not self._seek(first_s):
            return
        for packet in self._packets(first_s):
            try:
                yield from self._stream.codec_context.decode(packet)
            except FFmpegError as error:
                # A broken packet leaves a gap; the decoder usually recovers.
                self.error = str(error)
            # Count samples to find the end of the window, because timestamps may be inaccurate.
            if self.position is not None and self.position >= self._window_s * self.rate_hz:
                return

    def _has_wrong_times(self) -> bool:
        """Return True if seeking gives wrong timestamps, as in the last page of FLAC and Speex in Ogg."""
        return self._container.format.name == "ogg" and self.codec not in ("opus", "vorbis")

    def _seek(self, first_s: float) -> bool:
        try:
            self._container.seek(int((self._origin_s + first_s) / self._tick_s), stream=self._stream)
        except FFmpegError as error:
            self.error = str(error)
            return False
        return True

    def _packets(self, first_s: float) -> Iterator[Packet]:
        """Yield the track's packets that end after `first_s`."""
        packets = read_packets(self._container)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                self.reached_eof = True
                return
            except FFmpegError as error:
                self.error, self.reached_eof, self.is_truncated = str(error), True, True
                return
            self._num_stalled += 1
            if self._num_stalled > MAX_STALLED_PACKETS:
                raise BrokenMediaError(Reason.NOT_MEDIA, f"timestamps do not advance for {MAX_STALLED_PACKETS} packets")
            # Read other streams as well. If the audio is shorter than the video, their times reveal the file's end.
            is_ours = packet.stream_index == self._stream.index
            start_s = end_s = None
            if packet.pts is not None:
                tick_s = self._tick_s if is_ours else float(packet.time_base)
                start_s = packet.pts * tick_s - self._origin_s
                end_s = start_s + (packet.duration or 0) * tick_s
                if end_s > self._ends_s.get(packet.stream_index, 0):
                    self._ends_s[packet.stream_index] = end_s
                    self._num_stalled = 0
            if not is_ours or (end_s is not None and end_s < first_s):
                continue
            yield packet
            # Stop here for packets without samples. Otherwise `_frames` stops at the end of the window.
            if start_s is not None and start_s > self._window_end_s + OVERRUN_S:
                return

    def _place(self, frame: AudioFrame) -> Iterator[np.ndarray]:
        """Yield a frame's samples (C, S) within the window, preceded by silence if its timestamp leaves a gap."""
        if frame.samples == 0 or not self._is_readable(frame):
            return
        self._num_stalled = 0
        num_wanted = ceil(self._window_s * self.rate_hz)
        position, start = self.position or 0, self._start_of(frame)
        self.missed_start = self.missed_start and start > 0
        self.position = start + frame.samples
        samples_CS = frame.to_ndarray()
        if not frame.format.is_planar:
            samples_CS = samples_CS.reshape(-1, frame.layout.nb_channels).T
        yield from _silence(min(start, num_wanted) - max(position, 0), like=samples_CS)
        if self.position > 0 and start < num_wanted:
            samples_CS = samples_CS[:, max(-start, 0) : num_wanted - start]
            self.num_decoded += samples_CS.shape[1]
            yield samples_CS
        else:
            self._num_outside += frame.samples
            if self._num_outside > MAX_RUN_UP_S * self.rate_hz:
                is_beyond = self.stated_end_s is not None and self.stated_end_s <= self._window_start_s
                reason = Reason.OUT_OF_RANGE if is_beyond else Reason.NOT_MEDIA
                raise BrokenMediaError(reason, f"{MAX_RUN_UP_S} s of samples outside the segment")

    def _start_of(self, frame: AudioFrame) -> int:
        """Return a frame's position: after the previous frame, unless its timestamp indicates a gap."""
        if frame.pts is None:
            return self.position or 0
        time_s = frame.pts * self._tick_s - self._origin_s - self._window_start_s
        stamped = round(time_s * self.rate_hz)
        if self.position is None or stamped - self.position > GAP_S * self.rate_hz:
            self._drifts = []
            return stamped
        if self.position <= 0:
            # Single timestamps are inaccurate, especially after a seek, so use the median of the drifts before the
            # window.
            self._drifts.append(stamped - self.position)
            if self.position + frame.samples > 0:
                return self.position + round(median(self._drifts))
        return self.position

    def _is_readable(self, frame: AudioFrame) -> bool:
        """Return True if a frame fits earlier frames. Raises BrokenMediaError for impossible rates and channels."""
        num_channels = frame.layout.nb_channels
        if not (MIN_RATE_HZ <= frame.sample_rate <= MAX_RATE_HZ and num_channels <= MAX_CHANNELS):
            detail = f"{num_channels} channels at {frame.sample_rate} Hz are beyond usual audio"
            raise BrokenMediaError(Reason.NOT_MEDIA, detail)
        self.rate_hz = self.rate_hz or frame.sample_rate
        self.num_channels = self.num_channels or num_channels
        if frame.sample_rate != self.rate_hz:
            self.error = f"the sample rate changes from {self.rate_hz} to {frame.sample_rate} Hz"
        elif frame.format.name not in format_dtypes:
            self.error = f"samples of the format {frame.format.name} can't be read"
        else:
            return True
        return False


def _bit_rate(container: InputContainer, stream: AudioStream) -> int | None:
    """Return the bit rate from the header or, for a file with audio only, from its size."""
    of_file = container.bit_rate if len(container.streams) == 1 else None
    return next((rate for rate in (stream.bit_rate, of_file) if rate and 0 < rate <= MAX_BIT_RATE), None)


def _block_samples(num_channels: int) -> int:
    """Return the samples per channel and block. With many channels, blocks get shorter to save memory."""
    return BLOCK_SAMPLES // max(num_channels // 2, 1)


def _silence(num_samples: int, like: np.ndarray) -> Iterator[np.ndarray]:
    """Yield silence (C, S) with the same channels and type as other samples."""
    zero = 128 if like.dtype.kind == "u" else 0
    while num_samples > 0:
        num_next = min(num_samples, _block_samples(len(like)))
        yield np.full((len(like), num_next), zero, like.dtype)
        num_samples -= num_next
