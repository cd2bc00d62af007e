"""Thousands of mutated files: readers raise only the project's errors, with short messages, and never hang.

Part of `make rehearsal`. Each case has a fixed seed, so failures are reproducible.
"""

import faulthandler
import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ast_model.checkpoints.checkpoint import Checkpoint, LoopState, read_checkpoint, save_checkpoint
from pipeline.audio.decode import Clip, decode_file, decode_flac, decode_segment, encode_flac
from pipeline.audio.length import measure_length_ms
from pipeline.config import FetchConfig
from pipeline.copies.containers import list_copy
from pipeline.copies.members import read_members
from pipeline.errors import AudioTaggingError
from pipeline.labels import parse_labels, read_labels
from pipeline.miniature import Miniature, serve_miniature
from pipeline.recordings.own_sounds import CutConfig, read_sounds
from pipeline.recordings.tables import write_tables
from pipeline.records import Failure, Media, Segment
from pipeline.segments import read_segments
from pipeline.shards.format import read_sidecar
from pipeline.sources.table import read_media_table
from pipeline.store.storage import Store
from tests.pipeline.audio.encoding import encode, tone

pytestmark = pytest.mark.rehearsal

NUM_CASES = 400
HANG_S = 60
MAX_MESSAGE_CHARS = 2_000
FETCH = FetchConfig(max_media_bytes=2**20)
SEGMENTS = [Segment(f"{number:011d}", 1_000, 2_000, ("/m/09x0r",), "eval") for number in range(4)]

Generator = np.random.Generator
PIECES = (
    b"",
    b"\n",
    b",",
    b";",
    b'"',
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"../",
    b"http://127.0.0.1:9/",
    b"nan",
    b"-1",
)
NUMBERS = (
    b"9" * 6_000,
    b"-9" * 40,
    b"1e999",
    b"0",
    b"2147483648",
    b"18446744073709551616",
    b"[]",
    b"{}",
    b"null",
    b'"x"',
)


def mutate(content: bytes, generator: Generator) -> bytes:
    """Apply one to three mutations, more often near the start, where headers are."""
    for _ in range(generator.integers(1, 4)):
        at = int(
            generator.integers(0, max(1, min(len(content), int(generator.choice([100, 2_000, len(content) + 1])))))
        )
        size = int(generator.choice([1, 4, 8, 100, 3_000]))
        content = MUTATIONS[generator.integers(len(MUTATIONS))](content, at, size, generator)
    return content


def _noise(content: bytes, at: int, size: int, generator: Generator) -> bytes:
    return content[:at] + generator.bytes(size) + content[at + size :]


def _extreme(content: bytes, at: int, size: int, generator: Generator) -> bytes:
    """Overwrite up to 8 bytes with all ones, all zeros or the largest positive number."""
    width = min(size, 8)
    return (
        content[:at]
        + [b"\xff" * width, bytes(width), b"\x7f" + b"\xff" * (width - 1)][generator.integers(3)]
        + content[at + width :]
    )


def _cut(content: bytes, at: int, size: int, generator: Generator) -> bytes:
    return content[:at]


def _remove(content: bytes, at: int, size: int, generator: Generator) -> bytes:
    return content[:at] + content[at + size :]


def _repeat(content: bytes, at: int, size: int, generator: Generator) -> bytes:
    return content[:at] + content[at : at + size] * int(generator.choice([2, 3, 50])) + content[at:]


def _insert(content: bytes, at: int, size: int, generator: Generator) -> bytes:
    piece = PIECES[generator.integers(len(PIECES))] if generator.random() < 0.9 else b"x" * 200_000
    return content[:at] + piece + content[at:]


def _renumber(content: bytes, at: int, size: int, generator: Generator) -> bytes:
    """Replace the next number or quoted word in a text."""
    if not (found := re.compile(rb'\d+(\.\d+)?|"[^"]*"').search(content, at)):
        return content
    return content[: found.start()] + NUMBERS[generator.integers(len(NUMBERS))] + content[found.end() :]


MUTATIONS = (_noise, _extreme, _cut, _remove, _repeat, _insert, _renumber)


def check_mutations(content: bytes, read: Callable[[bytes], object]) -> None:
    """Read a valid file and its mutations."""
    read(content)
    for case in range(NUM_CASES):
        mutated = mutate(content, np.random.default_rng(case))
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        try:
            read(mutated)
        except AudioTaggingError as error:
            assert len(str(error)) < MAX_MESSAGE_CHARS, f"case {case}: {str(error)[:MAX_MESSAGE_CHARS]}"
        except BaseException as error:
            error.add_note(f"case {case}")
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()


def decode(media: Media | Failure) -> None:
    clip = media if isinstance(media, Failure) else decode_segment(media, 1_000, 2_000)
    if isinstance(clip, Failure):
        assert clip.detail and len(clip.detail) < MAX_MESSAGE_CHARS
    else:
        assert isinstance(clip, Clip) and np.isfinite(clip.waveform).all()


def read_copy(name: str) -> None:
    for container in list_copy(name).containers:
        for member in read_members(container, Path(name).parent, FETCH.max_media_bytes):
            decode(member.content if isinstance(member.content, Failure) else Media(member.content, member.name))


def read_from_file(file: Path, read: Callable[[str], object]) -> Callable[[bytes], None]:
    """Adapt a reader of files to bytes."""

    def write_and_read(content: bytes) -> None:
        file.write_bytes(content)
        read(str(file))

    return write_and_read


MEDIA = {
    "wav": ("wav", "pcm_s16le"),
    "wav of floats": ("wav", "pcm_f32le"),
    "webm": ("webm", "libopus"),
    "flac": ("flac", "flac"),
    "m4a": ("ipod", "aac"),
    "mp3": ("mp3", "libmp3lame"),
    "ogg": ("ogg", "libopus"),
    "adts": ("adts", "aac"),
    "avi": ("avi", "pcm_s16le"),
    "mpegts": ("mpegts", "mp2"),
}


@pytest.mark.parametrize("name", MEDIA)
def test_mutated_media(name: str) -> None:
    container, codec = MEDIA[name]

    def read(content: bytes) -> None:
        decode(Media(content, "fuzz"))
        assert measure_length_ms(content) >= 0
        decode_file(content)

    check_mutations(encode(tone(440, 48_000, 3), 48_000, container, codec), read)


def test_mutated_flac_of_a_shard() -> None:
    check_mutations(encode_flac(tone(440, 16_000, 1).astype(np.float32)), decode_flac)


def test_mutated_audioset_tables(miniature: Miniature, tmp_path: Path) -> None:
    for name, read in {"eval_segments.csv": read_segments, "class_labels_indices.csv": read_labels}.items():
        check_mutations((miniature.metadata_folder / name).read_bytes(), read_from_file(tmp_path / name, read))


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    for name in ("dog", "cat"):
        for number in range(2):
            path = tmp_path / "sounds" / name / f"{number}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_flac(np.full(16_000, number / 9, np.float32)))
    return tmp_path / "sounds"


def test_mutated_own_sound_tables(sounds: Path, tmp_path: Path) -> None:
    rows = [f"{name}/{number}.flac,{name},0,0.{number + 1},train" for name in ("dog", "cat") for number in (0, 1)]
    table = "\n".join(["path,labels,start,end,split", *rows, "cat/1.flac,cat;dog,0.5,,eval"])
    config = CutConfig(clip_s=0.5)

    def read(file: str) -> None:
        clips, classes = read_sounds(Path(file), config)
        for split in write_tables(clips, classes, tmp_path / "tables"):
            read_segments(str(tmp_path / "tables" / f"{split}_segments.csv"))
        read_labels(str(tmp_path / "tables" / "class_labels_indices.csv"))
        read_media_table(str(tmp_path / "tables" / "media.csv"))

    check_mutations(table.encode(), read_from_file(sounds / "sounds.csv", read))
    media = f"id,path\n{SEGMENTS[0].ytid},{sounds}/dog/0.flac\n{SEGMENTS[1].ytid},nowhere\n"
    check_mutations(media.encode(), read_from_file(tmp_path / "media.csv", read_media_table))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_mutated_tars(form: int, tmp_path: Path) -> None:
    file, sound = io.BytesIO(), encode(tone(440, 16_000, 1.5), 16_000, "webm", "libopus")
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for segment in SEGMENTS:
            info = tarfile.TarInfo(f"{'ö' * 120}/{segment.ytid}.webm")  # too long for the original header format
            info.size = len(sound)
            tar.addfile(info, io.BytesIO(sound))
    check_mutations(file.getvalue(), read_from_file(tmp_path / "a.tar", read_copy))


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_mutated_parquet(compression: str, tmp_path: Path) -> None:
    sound = encode(tone(440, 16_000, 1.5), 16_000, "webm", "libopus")
    audio = [{"bytes": sound, "path": f"{segment.ytid}.webm"} for segment in SEGMENTS]
    table = pa.table({"video_id": [segment.ytid for segment in SEGMENTS], "audio": audio})
    pq.write_table(table, file := io.BytesIO(), row_group_size=2, compression=compression)
    check_mutations(file.getvalue(), read_from_file(tmp_path / "a.parquet", read_copy))


def test_mutated_sidecars(small_store: Store) -> None:
    name = small_store.list("shards", ".parquet")[0]
    content, copy = small_store.read_bytes(name), "fuzz/sidecar.parquet"

    def read(mutated: bytes) -> None:
        small_store.write_bytes(copy, mutated)
        read_sidecar(small_store, copy).to_pylist()

    check_mutations(content, read)


def test_mutated_checkpoint_descriptions(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    checkpoint = Checkpoint(LoopState(1, 2), {"weight": torch.zeros(2)}, description={"mean": -4.2})
    name = save_checkpoint(store, "run", checkpoint)
    file = Path(store.path(f"{name}/checkpoint.json"))
    check_mutations(file.read_bytes(), read_from_file(file, lambda _: read_checkpoint(store, name)))


def test_mutated_miniature_plans(miniature: Miniature, tmp_path: Path) -> None:
    def read(file: str) -> None:
        with serve_miniature(Path(file).parent):
            pass

    check_mutations((miniature.folder / "plan.json").read_bytes(), read_from_file(tmp_path / "plan.json", read))


def test_mutated_snapshot_labels(miniature: Miniature) -> None:
    text = (miniature.metadata_folder / "class_labels_indices.csv").read_bytes()
    check_mutations(text, lambda content: parse_labels(content.decode(errors="replace"), "labels.csv"))
