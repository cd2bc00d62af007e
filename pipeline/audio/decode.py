"""Decode media to mono waveforms at 16 kHz, cut to the sample and without their mean.

Channels are averaged. The resampler is libswresample's windowed sinc (Kaiser, beta 9) with 128 taps per phase at the
lower rate. For sources at 48, 44.1, 32 and 22.05 kHz, its measured response is flat within 0.1 dB up to 7.4 kHz, −0.7
dB at 7.6 kHz, and below −79 dB from 8.1 kHz. It has no delay.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, pairwise
from math import ceil
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.error import FFmpegError

from pipeline.audio.chain import split_chain
from pipeline.audio.container import BrokenMediaError, open_media
from pipeline.audio.length import is_truncated_riff, measure_length_ms, measure_length_s
from pipeline.audio.levels import MediaAudio
from pipeline.audio.track import Track
from pipeline.errors import InputError, describe
from pipeline.fbank_settings import FRAME_LENGTH, SAMPLE_RATE_HZ
from pipeline.records import Failure, Media, Reason

SAMPLES_PER_MS = SAMPLE_RATE_HZ // 1000
RESAMPLER_OPTIONS = {"filter_size": "128", "cutoff": "0.97", "filter_type": "kaiser", "kaiser_beta": "9"}

SEEK_MARGIN_MS = 1_000
"""Milliseconds before the segment at which decoding starts, because decoders need a pre-roll and containers round
times."""
CUT_MARGIN_MS = 20
"""Margin on both sides of the segment for the resampling filter."""
CUT_GRID_MS = 40
"""Grid for cuts. Its times fall on whole samples at all common rates, such as 11,025 Hz."""
MAX_FLOAT_LEVEL = 16.0
"""Maximum level of uncompressed float samples, 24 dB above full scale. Higher levels come from programs that write
integers as floats without scaling them."""
END_TOLERANCE_S = 0.5
"""A file counts as complete if it ends less than this many seconds before the end in its header."""
MAX_FILE_MS = 3_600_000
"""Maximum length, in ms, of a file that is decoded into memory."""
MAX_STREAM_MS = 48 * 3_600_000
"""Maximum length, in ms, of a file that is decoded as a stream. It is needed because a few bytes may claim years of
silence."""


class DecodeError(InputError):
    """Raised if a file has no usable audio. Contains the reason."""

    def __init__(self, message: str, reason: Reason):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):
        return DecodeError, (str(self), self.reason)


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """The audio of a segment."""

    waveform: np.ndarray
    """Mono waveform (S,) as float32 in [-1, 1] at 16 kHz. Its mean is removed, and it is never padded."""
    is_short: bool
    """The media ended at least a millisecond before the segment."""
    media: MediaAudio
    """Properties of the media at the segment."""


def decode_segment(media: Media, start_ms: int, end_ms: int) -> Clip | Failure:
    """Decode a segment of the video, `start_ms` to `end_ms`.

    The clip has exactly 16 samples per millisecond unless the media end early. Times are relative to the container's
    start plus `media.offset_ms`. Undecodable packets and gaps in the stream become silence, provided that at least half
    of the clip is real. An unreadable file is also a failure, because the permissions of one file must not end a shard.
    """
    start_ms, end_ms = start_ms - media.offset_ms, end_ms - media.offset_ms
    try:
        if start_ms < 0:
            raise BrokenMediaError(Reason.OUT_OF_RANGE, f"the segment starts {-start_ms} ms before the file")
        return _decode(media.content, start_ms, end_ms)
    except BrokenMediaError as error:
        return error.failure
    except OSError as error:
        return Failure(Reason.CONNECTION, f"can't read {media.source}: {describe(error)}")


def decode_file(content: bytes | Path, max_ms: int = MAX_FILE_MS) -> np.ndarray:
    """Decode a whole file of at most `max_ms` to a float32 waveform (S,), processed like the waveform of a clip.

    Raises DecodeError if the file is unreadable, truncated or longer, or has no audio.
    """
    with _explaining(content):
        clip = _decode(content, 0, max_ms)
        if not clip.is_short:
            raise _too_long(content, max_ms)
    return clip.waveform


def stream_file(content: bytes | Path) -> Iterator[np.ndarray]:
    """Decode a file of any length in float32 blocks (S,) in [-1, 1] of about half a minute.

    The mean is not removed: it is unknown before the end, and it does not change the features. Raises DecodeError in
    the same cases as `decode_file`. If the file is truncated, the error is raised after the last block.
    """
    num_samples, tracks = 0, list[Track]()
    with _explaining(content):
        for link in split_chain(content):
            with open_media(link) as container:
                track = Track(link, container, (0, MAX_STREAM_MS))
                for block in _resample(track, 0):
                    num_samples += len(block)
                    yield block
            if num_samples >= MAX_STREAM_MS * SAMPLES_PER_MS:
                raise _too_long(content, MAX_STREAM_MS)
            if track.reached_eof:
                _check_whole(link, track, 0)
            tracks.append(track)
        _check_real(num_samples, _longest(tracks))


@contextmanager
def _explaining(content: bytes | Path) -> Iterator[None]:
    """Convert errors of unreadable files to DecodeError."""
    try:
        yield
    except BrokenMediaError as error:
        failure = error.failure
        message = f"expected audio, but {_name_of(content)} can't be decoded ({failure.reason}): {failure.detail}"
        raise DecodeError(message, failure.reason) from error
    except OSError as error:
        reason = Reason.NOT_FOUND if isinstance(error, FileNotFoundError) else Reason.CONNECTION
        message = f"expected a file with audio, but {_name_of(content)} can't be read: {error.strerror}"
        raise DecodeError(message, reason) from error


def _too_long(content: bytes | Path, max_ms: int) -> DecodeError:
    message = f"{_name_of(content)} is longer than {max_ms / 60_000:g} minutes: cut it into parts first"
    return DecodeError(message, Reason.TOO_LARGE)


def _name_of(content: bytes | Path) -> str:
    return str(content) if isinstance(content, Path) else f"a file of {len(content)} bytes"


def encode_flac(waveform: np.ndarray) -> bytes:
    """Encode a float32 waveform (S,) at 16 kHz as 16-bit FLAC. The same samples always give the same bytes."""
    pcm = np.clip(np.rint(waveform * 32768), -32768, 32767).astype(np.int16)
    file = BytesIO()
    # Use bit-exact mode. Otherwise FFmpeg writes its version into each file, and shards from two machines differ.
    with av.open(file, "w", format="flac", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE_HZ, layout="mono", options={"flags": "+bitexact"})
        frame = AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def decode_flac(content: bytes) -> np.ndarray:
    """Decode the output of `encode_flac` to int16 samples (S,). Raises InputError if the content is damaged or of
    another kind."""
    try:
        with av.open(BytesIO(content), "r", format="flac") as container:
            frames = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
            stream = container.streams.audio[0]
            num_samples = stream.duration
    except FFmpegError as error:
        raise InputError(f"expected 16 kHz mono FLAC, found {len(content)} bytes that can't be decoded") from error
    waveform = np.concatenate(frames) if frames else np.zeros(0, np.int16)
    if waveform.dtype != np.int16 or stream.rate != SAMPLE_RATE_HZ or len(waveform) != num_samples:
        raise InputError(
            f"expected {num_samples} samples of 16-bit FLAC at {SAMPLE_RATE_HZ} Hz, found {len(waveform)} of"
            f" {waveform.dtype} at {stream.rate} Hz"
        )
    return waveform


def _decode(content: bytes | Path, start_ms: int, end_ms: int) -> Clip:
    """Decode an interval of a file, in the file's own time."""
    parts = list(_read_links(content, start_ms, end_ms))
    waveform = np.concatenate([samples for samples, _ in parts])
    track = _longest(track for _, track in parts)
    _check_real(len(waveform), track)
    # The resampler's overshoot and the removed mean may move samples slightly beyond ±1.
    mean = waveform.mean(dtype=np.float64).astype(np.float32)
    waveform = waveform - mean
    waveform.clip(-1, 1, out=waveform)
    media = MediaAudio(
        peak=track.levels.peak,
        clipping=track.levels.clipping,
        dc=float(mean),
        mix_db=track.mixer.mix_db,
        codec=track.codec,
        rate_hz=track.rate_hz,
        channels=track.num_channels,
        bit_rate=track.bit_rate,
        media_length_s=_media_length_s(content, track),
        media_start_s=start_ms / 1000,
    )
    # Segments end at whole milliseconds, rounded up if the file ends within one.
    return Clip(waveform, len(waveform) <= (end_ms - start_ms - 1) * SAMPLES_PER_MS, media)


def _longest(tracks: Iterable[Track]) -> Track:
    """Return the track with the most audio, which represents all links of a chain."""
    return max(tracks, key=lambda track: track.num_decoded)


def _media_length_s(content: bytes | Path, track: Track) -> float | None:
    """Return the length of a file, or None if its header gives no length and its end was not read."""
    if track.content is not content:  # a link of a chain
        return measure_length_ms(content) / 1000
    return track.end_s if track.stated_end_s is None and track.reached_eof else track.stated_end_s


def _read_links(content: bytes | Path, start_ms: float, end_ms: int) -> Iterator[tuple[np.ndarray, Track]]:
    """Decode the part of an interval that each link of a chained file contains. Other files have one link."""
    num_wanted = round((end_ms - start_ms) * SAMPLES_PER_MS)
    for link, next_link in pairwise(chain(split_chain(content), [None])):
        assert link is not None
        if next_link is not None and start_ms >= (length_ms := measure_length_s(link) * 1000):
            start_ms -= length_ms
            continue
        first_ms = round(start_ms)
        waveform, track = _read(link, first_ms, first_ms + ceil(num_wanted / SAMPLES_PER_MS))
        if len(waveform) < num_wanted and track.reached_eof:
            _check_whole(link, track, first_ms)
        yield waveform[:num_wanted], track
        num_wanted -= len(waveform)
        start_ms = 0
        if num_wanted <= 0:
            return


def _read(content: bytes | Path, start_ms: int, end_ms: int) -> tuple[np.ndarray, Track]:
    """Decode, resample and cut to a float32 waveform (S,), which may be empty. Also returns the decoded track."""
    window_start_ms = max(start_ms - CUT_MARGIN_MS, 0) // CUT_GRID_MS * CUT_GRID_MS
    window_ms = (window_start_ms, end_ms + CUT_MARGIN_MS)
    # Try again from the file's start, because some files have a wrong index or none.
    for first_ms in (start_ms - SEEK_MARGIN_MS, 0):
        with open_media(content) as container:
            track = Track(content, container, window_ms, (start_ms, end_ms))
            waveform = np.concatenate([np.zeros(0, np.float32), *_resample(track, first_ms)])
        if first_ms <= 0 or not track.missed_start:
            break
    skip = (start_ms - window_start_ms) * SAMPLES_PER_MS
    return waveform[skip : skip + (end_ms - start_ms) * SAMPLES_PER_MS], track


def _resample(track: Track, first_ms: int) -> Iterator[np.ndarray]:
    resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE_HZ, options=RESAMPLER_OPTIONS)
    for block in track.blocks(first_ms):
        if not np.isfinite(block).all():
            raise BrokenMediaError(Reason.NOT_MEDIA, "some samples are not finite numbers")
        if track.is_lossless and (peak := np.abs(block).max(initial=0)) > MAX_FLOAT_LEVEL:
            detail = f"float samples reach {peak:.0f} instead of 1; divide them by 32768 or convert them to integers"
            raise BrokenMediaError(Reason.NOT_MEDIA, detail)
        # Lossy codecs overshoot, even if the encoder's input was within range.
        block.clip(-1, 1, out=block)
        if track.rate_hz == SAMPLE_RATE_HZ:
            yield block
            continue
        frame = AudioFrame.from_ndarray(block[None], format="flt", layout="mono")
        frame.sample_rate = track.rate_hz
        yield from (resampled.to_ndarray()[0] for resampled in resampler.resample(frame))
    yield from (resampled.to_ndarray()[0] for resampled in resampler.resample(None))


def _check_whole(content: bytes | Path, track: Track, start_ms: int) -> None:
    """Raise BrokenMediaError if the file is truncated, but not if it is merely shorter than the segment."""
    stated_s = track.stated_end_s or 0.0
    if start_ms < stated_s * 1000 and track.end_s < stated_s - END_TOLERANCE_S:
        detail = f"the file ends at {track.end_s:.1f} s, its header says {stated_s:.1f} s {track.error}"
        raise BrokenMediaError(Reason.TRUNCATED, detail.rstrip())
    if track.is_truncated or is_truncated_riff(content):
        raise BrokenMediaError(Reason.TRUNCATED, track.error or "the file has fewer bytes than its header states")


def _check_real(num_samples: int, track: Track) -> None:
    """Raise BrokenMediaError if the clip has less than one fbank frame, or if broken packets left half of it silent."""
    is_mostly_broken = track.error != "" and 2 * track.num_decoded <= (track.position or 0)
    if is_mostly_broken or (track.position is None and track.end_s == 0):
        raise BrokenMediaError(Reason.NOT_MEDIA, track.error or "the audio stream is empty")
    if track.num_decoded == 0 or num_samples < FRAME_LENGTH:
        detail = f"{num_samples} samples of the segment exist, at least {FRAME_LENGTH} are needed"
        raise BrokenMediaError(Reason.OUT_OF_RANGE, f"{detail}; the file ends at {track.end_s:.3f} s")
