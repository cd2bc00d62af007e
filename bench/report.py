"""Report on a store of AudioSet's 2,084,320 segments with made-up sidecars and measures, and without tars.

Prints a JSON line: seconds of the report, size of its page, peak memory. It has no peer.

    python -m bench.report
    python -m bench.report --share 0.1
"""

import argparse
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from bench.lines import peak_mb, print_line
from bench.scale import NoSource, write_metadata, write_rows
from jobs.preprocessing.report import save_report
from pipeline.config import FetchConfig, PreprocessConfig
from pipeline.convert import Conversion
from pipeline.measures.clip_measures import Measures
from pipeline.measures.table import write_measures
from pipeline.metadata import load_metadata
from pipeline.shards.ledger import plan_shards, read_sidecar_table
from pipeline.snapshots.build import build_snapshot
from pipeline.snapshots.snapshot import load_snapshot
from pipeline.store.storage import Store

CODECS = ("opus", "aac", "mp3", "vorbis")


def make_store(folder: Path, share: float) -> None:
    """Write sidecars and a snapshot, and for each shard a table of measures in which a few clips are flawed."""
    write_metadata(folder / "csv", share)
    store = Store(str(folder.absolute() / "store"))
    config = PreprocessConfig(metadata=str(folder / "csv"), media=("stub",))
    metadata = load_metadata(config, store)
    conversion = Conversion(store, NoSource(), FetchConfig(), keep_audio=False)
    sidecars = read_sidecar_table(store, conversion.fingerprint)
    for plan in plan_shards(metadata.segments, sidecars, config.clips_per_shard):
        write_rows(plan, conversion)
    snapshot = build_snapshot(store, metadata, keep_audio=False)
    shards = snapshot.index["shard"].combine_chunks()
    codes, order = shards.indices.to_numpy(), np.argsort(shards.indices.to_numpy(), kind="stable")
    ends = np.searchsorted(codes[order], np.arange(len(shards.dictionary) + 1))
    for code, name in enumerate(shards.dictionary.to_pylist()):
        rows = order[ends[code] : ends[code + 1]]
        keys = snapshot.index["key"].take(rows).to_pylist()
        write_measures(store, name.removesuffix(".tar"), keys, make_measures(rows))


def make_measures(rows: np.ndarray) -> list[Measures]:
    """Make up measures of clips; each 200th is silent, each 50th clipped."""
    random = np.random.default_rng(int(rows[0]))
    return [
        Measures(
            peak=min(abs(0.7 + 0.3 * a), 1.2),
            rms_db=-24 + 6 * b,
            loudness_lufs=-24 + 7 * b,
            clipping=0.02 * (row % 50 == 0),
            silence=float(row % 200 == 0),
            dc=0.002 * c,
            bandwidth_hz=8000.0 - 500 * (row % 9),
            codec=CODECS[row % 7 % 4],
            rate_hz=44_100 if row % 3 else 48_000,
            channels=1 + row % 2,
            bit_rate=64_000 + 1000 * (row % 100),
            media_length_s=float(row % 900),
            fingerprint=random.bytes(1000),
        )
        for row, (a, b, c) in zip(rows.tolist(), random.normal(size=(len(rows), 3)).tolist(), strict=True)
    ]


def measure(folder: Path) -> tuple[float, float, float]:
    """Return the seconds of a report, the MB of its page, and the peak memory in MB."""
    snapshot = load_snapshot(Store(str(folder.absolute() / "store")))
    start = time.perf_counter()
    save_report(folder / "report.html", snapshot)
    return time.perf_counter() - start, (folder / "report.html").stat().st_size / 1e6, peak_mb()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of AudioSet's segments")
    parser.add_argument("--folder", type=Path, default=Path("data/bench-report"))
    parser.add_argument("--keep", action="store_true", help="keep the store, and take what an earlier run kept")
    arguments = parser.parse_args()
    if not (arguments.keep and (arguments.folder / "store" / "latest.json").exists()):
        shutil.rmtree(arguments.folder, ignore_errors=True)
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # its memory is not that of the report
            pool.submit(make_store, arguments.folder, arguments.share).result()
    seconds, page_mb, memory_mb = measure(arguments.folder)
    print_line("report", "s", seconds, peer=None, page_mb=page_mb, memory_mb=memory_mb)
    if not arguments.keep:
        shutil.rmtree(arguments.folder)


if __name__ == "__main__":
    main()
