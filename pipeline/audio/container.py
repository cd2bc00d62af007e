"""Read a stretch of audio out of a media file that nobody vouches for.

Memory and time stay bounded whatever the file says: only the wanted stretch is decoded and handed on in blocks, and
reading ends where a file stops advancing. FFmpeg is handed bytes or an open file, never a name, and may open nothing
itself. Only FFmpeg's own errors are caught.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import SEEK_END, BytesIO
from math import ceil
from pathlib import Path
from statistics import median
from typing import BinaryIO

import av
import numpy as np
from av.audio.frame import AudioFrame, format_dtypes
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet

from pipeline.audio.levels import MAX_BIT_RATE, Levels
from pipeline.records import Failure, Reason

GAP_S = 0.1
"""Timestamps that run ahead of the samples counted by more than this mark a gap, which becomes silence. Smaller
differences are rounding, of containers that count in milliseconds or of Vorbis's varying blocks."""
OVERRUN_S = 1.0
"""Packets are read this far beyond the window, if it still isn't full: their timestamps may be off."""
BLOCK_SAMPLES = 1 << 19
"""Samples handed on at a time: half a minute at 16 kHz, so ten hours of silence never lie in memory at once."""
MIN_RATE_HZ, MAX_RATE_HZ, MAX_CHANNELS = 1_000, 768_000, 64
MAX_FRAME_SAMPLES = 1 << 24
"""The most that one packet may decode to, over all channels."""
MAX_STALLED_PACKETS = 10_000
"""Packets in a row that bring neither samples nor later timestamps, before reading ends."""
MAX_RUN_UP_S = 3_600
"""The most that may be decoded outside the window, where timestamps are missing or false, before reading ends."""

FORMATS = "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,tta,voc,w64,wav,wv"
"""Formats that FFmpeg may recognise. No playlists: those name other files and addresses."""
EXTENSIONS = frozenset("aac aif aiff avi flac m4a mka mkv mp3 mp4 mov oga ogg opus wav webm wma".split())
"""Extensions of media files."""
ESTIMATING_FORMATS = ("aac", "ac3", "eac3", "amr")
"""Formats without a stated length: FFmpeg guesses it from the bit rate."""
MAGICS = (b"\x1aE\xdf\xa3", b"OggS", b"fLaC", b"RIFF", b"ID3")
"""First bytes of the commonest formats; MP4 has `ftyp` after four bytes."""


class BrokenMediaError(Exception):
    """A file that can't be decoded. It never leaves this room: `decode` turns it into a failure or an InputError."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.failure = Failure(reason, detail)


@contextmanager
def open_media(content: bytes | Path) -> Iterator[InputContainer]:
    """Open bytes or a local file. Raises BrokenMediaError if it is not media, OSError if the file can't be read."""
    # Always a file object: FFmpeg would take a string for an address of any protocol.
    with _open_file(content) as file:
        head = file.read(12)
        if not head:  # to FFmpeg, one on a disk looks as if the disk failed
            raise BrokenMediaError(Reason.NOT_MEDIA, "the file is empty")
        file.seek(0)
        # Without a protocol, a playlist or a reference inside a container leads nowhere.
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
        if head[8:] == b"WAVE":
            # Otherwise FFmpeg searches 5 MB for other codecs that hide in PCM, which takes longer than the decoding.
            options["probesize"] = "32768"
        try:
            # Tags come in any encoding; strict decoding would refuse a file for its artist's name.
            container = av.open(file, "r", options=options, metadata_errors="replace")
        except FFmpegError as error:
            raise BrokenMediaError(_reason_of(head), str(error)) from error
        with container:
            if not container.streams:
                raise BrokenMediaError(_reason_of(head), "the file has no streams")
            yield container


def is_truncated_riff(content: bytes | Path) -> bool:
    """Return whether a WAV or AVI file is shorter than its header says."""
    # FFmpeg itself takes the end of the bytes for the end of the audio.
    with _open_file(content) as file:
        head = file.read(8)
        num_stated = 8 + int.from_bytes(head[4:], "little")
        return head[:4] == b"RIFF" and num_stated < 1 << 32 and file.seek(0, SEEK_END) < num_stated


def measure_length_ms(content: bytes | Path) -> int:
    """Return how long a file's audio is; 0 if it has none, or is not media. Raises OSError if it can't be read."""
    try:
        with open_media(content) as container:
            stream = container.streams.best("audio")
            if not isinstance(stream, AudioStream) or stream.time_base is None:
                return 0
            if (end_s := _stated_end_s(container, stream)) is not None:
                return int(end_s * 1000)
            # Browsers record WebM without a length; its packets have time stamps all the same.
            times = [
                packet.pts + (packet.duration or 0) for packet in container.demux(stream) if packet.pts is not None
            ]
            return int((max(times) - (stream.start_time or 0)) * stream.time_base * 1000) if times else 0
    except (BrokenMediaError, FFmpegError, IndexError):  # IndexError: see `Track._packets`
        return 0


def _open_file(content: bytes | Path) -> BinaryIO:
    if isinstance(content, bytes):
        return BytesIO(content)
    if not isinstance(content, Path):  # pyright would refuse it; a value out of a foreign table has no type
        raise TypeError(f"expected bytes or a Path, found {type(content).__name__}")
    # A named pipe or a device in a folder of media would block, or never end.
    if not content.is_file() and content.exists():
        raise BrokenMediaError(Reason.NOT_MEDIA, "it is not a regular file")
    return content.open("rb")


def _reason_of(head: bytes) -> Reason:
    """Distinguish media whose index is missing from what never was media: the first may be whole the next time."""
    return Reason.TRUNCATED if head.startswith(MAGICS) or head[4:8] == b"ftyp" else Reason.NOT_MEDIA


class Track:
    """The audio of a container within a window of time, mono, at the rate of the source.

    Time counts from the container's start. Once `blocks` is exhausted the public attributes hold what was found.
    """

    def __init__(
        self,
        container: InputContainer,
        window_start_ms: int,
        window_end_ms: int,
        measured_ms: tuple[int, int] | None = None,
    ) -> None:
        """`measured_ms`: from when to when in the file the levels are measured."""
        stream = container.streams.best("audio")
        # FFmpeg has no context for a codec that it doesn't know.
        if not isinstance(stream, AudioStream) or stream.codec_context is None or stream.time_base is None:
            raise BrokenMediaError(Reason.NO_AUDIO, "the file has no audio stream that can be decoded")
        # Clips are decoded one per core already; more threads would only wait for each other.
        stream.codec_context.thread_count = 1
        # Some codecs let a few bytes claim minutes of audio in one packet.
        stream.codec_context.options = {"max_samples": str(MAX_FRAME_SAMPLES)}
        self._container = container
        self._stream = stream
        self._tick_s = float(stream.time_base)
        # MP3 and MPEG-TS start above 0; a start below 0 is the run-up of a codec, which the decoder drops.
        self._origin_s = max(container.start_time or 0, 0) / av.time_base
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
        """Of the first frame; they may change in midstream."""
        self.codec = stream.codec_context.codec.canonical_name
        self.bit_rate = _bit_rate(container, stream)
        """As the header states it, or as it follows from the file's size."""
        self.levels = Levels()
        """Of the stretch that is measured."""
        self.position: int | None = None
        """Where the next samples belong: samples after the window's start, gaps included; None before the first."""
        self.num_decoded = 0
        """Samples within the window, without gaps."""
        self.missed_start = True
        """Every frame so far started after the window did: a seek landed too late, or the audio starts late."""
        self.stated_end_s = _stated_end_s(container, stream)
        """Where the audio ends according to the file's header; None if that says nothing reliable."""
        self.error = ""
        """The latest message of the demultiplexer or the decoder."""
        self.reached_eof = False
        """There are no more packets: `end_s` is where the file ends."""
        self.is_truncated = False
        """The demultiplexer failed before the end, so `end_s` is not the end that the file once had."""

    @property
    def end_s(self) -> float:
        """The latest time that any stream reached."""
        return max(self._ends_s.values(), default=0.0)

    def blocks(self, first_ms: int) -> Iterator[np.ndarray]:
        """Decode from `first_ms` on and yield what lies in the window as (S,) float32, without gaps in between."""
        position = 0
        for samples_CS in self._samples(first_ms / 1000):
            self._measure(samples_CS, position)
            position += samples_CS.shape[1]
            yield _average_channels(samples_CS)

    def _samples(self, first_s: float) -> Iterator[np.ndarray]:
        """Yield what lies in the window as (C, S) of the decoder's type, in blocks."""
        # Codecs give some 20 ms at a time, and each call of NumPy and of the resampler has its price.
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
        """Measure what of some samples, of which the first is the window's number `position`, is to be measured."""
        if self._measured_s:
            first, last = (max(round(time_s * self.rate_hz) - position, 0) for time_s in self._measured_s)
            # Floats may be anything; `decode` refuses what isn't finite.
            with np.errstate(over="ignore", invalid="ignore"):
                self.levels.add(samples_CS[:, first:last])

    def _frames(self, first_s: float) -> Iterator[AudioFrame]:
        if first_s > 0 and not self._seek(first_s):
            return
        for packet in self._packets(first_s):
            try:
                yield from self._stream.codec_context.decode(packet)
            except FFmpegError as error:
                # One broken packet is a gap; the decoder may well go on after it.
                self.error = str(error)
            # The samples say when the window is full, since timestamps may be off.
            if self.position is not None and self.position >= self._window_s * self.rate_hz:
                return

    def _seek(self, first_s: float) -> bool:
        try:
            self._container.seek(int((self._origin_s + first_s) / self._tick_s), stream=self._stream)
        except FFmpegError as error:
            self.error = str(error)
            return False
        return True

    def _packets(self, first_s: float) -> Iterator[Packet]:
        """Yield the track's packets, without those that end before `first_s`."""
        packets = self._container.demux()
        while True:
            try:
                packet = next(packets)
            except (StopIteration, IndexError):
                # PyAV raises IndexError at the end of a file in which a stream appeared late, looking that up.
                self.reached_eof = True
                return
            except FFmpegError as error:
                self.error, self.reached_eof, self.is_truncated = str(error), True, True
                return
            self._num_stalled += 1
            if self._num_stalled > MAX_STALLED_PACKETS:
                raise BrokenMediaError(Reason.NOT_MEDIA, f"timestamps do not advance for {MAX_STALLED_PACKETS} packets")
            # Other streams are read too: their times tell where a file ends whose audio is shorter than its video.
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
            # For packets that decode to nothing; otherwise `_frames` stops once the window is full.
            if start_s is not None and start_s > self._window_end_s + OVERRUN_S:
                return

    def _place(self, frame: AudioFrame) -> Iterator[np.ndarray]:
        """Yield a frame's samples (C, S) in the window, as they are, after silence if its timestamp leaves a gap."""
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
        """Find a frame's position: behind the last one, unless its timestamp says that there is a gap."""
        if frame.pts is None:
            return self.position or 0
        time_s = frame.pts * self._tick_s - self._origin_s - self._window_start_s
        stamped = round(time_s * self.rate_hz)
        if self.position is None or stamped - self.position > GAP_S * self.rate_hz:
            self._drifts = []
            return stamped
        if self.position <= 0:
            # Single timestamps are off, the first one after a seek above all; their median before the window counts.
            self._drifts.append(stamped - self.position)
            if self.position + frame.samples > 0:
                return self.position + round(median(self._drifts))
        return self.position

    def _is_readable(self, frame: AudioFrame) -> bool:
        """Return whether a frame fits those before it. Raises BrokenMediaError for rates and channels of no audio."""
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


def _stated_end_s(container: InputContainer, stream: AudioStream) -> float | None:
    """Read the file's end from its header, if that has it."""
    if container.format.name in ESTIMATING_FORMATS:
        return None
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is None:
        return None
    # Matroska's duration counts from zero, not from the file's start.
    return (container.duration - max(container.start_time or 0, 0)) / av.time_base


def _bit_rate(container: InputContainer, stream: AudioStream) -> int | None:
    """Read the bit rate from the header, or from the file's size where nothing but audio is in it."""
    of_file = container.bit_rate if len(container.streams) == 1 else None
    return next((rate for rate in (stream.bit_rate, of_file) if rate and 0 < rate <= MAX_BIT_RATE), None)


def _block_samples(num_channels: int) -> int:
    """Return how many samples of each channel are handed on at a time, so that many channels take no more memory."""
    return BLOCK_SAMPLES // max(num_channels // 2, 1)


def _silence(num_samples: int, like: np.ndarray) -> Iterator[np.ndarray]:
    """Yield silence (C, S) of the channels and type of other samples."""
    zero = 128 if like.dtype.kind == "u" else 0
    while num_samples > 0:
        num_next = min(num_samples, _block_samples(len(like)))
        yield np.full((len(like), num_next), zero, like.dtype)
        num_samples -= num_next


def _average_channels(samples_CS: np.ndarray) -> np.ndarray:
    """Turn samples of any type (C, S) into (S,) float32 in [-1, 1]."""
    # Floats may be anything; `decode` refuses what isn't finite.
    with np.errstate(over="ignore", invalid="ignore"):
        mono = np.array(samples_CS[0], np.float32)
        for channel in samples_CS[1:]:
            mono += channel
        if len(samples_CS) > 1:
            mono /= len(samples_CS)
    if samples_CS.dtype.kind == "u":
        return mono / 128 - 1
    if samples_CS.dtype.kind == "i":
        return mono / (1 << (8 * samples_CS.itemsize - 1))
    return mono
