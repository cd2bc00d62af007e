"""Decode media into waveforms: mono, 16 kHz, cut to the sample, the clip's mean removed.

Channels are averaged. The resampler is libswresample's windowed sinc (Kaiser, beta 9) of 128 taps a phase at the
lower rate, as measured by tests/pipeline/test_audio.py: flat within 0.1 dB to 7.4 kHz, −0.7 dB at 7.6 kHz,
below −79 dB from 8.1 kHz on, no delay.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from math import ceil
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet

from pipeline.errors import InputError
from pipeline.fbank import FRAME_LENGTH, SAMPLE_RATE_HZ
from pipeline.records import Failure, Media, Reason

SAMPLES_PER_MS = SAMPLE_RATE_HZ // 1000
RESAMPLER_OPTIONS = {"filter_size": "128", "cutoff": "0.97", "filter_type": "kaiser", "kaiser_beta": "9"}

SEEK_MARGIN_MS = 1_000
"""Decoding starts this long before the segment: decoders need a run-up, containers round."""
CUT_MARGIN_MS = 20
"""Kept on both sides of the segment until it is resampled, so that the filter has something to look at."""
GAP_S = 0.01
"""Timestamps that disagree with the samples counted by more than this mark a gap, which becomes silence."""
END_TOLERANCE_S = 0.5
"""A file that ends this much before its stated duration is no truncated one."""

MIN_RATE_HZ, MAX_RATE_HZ, MAX_CHANNELS = 1_000, 768_000, 64
MAX_FRAME_SAMPLES = 1 << 24
"""Over all channels: what one packet may unpack to."""
MAX_STALLED_PACKETS = 10_000
"""Packets in a row that bring neither samples nor later timestamps, before a file is given up."""
MAX_FILE_MS = 3_600_000
"""The longest file that is decoded as a whole."""

FORMATS = "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,tta,voc,w64,wav,wv"
"""What FFmpeg may take a file for. No playlists: those name other files and addresses."""
MAGICS = (b"\x1aE\xdf\xa3", b"OggS", b"fLaC", b"RIFF", b"ID3")
ESTIMATING_FORMATS = ("aac", "ac3", "eac3", "amr")
"""Formats without a length: FFmpeg guesses it from the bit rate."""


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """The audio of a segment."""

    waveform: np.ndarray
    """(S,) float32 in [-1, 1], mono, 16 kHz, mean removed, never padded at its end."""
    is_short: bool
    """The media ended before the segment did."""


class _BrokenError(Exception):
    """Carries the failure of a clip up to `decode_segment`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.failure = Failure(reason, detail)


def decode_segment(media: Media, start_ms: int, end_ms: int) -> Clip | Failure:
    """Decode the segment from `start_ms` to `end_ms` of the video.

    The clip has exactly 16 samples a millisecond where the media reaches that far. Time counts from the
    container's own start plus `media.offset_ms`. Stretches that a decoder can't read, or that the stream leaves
    out, are silent.
    """
    start_ms, end_ms = start_ms - media.offset_ms, end_ms - media.offset_ms
    try:
        if start_ms < 0:
            raise _BrokenError(Reason.OUT_OF_RANGE, f"the segment starts {-start_ms} ms before the file")
        # The second try, without seeking, is for files whose index is wrong or missing.
        for first_ms in (start_ms - SEEK_MARGIN_MS, 0):
            with _open(media.content) as container:
                track = _Track(container, max(start_ms - CUT_MARGIN_MS, 0), end_ms + CUT_MARGIN_MS)
                track.read(first_ms)
            if first_ms <= 0 or not track.starts_late:
                break
        _check_end(track, start_ms, end_ms)
        return _finish(track, start_ms, end_ms)
    except _BrokenError as broken:
        return broken.failure


def decode_file(content: bytes | str) -> np.ndarray:
    """Decode a whole file (bytes, or a path) of at most an hour → (S,) float32, like a clip's waveform.

    Raises InputError if it holds no audio, breaks off, or is longer.
    """
    name = content if isinstance(content, str) else f"{len(content)} bytes of media"
    clip = decode_segment(Media(content, name), 0, MAX_FILE_MS)
    if isinstance(clip, Failure):
        raise InputError(f"expected a file with audio, but {name} can't be decoded ({clip.reason}): {clip.detail}")
    if not clip.is_short:
        raise InputError(f"{name} is longer than {MAX_FILE_MS // 60_000} minutes: cut it into parts first")
    return clip.waveform


def encode_flac(waveform: np.ndarray) -> bytes:
    """Encode (S,) float32 at 16 kHz as 16-bit FLAC; the same samples give the same bytes."""
    pcm = np.clip(np.rint(waveform * 32768), -32768, 32767).astype(np.int16)
    file = BytesIO()
    with av.open(file, "w", format="flac", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE_HZ, layout="mono", options={"flags": "+bitexact"})
        frame = AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


@contextmanager
def _open(content: bytes | str) -> Iterator[InputContainer]:
    # Always a file object: a string would be read as an address, of any protocol.
    with BytesIO(content) if isinstance(content, bytes) else Path(content).open("rb") as file:
        try:
            container = av.open(file, "r", options={"format_whitelist": FORMATS, "protocol_whitelist": "none"})
        except FFmpegError as error:
            file.seek(0)
            head = file.read(12)
            looks_like_media = head.startswith(MAGICS) or head[4:8] == b"ftyp"
            raise _BrokenError(Reason.TRUNCATED if looks_like_media else Reason.NOT_MEDIA, str(error)) from error
        with container:
            yield container


class _Track:
    """The audio of a container between two times, gathered frame by frame at the source's rate."""

    def __init__(self, container: InputContainer, window_start_ms: int, window_end_ms: int) -> None:
        stream = container.streams.best("audio")
        if not isinstance(stream, AudioStream):
            raise _BrokenError(Reason.NO_AUDIO, "the file has no audio stream")
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_samples": str(MAX_FRAME_SAMPLES)}
        self.container = container
        self.stream = stream
        self.window_start_ms = window_start_ms
        self.window_end_ms = window_end_ms
        # MP3 and MPEG-TS start above 0; a start below 0 is the run-up of a codec, which the decoder drops.
        self.origin_s = max(container.start_time or 0, 0) / av.time_base
        self.stated_s = _stated_end_s(container, stream)
        self.rate_hz = 0
        self.pieces: list[tuple[int, np.ndarray]] = []
        self.position: int | None = None
        """Where the next samples belong, counted from the window's start."""
        self.starts_late = True
        """Nothing was decoded yet that lies before the window, or at its start."""
        self.last_s = 0.0
        """The latest timestamp of all streams."""
        self.error = ""
        self.is_broken_off = False

    def read(self, first_ms: int) -> None:
        """Decode what lies between `first_ms` and the window's end."""
        if first_ms > 0:
            first_pts = int((self.origin_s + first_ms / 1000) / self._time_base)
            try:
                self.container.seek(first_pts, stream=self.stream)
            except FFmpegError:
                return
        for packet in self._packets(first_ms / 1000):
            try:
                frames = self.stream.codec_context.decode(packet)
            except FFmpegError as error:
                self.error = str(error)
                continue
            for frame in frames:
                self._take(frame)
            if self.position is not None and self.position >= self.num_wanted:
                return

    @property
    def num_wanted(self) -> int:
        return ceil((self.window_end_ms - self.window_start_ms) * self.rate_hz / 1000)

    @property
    def num_samples(self) -> int:
        """Samples between the window's start and the end of what was found."""
        return min(self.position or 0, self.num_wanted) if self.pieces else 0

    @property
    def end_ms(self) -> float:
        return self.window_start_ms + 1000 * self.num_samples / max(self.rate_hz, 1)

    @property
    def _time_base(self) -> Fraction:
        return self.stream.time_base or Fraction(1, av.time_base)

    def _packets(self, first_s: float) -> Iterator[Packet]:
        """Demultiplex, leave out what lies before `first_s`, and stop at a file that never advances."""
        packets = self.container.demux()
        latest_pts, num_stalled = None, 0
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except FFmpegError as error:
                self.error, self.is_broken_off = str(error), True
                return
            time_s = 0.0
            if packet.pts is not None:
                time_s = float(packet.pts * packet.time_base) - self.origin_s
                end_s = time_s + float((packet.duration or 0) * packet.time_base)
                self.last_s = max(self.last_s, end_s)
            if packet.stream_index != self.stream.index:
                continue
            num_stalled = 0 if packet.pts is not None and packet.pts > (latest_pts or 0) else num_stalled + 1
            latest_pts = packet.pts
            if num_stalled > MAX_STALLED_PACKETS:
                raise _BrokenError(Reason.NOT_MEDIA, f"{num_stalled} packets in a row without progress in time")
            if packet.size and packet.pts is not None and time_s < first_s:
                continue
            yield packet

    def _take(self, frame: AudioFrame) -> None:
        """Put a frame where its timestamp says; a small disagreement with the samples counted is rounding."""
        self.rate_hz = self.rate_hz or _checked_rate(frame)
        if frame.sample_rate != self.rate_hz:
            self.error = f"the sample rate changes from {self.rate_hz} to {frame.sample_rate} Hz"
            return
        start = self.position or 0
        if frame.pts is not None and frame.time_base is not None:
            time_s = float(frame.pts * frame.time_base) - self.origin_s - self.window_start_ms / 1000
            stamped = round(time_s * self.rate_hz)
            # Before the window each frame says it anew: the first one after a seek may be a sample's length off.
            if self.position is None or start <= 0 or stamped - start > GAP_S * self.rate_hz:
                start = stamped
        if self.position is None and start <= GAP_S * self.rate_hz:
            self.starts_late = False
        self.position = start + frame.samples
        if self.position > 0 and start < self.num_wanted:
            self.pieces.append((start, _average_channels(frame)))


def _stated_end_s(container: InputContainer, stream: AudioStream) -> float | None:
    """Read the file's end from its header, if that has it."""
    if container.format.name in ESTIMATING_FORMATS:
        return None
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / av.time_base


def _checked_rate(frame: AudioFrame) -> int:
    num_channels = frame.layout.nb_channels
    if not (MIN_RATE_HZ <= frame.sample_rate <= MAX_RATE_HZ and num_channels <= MAX_CHANNELS):
        raise _BrokenError(Reason.NOT_MEDIA, f"{num_channels} channels at {frame.sample_rate} Hz are no usual audio")
    return frame.sample_rate


def _average_channels(frame: AudioFrame) -> np.ndarray:
    """Turn a frame of any sample format into (S,) float32 in [-1, 1]."""
    samples = frame.to_ndarray()
    num_channels = frame.layout.nb_channels
    channels = samples if frame.format.is_planar else [samples[0, c::num_channels] for c in range(num_channels)]
    mono = np.array(channels[0], np.float32)
    # Hostile floats may be infinite; `_finish` looks at that once.
    with np.errstate(invalid="ignore", over="ignore"):
        for channel in channels[1:]:
            mono += channel
        mono /= num_channels
    if samples.dtype.kind == "u":
        return mono / 128 - 1
    if samples.dtype.kind == "i":
        mono /= 1 << (8 * samples.itemsize - 1)
    return mono


def _check_end(track: _Track, start_ms: int, end_ms: int) -> None:
    """Tell a file that breaks off, or that can't be decoded, from one that is shorter than the segment."""
    if track.end_ms >= end_ms:
        num_decoded = sum(len(mono) for _, mono in track.pieces)
        if track.error and num_decoded < track.num_samples / 2:
            raise _BrokenError(Reason.NOT_MEDIA, f"less than half of the segment can be decoded: {track.error}")
        return
    stated_s = track.stated_s
    misses = stated_s is not None and stated_s - track.last_s > END_TOLERANCE_S and stated_s * 1000 > start_ms
    if track.is_broken_off or misses:
        detail = track.error or f"the file ends at {track.last_s:.1f} s, its header says {stated_s:.1f} s"
        raise _BrokenError(Reason.TRUNCATED, detail)
    if not track.pieces:
        if track.error or track.last_s == 0:
            raise _BrokenError(Reason.NOT_MEDIA, track.error or "the audio stream is empty")
        detail = f"the audio ends at {track.last_s:.3f} s, the segment starts at {start_ms / 1000:.3f} s"
        raise _BrokenError(Reason.OUT_OF_RANGE, detail)


def _finish(track: _Track, start_ms: int, end_ms: int) -> Clip:
    """Join the pieces, resample, cut, and remove the mean."""
    source = np.zeros(track.num_samples, np.float32)
    for start, mono in track.pieces:
        mono = mono[max(-start, 0) : len(source) - start]
        source[max(start, 0) : max(start, 0) + len(mono)] = mono
    if not np.isfinite(source).all():
        raise _BrokenError(Reason.NOT_MEDIA, "samples that are no numbers")
    skip = (start_ms - track.window_start_ms) * SAMPLES_PER_MS
    num_wanted = (end_ms - start_ms) * SAMPLES_PER_MS
    waveform = _resample(source.clip(-1, 1), track.rate_hz)[skip : skip + num_wanted]
    if len(waveform) < FRAME_LENGTH:
        detail = f"{len(waveform)} samples of the segment exist, {FRAME_LENGTH} are needed"
        raise _BrokenError(Reason.OUT_OF_RANGE, detail)
    waveform = (waveform - waveform.mean(dtype=np.float64)).clip(-1, 1).astype(np.float32)
    return Clip(waveform, is_short=len(waveform) < num_wanted)


def _resample(mono: np.ndarray, rate_hz: int) -> np.ndarray:
    if rate_hz == SAMPLE_RATE_HZ:
        return mono
    resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE_HZ, options=RESAMPLER_OPTIONS)
    frame = AudioFrame.from_ndarray(mono[None], format="flt", layout="mono")
    frame.sample_rate = rate_hz
    resampled = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([frame.to_ndarray()[0] for frame in resampled])
