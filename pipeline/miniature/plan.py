"""Plan a miniature's segments, sounds, encodings and faults from a seed."""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum

import numpy as np
from numpy.random import Generator

from pipeline.errors import ConfigError
from pipeline.miniature.classes import CLASSES, SILENCE
from pipeline.miniature.tail import Labels, assign_labels, choose_faulty
from pipeline.records import Reason, Segment

RECIPE = 2
"""Version of the media. Increase it if the same plan now gives different media, so that old miniatures are rebuilt."""
MIN_TRAIN, MIN_EVAL = 24, 8
"""The smallest numbers of segments that can contain every class and every fault."""
FAULTY_SHARE = 0.04
MIN_DURATION_MS, MAX_DURATION_MS = 12_000, 60_000
GUARD_MS = 100
"""Length of the silence before and after a segment. It is needed because codecs smear sounds in time."""
ID_LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")

FORMATS = {"webm": 0.38, "m4a": 0.3, "mp3": 0.12, "wav": 0.12, "flac": 0.08}
RATES_HZ = {
    "webm": (8000, 16000, 24000, 48000),
    "m4a": (8000, 16000, 22050, 32000, 44100),
    "mp3": (8000, 16000, 22050, 44100),
    "wav": (8000, 11025, 16000, 22050),
    "flac": (8000, 16000, 22050, 48000),
}
LEVELS_DB = {sound.mid: sound.level_db for sound in CLASSES}


class Fault(StrEnum):
    """A planned fault. Its reason is the expected reason of the failure, or None if the clip remains available."""

    reason: Reason | None

    def __new__(cls, value: str, reason: Reason | None) -> "Fault":
        fault = str.__new__(cls, value)
        fault._value_ = value
        fault.reason = reason
        return fault

    MISSING = "missing", Reason.NOT_FOUND
    """The server responds with status 404."""
    BUSY_TWICE = "busy_twice", None
    """The server responds to the first two requests with status 503."""
    SHORT = "short", None
    """The media end before the segment ends."""
    TRUNCATED = "truncated", Reason.TRUNCATED
    """The file ends before the segment ends, although its header gives a greater length."""
    CUT_OFF = "cut_off", Reason.TRUNCATED
    """The connection is closed after half of the announced length."""
    NO_AUDIO = "no_audio", Reason.NO_AUDIO
    """The file is a video without sound."""
    WEB_PAGE = "web_page", Reason.NOT_MEDIA
    """The server responds with status 200 and an HTML page."""
    STALL = "stall", Reason.TIMED_OUT
    """The server sends a few bytes and then stops sending."""


@dataclass(frozen=True)
class SoundEvent:
    """A sound of one class, at a certain time in the media."""

    mid: str
    start_ms: int
    end_ms: int
    level_db: float
    pan: float
    """Position between the left (0) and the right (1) channel."""


@dataclass(frozen=True)
class PlannedClip:
    """A segment, and the settings for creating and serving its media."""

    segment: Segment
    format: str
    rate_hz: int
    num_channels: int
    duration_ms: int
    floor_db: float
    """Level of the background noise."""
    sounds: tuple[SoundEvent, ...]
    fault: Fault | None

    @property
    def file_name(self) -> str | None:
        """Name of the media file, or None if the clip has no media file."""
        if self.fault in (Fault.MISSING, Fault.WEB_PAGE):
            return None
        return f"{self.segment.ytid}.{'mp4' if self.fault == Fault.NO_AUDIO else self.format}"


def plan_clips(num_train: int, num_eval: int, seed: int) -> tuple[PlannedClip, ...]:
    """Plan all clips of a miniature. The same arguments always give the same plan.

    Raises ConfigError if the sizes are too small to include every class and every fault.
    """
    if num_train < MIN_TRAIN or num_eval < MIN_EVAL:
        raise ConfigError(
            f"a miniature needs at least {MIN_TRAIN} training and {MIN_EVAL} evaluation segments, "
            f"found num_train={num_train} and num_eval={num_eval}; increase them"
        )
    rng = np.random.default_rng(seed)
    assigned = [(split, row) for split, rows in assign_labels(rng, num_train, num_eval).items() for row in rows]
    faults = _plan_faults(rng, assigned)
    ytids = _make_ids(rng, len(assigned))
    return tuple(
        _plan_clip(rng, Segment(ytid, 0, 0, labels, split), faults.get(i))
        for i, (ytid, (split, labels)) in enumerate(zip(ytids, assigned, strict=True))
    )


def to_json(clips: tuple[PlannedClip, ...]) -> str:
    return json.dumps({"recipe": RECIPE, "clips": [asdict(clip) for clip in clips]}, indent=1)


def from_json(text: str) -> tuple[PlannedClip, ...]:
    return tuple(_clip_from(**fields) for fields in json.loads(text)["clips"])


def _clip_from(segment: dict, sounds: list[dict], fault: str | None, **fields) -> PlannedClip:
    segment["labels"] = tuple(segment["labels"])
    return PlannedClip(
        segment=Segment(**segment),
        sounds=tuple(SoundEvent(**sound) for sound in sounds),
        fault=Fault(fault) if fault else None,
        **fields,
    )


def _plan_faults(rng: Generator, assigned: list[tuple[str, Labels]]) -> dict[int, Fault]:
    faults = list(Fault)
    num_faulty = max(len(faults), round(FAULTY_SHARE * len(assigned)))
    groups = [("eval" if split == "eval" else "train", labels) for split, labels in assigned]
    faulty = choose_faulty(rng, groups, num_faulty)
    # Plan only one stall, because each stall makes the client wait until its deadline.
    repeated = [fault for fault in faults if fault != Fault.STALL]
    faults += [repeated[i % len(repeated)] for i in range(num_faulty - len(faults))]
    return dict(zip(faulty, faults, strict=True))


def _make_ids(rng: Generator, num_ids: int) -> list[str]:
    ids = ["".join(rng.choice(ID_LETTERS, 11)) for _ in range(num_ids)]
    # Include ids that start with `-` or `_`, because code may mistake them for options or separators. One in thirty
    # real ids starts like this.
    for first, i in zip("-_", rng.choice(num_ids, 2, replace=False), strict=True):
        ids[i] = first + ids[i][1:]
    return ids


def _plan_clip(rng: Generator, blank: Segment, fault: Fault | None) -> PlannedClip:
    labels = blank.labels
    duration_ms = min(MAX_DURATION_MS, MIN_DURATION_MS + round(rng.exponential(5_000)))
    if rng.random() < 0.02:
        duration_ms = round(rng.uniform(MAX_DURATION_MS / 2, MAX_DURATION_MS))
    length_ms = 10_000 if rng.random() > 0.015 else int(rng.integers(2, 10)) * 1000
    start_ms = int(rng.integers(1, (duration_ms - length_ms) // 1000 + 1)) * 1000 if rng.random() > 0.03 else 0
    if rng.random() < 0.03:
        start_ms = max(0, start_ms - int(rng.integers(1, 1000)))
    if fault == Fault.SHORT:
        start_ms = (duration_ms - round(length_ms * rng.uniform(0.5, 0.8))) // 1000 * 1000
    end_ms = start_ms + length_ms

    inside = [_plan_sound(rng, mid, start_ms, min(end_ms, duration_ms)) for mid in labels]
    before = _plan_others(rng, labels, 0, start_ms - GUARD_MS)
    after = _plan_others(rng, labels, end_ms + GUARD_MS, duration_ms)
    # Never truncate a WAV file. FFmpeg derives its length from the file size, so a reader can't detect the damage.
    formats = [name for name in FORMATS if not (fault == Fault.TRUNCATED and name == "wav")]
    weights = np.array([FORMATS[name] for name in formats])
    form = str(rng.choice(formats, p=weights / weights.sum()))
    return PlannedClip(
        segment=Segment(blank.ytid, start_ms, end_ms, labels, blank.split),
        format=form,
        rate_hz=int(rng.choice(RATES_HZ[form])),
        num_channels=1 if rng.random() < 0.6 else 2,
        duration_ms=duration_ms,
        floor_db=round(float(rng.uniform(-85, -65)), 1),
        sounds=tuple([*before, *inside, *after]),
        fault=fault,
    )


def _plan_sound(rng: Generator, mid: str, from_ms: int, to_ms: int) -> SoundEvent:
    """Plan a sound that fills at least half of the interval."""
    available_ms = to_ms - from_ms
    length_ms = round(available_ms * rng.uniform(0.5, 1.0))
    start_ms = from_ms + round(float(rng.uniform(0, available_ms - length_ms)))
    level_db = round(float(rng.uniform(*LEVELS_DB[mid])), 1)
    return SoundEvent(mid, start_ms, start_ms + length_ms, level_db, round(float(rng.uniform(0.25, 0.75)), 2))


def _plan_others(rng: Generator, labels: Labels, from_ms: int, to_ms: int) -> list[SoundEvent]:
    """Fill an interval outside the segment with sounds of one or two classes that are not among the segment's
    labels."""
    if to_ms - from_ms < 500:
        return []
    others = [sound.mid for sound in CLASSES if sound.mid not in (*labels, SILENCE)]
    mids = rng.choice(others, int(rng.integers(1, 3)), replace=False).tolist()
    return [_plan_sound(rng, mid, from_ms, to_ms) for mid in mids]
