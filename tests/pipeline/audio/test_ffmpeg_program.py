"""The media reader against the FFmpeg program: length and level of generated files, intact and damaged.

The program is another version of FFmpeg than the reader's, with its own handling of timestamps. Each difference is
explained by a name, or the test fails.
"""

import logging
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.audio.decode import DecodeError, decode_file
from pipeline.records import Reason

log = logging.getLogger(__name__)
pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the program ffmpeg is not installed")

NUM_FILES, NUM_QUICK_FILES = 300, 10
MAX_DIFFERENCE_S, MAX_DIFFERENCE_DB = 0.03, 0.2
MAX_LOST_S, MAX_DELAY_S = 0.04, 0.12
"""Most that encoders drop of a sound (a frame of AC-3) and add to it (frames and priming samples)."""
FORMS = {
    # muxer, encoder: sample rates, numbers of channels
    ("wav", "pcm_s16le"): ((8_000, 11_025, 44_100, 48_000), (1, 2, 6)),
    ("wav", "pcm_s24le"): ((16_000, 96_000), (1, 2)),
    ("wav", "pcm_f32le"): ((16_000, 44_100), (1, 2)),
    ("wav", "pcm_u8"): ((8_000, 22_050), (1, 2)),
    ("wav", "pcm_mulaw"): ((8_000,), (1,)),
    ("wav", "adpcm_ms"): ((22_050,), (1, 2)),
    ("wav", "libmp3lame"): ((44_100,), (1, 2)),
    ("w64", "pcm_s16le"): ((48_000,), (1, 2)),
    ("aiff", "pcm_s16be"): ((44_100,), (1, 2)),
    ("au", "pcm_s16be"): ((16_000,), (1, 2)),
    ("caf", "pcm_s16le"): ((44_100,), (1, 2)),
    ("flac", "flac"): ((16_000, 44_100, 96_000), (1, 2, 6)),
    ("ogg", "flac"): ((44_100,), (1, 2)),
    ("ogg", "libopus"): ((16_000, 48_000), (1, 2)),
    ("ogg", "libvorbis"): ((22_050, 44_100), (1, 2)),
    ("ogg", "libspeex"): ((16_000,), (1,)),
    ("webm", "libopus"): ((48_000,), (1, 2)),
    ("webm", "libvorbis"): ((44_100,), (1, 2)),
    ("matroska", "flac"): ((48_000,), (1, 2)),
    ("matroska", "pcm_s16le"): ((44_100,), (1, 2)),
    ("mp3", "libmp3lame"): ((16_000, 22_050, 44_100, 48_000), (1, 2)),
    ("mp2", "mp2"): ((44_100, 48_000), (1, 2)),
    ("adts", "aac"): ((16_000, 44_100), (1, 2)),
    ("ipod", "aac"): ((22_050, 44_100, 48_000), (1, 2, 6)),
    ("ipod", "alac"): ((44_100,), (1, 2)),
    ("mov", "pcm_s16le"): ((48_000,), (1, 2)),
    ("ac3", "ac3"): ((48_000,), (1, 2, 6)),
    ("eac3", "eac3"): ((48_000,), (2, 6)),
    ("mpegts", "mp2"): ((48_000,), (2,)),
    ("mpegts", "aac"): ((44_100,), (2,)),
    ("flv", "aac"): ((44_100,), (2,)),
    ("flv", "libmp3lame"): ((44_100,), (2,)),
    ("avi", "libmp3lame"): ((44_100,), (1, 2)),
    ("avi", "pcm_s16le"): ((22_050,), (1, 2)),
    ("asf", "wmav2"): ((44_100,), (1, 2)),
    ("wv", "wavpack"): ((44_100,), (1, 2)),
    ("tta", "tta"): ((44_100,), (1, 2)),
    ("voc", "pcm_u8"): ((8_000,), (1,)),
}
OPTIONS = {
    "libmp3lame": ((), ("-q:a", "2"), ("-q:a", "2", "-write_xing", "0"), ("-b:a", "320k")),
    "aac": ((), ("-movflags", "frag_keyframe+empty_moov"), ("-movflags", "faststart")),
}


@dataclass(frozen=True)
class Case:
    """A generated file."""

    muxer: str
    codec: str
    rate: int
    num_channels: int
    damage: str
    options: tuple[str, ...]
    seed: int

    @property
    def length_s(self) -> float:
        """Length of the audio before any damage."""
        return len(make_sound(self)) / self.rate


@dataclass(frozen=True)
class Sound:
    """A decoded file, mono at 16 kHz, or the reason for its refusal."""

    waveform: np.ndarray
    reason: str = ""

    @property
    def length_s(self) -> float:
        return len(self.waveform) / 16_000

    @property
    def energy_db(self) -> float:
        """Energy without the mean. Damaged floats may be infinite."""
        with np.errstate(all="ignore"):
            energy = np.square(self.waveform - self.waveform.mean()).sum() if len(self.waveform) else 0
            return float(10 * np.log10(energy + 1e-9))


def intact(content: bytes, random: np.random.Generator) -> bytes:
    return content


def cut(content: bytes, random: np.random.Generator) -> bytes:
    return content[: int(len(content) * random.uniform(0.3, 0.95))]


def overwritten(content: bytes, random: np.random.Generator) -> bytes:
    """Noise over 300 bytes behind the header."""
    at = int(len(content) * random.uniform(0.3, 0.9))
    return content[:at] + random.bytes(300) + content[at + 300 :]


def shortened(content: bytes, random: np.random.Generator) -> bytes:
    """Without 1,000 bytes behind the header."""
    at = int(len(content) * random.uniform(0.3, 0.9))
    return content[:at] + content[at + 1_000 :]


def joined(content: bytes, random: np.random.Generator) -> bytes:
    return content * 2


def padded(content: bytes, random: np.random.Generator) -> bytes:
    return content + bytes(5_000)


def tagged(content: bytes, random: np.random.Generator) -> bytes:
    """With an ID3 tag before and after."""
    return b"ID3\x04\0\0\0\0\x08\0" + bytes(1_024) + content + b"TAG" + bytes(125)


DAMAGES = {each.__name__: each for each in (intact, cut, overwritten, shortened, joined, padded, tagged)}
DAMAGES["piped"] = intact  # written to a pipe, so that no header can be completed


def make_cases(num_cases: int) -> list[Case]:
    random = np.random.default_rng(7)
    cases = []
    for number in range(num_cases):
        (muxer, codec), (rates, channels) = list(FORMS.items())[number % len(FORMS)]
        options = OPTIONS.get(codec, ((),))
        cases.append(
            Case(
                muxer,
                codec,
                int(random.choice(rates)),
                int(random.choice(channels)),
                str(random.choice(list(DAMAGES), p=[0.3, *[0.1] * 7])),
                options[random.integers(len(options))] if muxer in ("mp3", "ipod") else (),
                number,
            )
        )
    return cases


def make_sound(case: Case) -> np.ndarray:
    """Noise, tones and silence (S, C) of 1 to 6 s."""
    random = np.random.default_rng(case.seed)
    parts = []
    for _ in range(random.integers(2, 7)):
        num_samples = int(case.rate * random.uniform(0.4, 1.0))
        times_S = np.arange(num_samples) / case.rate
        level = 10 ** random.uniform(-2, -0.5)
        kinds = (
            level * np.sin(2 * np.pi * random.uniform(100, 3_000) * times_S),
            level * random.uniform(-1, 1, num_samples),
            np.zeros(num_samples),
        )
        parts.append(kinds[random.integers(len(kinds))])
    mono = np.concatenate([*parts, 0.1 * np.sin(2 * np.pi * 440 * np.arange(case.rate // 4) / case.rate)])
    gains = random.uniform(0.3, 1, case.num_channels)
    return (mono[:, None] * gains).astype("<f4")


def run(*command: object, stdin: bytes = b"") -> bytes:
    """Return a program's output, even if it fails in the middle of a damaged file."""
    return subprocess.run([*map(str, command)], input=stdin, capture_output=True, timeout=60).stdout


def write_file(case: Case, path: Path) -> None:
    source = ("-f", "f32le", "-ar", case.rate, "-ac", case.num_channels, "-i", "-")
    target = "pipe:1" if case.damage == "piped" else path
    encoder = ("-c:a", case.codec, *case.options, "-strict", "experimental")
    output = run("ffmpeg", "-v", "error", *source, *encoder, "-f", case.muxer, target, stdin=make_sound(case).tobytes())
    assert case.damage == "piped" or path.exists(), f"this ffmpeg has no encoder {case.codec}"
    content = output if case.damage == "piped" else path.read_bytes()
    path.write_bytes(DAMAGES[case.damage](content, np.random.default_rng(case.seed)))


def read_with_program(path: Path, num_channels: int) -> Sound:
    """Decode to 16 kHz and average the channels, as the reader does."""
    target = ("-map", "0:a:0", "-ar", 16_000, "-ac", num_channels, "-f", "f32le", "-")
    output = run("ffmpeg", "-v", "error", "-i", path, *target)
    samples = np.frombuffer(output[: len(output) // (4 * num_channels) * 4 * num_channels], "<f4")
    return Sound(samples.reshape(-1, num_channels).mean(1))


def read_with_reader(path: Path) -> Sound:
    try:
        return Sound(decode_file(path))
    except DecodeError as error:
        return Sound(np.zeros(0), str(error.reason))


LOST_DATA = ("cut", "overwritten", "shortened")
FORMATS_WITH_TAGS = ("adts", "aiff", "ac3", "eac3", "flac", "mp2", "mp3", "tta")


def both_refuse(case: Case, ours: Sound, program: Sound) -> bool:
    return bool(ours.reason) and program.length_s < MAX_DIFFERENCE_S


def data_is_missing(case: Case, ours: Sound, program: Sound) -> bool:
    """The reader refuses a file that ends before the length in its header, so that a rerun fetches it again."""
    return ours.reason == Reason.TRUNCATED and case.damage in LOST_DATA and program.length_s < case.length_s


def tag_is_in_the_way(case: Case, ours: Sound, program: Sound) -> bool:
    """FFmpeg 7 and later refuse an ID3 tag before a format that has no such tags."""
    return case.damage == "tagged" and bool(ours.reason) and case.muxer not in FORMATS_WITH_TAGS


def samples_are_impossible(case: Case, ours: Sound, program: Sound) -> bool:
    """Noise read as floats gives huge numbers."""
    return case.damage == "overwritten" and case.codec == "pcm_f32le" and ours.reason == Reason.NOT_MEDIA


def gap_is_silence(case: Case, ours: Sound, program: Sound) -> bool:
    """The reader keeps the times after a gap. The program closes it."""
    same_energy = abs(ours.energy_db - program.energy_db) < MAX_DIFFERENCE_DB
    return case.damage in LOST_DATA and program.length_s < ours.length_s < case.length_s + MAX_DELAY_S and same_energy


def wma_starts_later(case: Case, ours: Sound, program: Sound) -> bool:
    """The program drops two frames at the start, although the encoder's delay is one."""
    return case.codec == "wmav2" and abs(ours.length_s - program.length_s - 2 * 2_048 / case.rate) < 0.001


def program_gives_up(case: Case, ours: Sound, program: Sound) -> bool:
    """FFmpeg 5 can't read W64 with trailing zeros."""
    return case.muxer == "w64" and case.damage == "padded" and not len(program.waveform)


def damage_is_concealed_differently(case: Case, ours: Sound, program: Sound) -> bool:
    """Damaged frames of two versions of a decoder differ by a frame or two."""
    is_close = abs(ours.length_s - program.length_s) < 0.1 and abs(ours.energy_db - program.energy_db) < 1
    return case.damage in (*LOST_DATA, "tagged", "padded") and not ours.reason and is_close


EXPLANATIONS: tuple[Callable[[Case, Sound, Sound], bool], ...] = (
    both_refuse,
    data_is_missing,
    tag_is_in_the_way,
    samples_are_impossible,
    gap_is_silence,
    wma_starts_later,
    program_gives_up,
    damage_is_concealed_differently,
)


def explain(case: Case, ours: Sound, program: Sound) -> str:
    """Return `equal`, the name of the explanation for a difference, or an empty text."""
    is_equal_length = abs(ours.length_s - program.length_s) <= MAX_DIFFERENCE_S
    if not ours.reason and is_equal_length and abs(ours.energy_db - program.energy_db) <= MAX_DIFFERENCE_DB:
        return "equal"
    return next((each.__name__ for each in EXPLANATIONS if each(case, ours, program)), "")


def compare(cases: Sequence[Case], folder: Path) -> Counter[str]:
    counts = Counter[str]()
    for case in cases:
        path = folder / f"{case.seed}.{case.muxer}"
        write_file(case, path)
        ours, program = read_with_reader(path), read_with_program(path, case.num_channels)
        path.unlink()
        found = f"{case}: {ours.length_s:.3f} s, {ours.energy_db:.2f} dB {ours.reason}; with the program"
        found += f" {program.length_s:.3f} s, {program.energy_db:.2f} dB"
        explanation = explain(case, ours, program)
        assert explanation, found
        if case.damage in ("intact", "padded") and not ours.reason:
            assert -MAX_LOST_S < ours.length_s - case.length_s < MAX_DELAY_S, found
        counts[explanation] += 1
    return counts


def test_some_files_are_as_long_and_loud_as_for_the_program(tmp_path: Path) -> None:
    counts = compare(make_cases(NUM_FILES)[:: NUM_FILES // NUM_QUICK_FILES], tmp_path)
    assert counts["equal"] >= NUM_QUICK_FILES / 2, counts


@pytest.mark.rehearsal
def test_all_files_are_as_long_and_loud_as_for_the_program(tmp_path: Path) -> None:
    counts = compare(make_cases(NUM_FILES), tmp_path)
    log.info("%s", counts)
    assert counts["equal"] > 0.7 * NUM_FILES, counts
