"""Measure copies of AudioSet as sources: planning a rerun at full size, and the requests and bytes of reading tars.

Plans 2,084,320 segments in 2,000 made-up containers with stored listings, of which 20 hold due clips. Then reads tars
of 1,000 clips from a stand-in of the Hugging Face hub on loopback. Prints JSON lines: seconds and memory of planning,
requests per clip (peer: one request per clip), and bytes read (peer: the bytes of the media alone).

    python -m bench.copies
    python -m bench.copies --share 0.1
"""

import argparse
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from fsspec.config import conf

from bench.lines import peak_mb, print_line
from bench.scale import write_metadata
from pipeline.config import PreprocessConfig
from pipeline.copies.containers import Container, list_copy
from pipeline.copies.coverage import estimate_coverage, find_due_containers
from pipeline.copies.listings import write_listing
from pipeline.copies.members import read_members
from pipeline.copies.segment_index import SegmentIndex
from pipeline.metadata import load_metadata
from pipeline.store.storage import Store
from tests.hub import run_hub
from tests.pipeline.copies.layouts import write_tar

NUM_CONTAINERS, NUM_DUE_CONTAINERS = 2000, 20
NUM_TARS, CLIPS_PER_TAR, CLIP_BYTES = 3, 1000, 64_000


def make_containers() -> list[Container]:
    names = [f"hf://datasets/owner/copy/data/{number:04d}.tar" for number in range(NUM_CONTAINERS)]
    return [Container(name, "tar", 10**9, name, name) for name in names]


def load_index(folder: Path) -> SegmentIndex:
    """Index all segments; those of the first containers are due."""
    config = PreprocessConfig(metadata=str(folder / "csv"), media=("stub",))
    segments = load_metadata(config).segments_of(config.splits, None)
    is_due = np.arange(len(segments)) < len(segments) * NUM_DUE_CONTAINERS // NUM_CONTAINERS
    return SegmentIndex(segments, is_due, np.zeros(len(segments), np.int32))


def write_listings(folder: Path, share: float) -> None:
    write_metadata(folder / "csv", share)
    index, store = load_index(folder), Store(str(folder / "store"))
    parts = np.array_split(np.asarray(index.segments["key"].to_pylist()), NUM_CONTAINERS)
    for container, keys in zip(make_containers(), parts, strict=True):
        write_listing(store, container, index.search, keys.tolist())


def measure_planning(folder: Path) -> None:
    before_mb, started = peak_mb(), time.perf_counter()
    index = load_index(folder)
    due = find_due_containers(make_containers(), index, Store(str(folder / "store")))
    coverage = estimate_coverage(due, index)
    seconds = time.perf_counter() - started
    assert len(due.containers) == NUM_DUE_CONTAINERS and not due.unread
    assert coverage.clips.total() == len(index) and coverage.num_due == index.is_due.sum()
    print_line(
        "copies.planning", "s", seconds, segments=len(index), containers=NUM_CONTAINERS, peak_mb=peak_mb(),
        start_mb=before_mb,
    )  # fmt: skip


def measure_reading(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(NUM_TARS):
        ids = [f"{number:02d}-{clip:04d}_aBc"[:11] for clip in range(CLIPS_PER_TAR)]
        write_tar(folder / f"copy/{number:02d}.tar", {f"{ytid}.flac": rng.bytes(CLIP_BYTES) for ytid in ids})
    with run_hub(folder / "copy") as hub:
        conf["hf"] = {"endpoint": hub.address}
        started = time.perf_counter()
        containers = list_copy("hf://datasets/owner/copy").containers
        num_clips = sum(1 for each in containers for _ in read_members(each, folder, 2**20))
        seconds = time.perf_counter() - started
    num_requests, stored = hub.requests.total(), sum(each.num_bytes for each in containers)
    assert num_clips == NUM_TARS * CLIPS_PER_TAR
    print_line("copies.requests", "per clip", num_requests / num_clips, ("one per clip", 1.0), clips=num_clips)
    media = ("bytes of the media", float(num_clips * CLIP_BYTES))
    print_line("copies.bytes", "bytes", float(hub.num_bytes), media, stored=stored, seconds=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("data/bench-copies"))
    parser.add_argument("--share", type=float, default=1.0, help="share of AudioSet's segments")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # its memory must not count
        pool.submit(write_listings, folder, arguments.share).result()
    measure_planning(folder)
    measure_reading(folder)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
