import csv
import dataclasses
import hashlib
import http.client
import io
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import scipy.signal

from pipeline.errors import ConfigError, InputError, StoreError
from pipeline.miniature import Fault, Miniature, PlannedClip, SoundEvent, make_miniature, serve_miniature
from pipeline.miniature.classes import CLASSES, SILENCE
from pipeline.miniature.media import make_media
from pipeline.miniature.plan import FORMATS, RATES_HZ, plan_clips
from pipeline.records import Segment

make_small = partial(make_miniature, num_train=24, num_eval=8)  # the fixture's sizes
SINE = "/m/01v_m0"


def clip_with(miniature: Miniature, fault: Fault | None) -> PlannedClip:
    return next(clip for clip in miniature.clips if clip.fault == fault)


@contextmanager
def opened(address: str, clip: PlannedClip, **headers: str):
    request = urllib.request.Request(address.format(ytid=clip.segment.ytid), headers=headers)
    with urllib.request.urlopen(request, timeout=0.5) as response:
        yield response


def fetched(address: str, clip: PlannedClip) -> bytes:
    with opened(address, clip) as response:
        content = response.read()
        assert len(content) == int(response.headers["Content-Length"])
    return content


def status_of(address: str, clip: PlannedClip, **headers: str) -> int:
    try:
        with opened(address, clip, **headers) as response:
            return response.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@contextmanager
def opened_media(media: Path | bytes):
    with av.open(io.BytesIO(media) if isinstance(media, bytes) else media, "r") as container:
        yield container


def decoded(media: Path | bytes) -> tuple[np.ndarray, int]:
    """Return the mono mix from the media's first timestamp, and its sample rate."""
    with opened_media(media) as container:
        resampler = av.AudioResampler(format="fltp")
        frames = [frame for packed in container.decode(audio=0) for frame in resampler.resample(packed)]
        rate = frames[0].sample_rate
        # MP3 timestamps start after the encoder's delay; decoders of the remaining formats drop the delay.
        run_up = round(max(container.start_time or 0, 0) * rate / av.time_base)
        first = (frames[0].time or 0) * rate
        return np.concatenate([frame.to_ndarray().mean(axis=0) for frame in frames])[run_up - round(first) :], rate


def level_db(wave: np.ndarray) -> float:
    return 10 * np.log10(np.mean(np.square(wave)) + 1e-12)


def test_segment_tables_have_the_official_form(miniature):
    rows = []
    for split, num_segments in {"balanced_train": 6, "unbalanced_train": 18, "eval": 8}.items():
        lines = (miniature.metadata_folder / f"{split}_segments.csv").read_text().splitlines()
        table = list(csv.reader(lines[3:], skipinitialspace=True))
        labels = [label for row in table for label in row[3].split(",")]
        assert len(table) == num_segments
        assert lines[0].startswith("# ")
        assert lines[1] == (
            f"# num_ytids={num_segments}, num_segs={num_segments}, "
            f"num_unique_labels={len(set(labels))}, num_positive_labels={len(labels)}"
        )
        assert lines[2] == "# YTID, start_seconds, end_seconds, positive_labels"
        assert all(re.fullmatch(r'[\w-]{11}, \d+\.\d{3}, \d+\.\d{3}, "[^" ]+"', line, re.ASCII) for line in lines[3:])
        rows += [
            Segment(row[0], round(float(row[1]) * 1000), round(float(row[2]) * 1000), tuple(row[3].split(",")), split)
            for row in table
        ]
    assert set(rows) == {clip.segment for clip in miniature.clips}


def test_class_table_has_the_official_form(miniature):
    text = (miniature.metadata_folder / "class_labels_indices.csv").read_text()
    assert text.splitlines()[:2] == ["index,mid,display_name", '0,/m/02c8p,"Telephone dialing, DTMF"']
    table = list(csv.DictReader(io.StringIO(text)))
    assert [(row["index"], row["mid"], row["display_name"]) for row in table] == [
        (str(i), sound.mid, sound.name) for i, sound in enumerate(CLASSES)
    ]


def test_default_plan_has_the_long_tail():
    clips = plan_clips(num_train=400, num_eval=120, seed=0)
    splits = Counter(clip.segment.split for clip in clips)
    assert splits == {"balanced_train": 100, "unbalanced_train": 300, "eval": 120}

    train = Counter(mid for clip in clips if clip.segment.split != "eval" for mid in clip.segment.labels)
    assert min(train.values()) <= 8 and max(train.values()) > 200
    usable = [clip for clip in clips if clip.fault is None or clip.fault.reason is None]
    evaluated = Counter(mid for clip in usable if clip.segment.split == "eval" for mid in clip.segment.labels)
    assert len(evaluated) == len(train) == len(CLASSES) and min(evaluated.values()) >= 5
    assert {len(clip.segment.labels) for clip in clips} == {1, 2, 3}
    assert all(clip.segment.labels == (SILENCE,) for clip in clips if SILENCE in clip.segment.labels)

    rarest = min(train, key=lambda mid: train[mid])
    faulty = [clip for clip in clips if clip.fault]
    assert {clip.fault for clip in faulty} == set(Fault)
    assert 0.03 < len(faulty) / len(clips) < 0.05
    assert not any(rarest in clip.segment.labels for clip in faulty)


def test_default_plan_resembles_audioset():
    clips = plan_clips(num_train=400, num_eval=120, seed=0)
    ytids = {clip.segment.ytid for clip in clips}
    assert len(ytids) == 520 and {"-", "_"} <= {ytid[0] for ytid in ytids}
    assert {clip.format for clip in clips} == set(FORMATS)
    assert {clip.num_channels for clip in clips} == {1, 2}
    assert (min(clip.rate_hz for clip in clips), max(clip.rate_hz for clip in clips)) == (8_000, 48_000)
    assert all(12_000 <= clip.duration_ms <= 60_000 for clip in clips)
    assert np.mean([clip.segment.start_ms == 0 for clip in clips]) < 0.1
    assert 0 < np.mean([clip.segment.end_ms - clip.segment.start_ms < 10_000 for clip in clips]) < 0.04


def test_sounds_outside_a_segment_are_not_in_its_labels():
    clips = plan_clips(num_train=400, num_eval=120, seed=0)
    num_outside = 0
    for clip in clips:
        start_ms, end_ms = clip.segment.start_ms, clip.segment.end_ms
        inside = {sound.mid for sound in clip.sounds if sound.start_ms < end_ms and sound.end_ms > start_ms}
        outside = {sound.mid for sound in clip.sounds} - inside
        assert inside == set(clip.segment.labels)
        num_outside += bool(outside)
    assert num_outside > 0.9 * len(clips)


@pytest.mark.slow
@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize("form", FORMATS)
def test_sounds_are_at_their_planned_times(form, num_channels, tmp_path):
    for rate_hz in (RATES_HZ[form][0], RATES_HZ[form][-1]):
        segment = Segment("AAAAAAAAAAA", 4_000, 14_000, (SINE,), "eval")
        sound = SoundEvent(SINE, start_ms=5_000, end_ms=8_000, level_db=-10, pan=0.3)
        clip = PlannedClip(segment, form, rate_hz, num_channels, 15_000, -80, (sound,), None)
        make_media(clip, tmp_path)
        wave, rate = decoded(tmp_path / f"AAAAAAAAAAA.{form}")
        assert len(wave) / rate == pytest.approx(15, abs=0.3)
        assert level_db(wave[int(5.1 * rate) : int(7.9 * rate)]) == pytest.approx(-13, abs=1)
        assert level_db(wave[: int(4.95 * rate)]) < -60
        assert level_db(wave[int(8.05 * rate) :]) < -60


def test_silence_is_silent_unlike_its_surroundings(miniature):
    clip = next(clip for clip in miniature.clips if clip.segment.labels == (SILENCE,))
    wave, rate = decoded(miniature.media_folder / str(clip.file_name))
    inside = wave[clip.segment.start_ms * rate // 1000 : clip.segment.end_ms * rate // 1000]
    outside = wave[: clip.segment.start_ms * rate // 1000]
    assert level_db(inside) < -60 < -45 < level_db(outside)


@pytest.mark.parametrize("sound", CLASSES, ids=lambda sound: sound.name)
def test_sounds_are_clean_and_repeatable(sound):
    for rate in (8_000, 44_100):
        first, again = (sound.make(np.random.default_rng(3), 3 * rate + 7, rate) for _ in range(2))
        assert first.shape == (3 * rate + 7,) and first.dtype == np.float32
        assert np.isfinite(first).all() and np.array_equal(first, again)
        assert first.any() == (sound.mid != SILENCE)


@pytest.mark.parametrize(("name", "slope_db"), [("White noise", 0), ("Pink noise", -3)])
def test_noises_have_their_spectral_slope(name, slope_db):
    make = next(sound.make for sound in CLASSES if sound.name == name)
    frequency_hz, power = scipy.signal.welch(make(np.random.default_rng(0), 480_000, 16_000), 16_000, nperseg=1024)
    heard = (frequency_hz > 100) & (frequency_hz < 7_000)
    slope, _ = np.polyfit(np.log2(frequency_hz[heard]), 10 * np.log10(power[heard]), 1)
    assert slope == pytest.approx(slope_db, abs=0.3)


def test_sine_wave_is_one_line():
    make = next(sound.make for sound in CLASSES if sound.mid == SINE)
    wave = make(np.random.default_rng(0), 160_000, 16_000)
    power = np.square(np.abs(np.fft.rfft(wave * np.hanning(len(wave)))))
    peak = int(power.argmax())
    assert power[peak - 3 : peak + 4].sum() / power.sum() > 0.999


def test_server_delivers_media_with_type_and_length(miniature, media_address):
    types = {"webm": "audio/webm", "m4a": "audio/mp4", "mp3": "audio/mpeg", "flac": "audio/flac", "wav": "audio/wav"}
    for form in {clip.format for clip in miniature.clips if clip.fault is None}:
        clip = next(clip for clip in miniature.clips if clip.fault is None and clip.format == form)
        with opened(media_address, clip) as response:
            assert response.headers["Content-Type"] == types[form]
        assert fetched(media_address, clip) == (miniature.media_folder / str(clip.file_name)).read_bytes()


@pytest.mark.parametrize(
    ("wanted", "part", "content_range"),
    [
        ("bytes=0-99", slice(0, 100), "bytes 0-99/{}"),
        ("bytes=5000-", slice(5000, None), "bytes 5000-{last}/{}"),
        ("bytes=-300", slice(-300, None), "bytes {from_end}-{last}/{}"),
    ],
)
def test_server_delivers_ranges(miniature, media_address, wanted, part, content_range):
    clip = clip_with(miniature, None)
    content = (miniature.media_folder / str(clip.file_name)).read_bytes()
    size = len(content)
    with opened(media_address, clip, Range=wanted) as response:
        assert response.status == 206
        assert response.read() == content[part]
        expected = content_range.format(size, last=size - 1, from_end=size - 300)
        assert response.headers["Content-Range"] == expected


def test_server_refuses_impossible_ranges(miniature, media_address):
    clip = clip_with(miniature, None)
    for wanted in ("bytes=99999999-", "bytes=-", "bytes=20-10", "seconds=1-2"):
        assert status_of(media_address, clip, Range=wanted) == 416


def test_missing_clip_is_404(miniature, media_address):
    assert status_of(media_address, clip_with(miniature, Fault.MISSING)) == 404
    with pytest.raises(urllib.error.HTTPError, match="404") as caught:
        urllib.request.urlopen(media_address.format(ytid="never_heard"))
    caught.value.close()


def test_busy_clip_is_served_at_the_third_request(miniature):
    clip = clip_with(miniature, Fault.BUSY_TWICE)
    with serve_miniature(miniature.folder) as server:
        assert [status_of(server.media_address, clip) for _ in range(4)] == [503, 503, 200, 200]


def test_short_clip_ends_within_its_segment(miniature, media_address):
    clip = clip_with(miniature, Fault.SHORT)
    wave, rate = decoded(fetched(media_address, clip))
    assert clip.segment.start_ms + 1_000 < 1000 * len(wave) / rate < clip.segment.end_ms - 500


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "wav"])
def test_truncated_clip_ends_before_its_segment(form, tmp_path):
    planned = next(clip for clip in plan_clips(24, 8, seed=0) if clip.fault == Fault.TRUNCATED)
    clip = dataclasses.replace(planned, format=form, rate_hz=RATES_HZ[form][-1])
    make_media(clip, tmp_path)
    content = (tmp_path / str(clip.file_name)).read_bytes()
    with opened_media(content) as container:
        assert container.duration is not None
        assert container.duration / 1e6 == pytest.approx(clip.duration_ms / 1000, abs=0.3)
    wave, rate = decoded(content)
    assert clip.segment.start_ms < 1000 * len(wave) / rate < clip.segment.end_ms - 1_000


def test_truncated_clip_is_served_with_its_true_length(miniature, media_address):
    clip = clip_with(miniature, Fault.TRUNCATED)
    assert fetched(media_address, clip) == (miniature.media_folder / str(clip.file_name)).read_bytes()


def test_cut_off_clip_ends_before_its_length(miniature, media_address):
    clip = clip_with(miniature, Fault.CUT_OFF)
    for headers in ({}, {"Range": "bytes=10-"}):
        with opened(media_address, clip, **headers) as response, pytest.raises(http.client.IncompleteRead):
            response.read()


def test_clip_without_audio_is_a_video(miniature, media_address):
    clip = clip_with(miniature, Fault.NO_AUDIO)
    with opened(media_address, clip) as response:
        assert response.headers["Content-Type"] == "video/mp4"
    with opened_media(fetched(media_address, clip)) as container:
        assert (len(container.streams.audio), len(container.streams.video)) == (0, 1)
        assert len(list(container.decode(video=0))) == 60


def test_web_page_comes_with_status_200(miniature, media_address):
    with opened(media_address, clip_with(miniature, Fault.WEB_PAGE)) as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/html")
        assert response.read().startswith(b"<!DOCTYPE html>")


def test_stalled_clip_ends_when_the_server_closes(miniature):
    clip = clip_with(miniature, Fault.STALL)
    threads = set(threading.enumerate())
    with serve_miniature(miniature.folder) as server:
        with opened(server.media_address, clip) as response, pytest.raises(TimeoutError):
            response.read()
        waiting = urllib.request.urlopen(server.media_address.format(ytid=clip.segment.ytid), timeout=10)
        waiting.read(100)
    with waiting, pytest.raises(http.client.IncompleteRead):  # instead of a time-out
        waiting.read()
    assert set(threading.enumerate()) <= threads


def test_port_in_use_is_reported(miniature, media_address):
    port = int(media_address.split(":")[2].split("/")[0])
    with (
        pytest.raises(ConfigError, match=rf"port {port} of 127.0.0.1.*in use"),
        serve_miniature(miniature.folder, port),
    ):
        pass


def test_missing_or_invalid_miniature_is_reported(tmp_path):
    with pytest.raises(InputError, match="make one"), serve_miniature(tmp_path):
        pass


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_seeds_give_different_clips(miniature):
    assert {clip.segment for clip in plan_clips(24, 8, seed=1)}.isdisjoint(clip.segment for clip in miniature.clips)


def test_second_call_reuses_the_miniature(miniature):
    def times() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in miniature.folder.rglob("*")}

    before = times()
    again = make_small(miniature.folder, on_progress=lambda *_: pytest.fail("made something"))
    assert again == miniature and times() == before


@pytest.mark.process
def test_killed_call_is_repeated_and_replaces_an_older_miniature(miniature, tmp_path):
    folder = tmp_path / "killed"
    kill = "lambda num_made, num_clips: num_made == 5 and os.kill(os.getpid(), 9)"
    code = (
        "import os, pathlib; from pipeline.miniature import make_miniature;"
        f"make_miniature(pathlib.Path({str(folder)!r}), num_train=24, num_eval=8, on_progress={kill})"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not folder.exists()

    (folder / "media").mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    (folder / "media" / "left over").touch()
    progress = []
    make_small(folder, num_workers=1, on_progress=lambda *made: progress.append(made))
    assert progress == [(i, 32) for i in range(1, 33)]
    assert digests(folder) == digests(miniature.folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_folder_with_other_files_is_unchanged(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(StoreError, match="other files"):
        make_small(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_too_small_sizes_are_rejected(tmp_path):
    with pytest.raises(ConfigError, match="at least 24 training and 8 evaluation"):
        make_miniature(tmp_path, num_train=10, num_eval=8)
