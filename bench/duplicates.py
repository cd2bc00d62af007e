"""Find near-identical clips: how many of those that were planted, how many others, in what time and memory.

    python -m bench.duplicates --clips 2000000

First among recorded sounds of the distribution's packages (see `scripts/recorded_sounds.py`), which went through other
codecs, rates and levels and start up to half a second apart. Then among synthetic fingerprints by the million, with
noisy copies, and a crowd of copies of one clip. It has no peer: nothing that others wrote searches this much audio on
one machine without a database.
"""

import argparse
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
from scipy import ndimage

from bench.duplicates_growth import COPY_SHARE, CROWD_NOISE, MAX_COPY_NOISE, MAX_COPY_SHIFT
from bench.lines import print_line
from bench.near_duplicates import MAX_SHIFT_S, cut, fbank_of, make_scenes, recorded_sounds, vary
from jobs.preprocessing.duplicates import run_on_this_node
from pipeline.cluster.session import ray_session
from pipeline.cluster.tasks import run_tasks
from pipeline.fbank_settings import SAMPLE_RATE_HZ
from pipeline.labels import Labels
from pipeline.measures.clip_measures import Measures
from pipeline.measures.fingerprint import MIN_CELLS, NUM_BANDS, NUM_STEPS, count_cells, fingerprint_of, unpack
from pipeline.measures.table import write_measures
from pipeline.quality.duplicates.pair_table import duplicate_groups
from pipeline.quality.duplicates.pairs import find_pairs
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.layout import Shard
from pipeline.store.storage import Store

SHARD_CLIPS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200_000, help="synthetic fingerprints")
    parser.add_argument("--crowd", type=float, default=0.05, help="share of them that are copies of one clip")
    parser.add_argument("--folder", type=Path, default=Path("data/bench-duplicates"))
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    store = Store(str(arguments.folder.absolute()))
    with ray_session(num_cpus=2):
        search("recorded sounds", write_recorded(store), store)
        starts = range(0, arguments.clips, SHARD_CLIPS)
        sizes = [(number, min(SHARD_CLIPS, arguments.clips - start)) for number, start in enumerate(starts)]
        made: dict[str, list[str]] = {}
        for (number, _), keys in run_tasks(write_synthetic, sizes, (store, arguments.crowd), max_in_flight=4):
            assert isinstance(keys, list), keys
            made[f"{number:06}"] = keys
        search("synthetic fingerprints", made, store)
    shutil.rmtree(arguments.folder)


def search(what: str, keys_of_shards: dict[str, list[str]], store: Store) -> None:
    """Search what was written to a store, and print how well and at what cost."""
    keys = [key for keys in keys_of_shards.values() for key in keys]
    shards = [Shard("made", shard).tar for shard, keys in keys_of_shards.items() for _ in keys]
    columns = {"key": pa.chunked_array([keys]), "shard": pa.chunked_array([pa.array(shards).dictionary_encode()])}
    snapshot = Snapshot(store, "made", pa.table(columns), Labels((), ()), {}, {}, {})
    del shards
    with store.scratch() as folder, peak_memory() as peaks:
        started = time.perf_counter()
        pairs, _ = find_pairs(snapshot, folder, run_on_this_node)
        seconds = time.perf_counter() - started
        disk_gb = sum(file.stat().st_size for file in folder.iterdir()) / 1e9
    found = list(zip(pairs["first"].to_pylist(), pairs["second"].to_pylist(), strict=True))
    wrong = [pair for pair in found if identity_of(pair[0]) != identity_of(pair[1])]
    group_of = dict(zip(keys, duplicate_groups(snapshot, pairs).tolist(), strict=True))
    copies = [key for key in keys if key.endswith("-b")]
    joined = [group_of[key] == group_of[key[:-1] + "a"] for key in copies]
    crowd = [group_of[key] for key in keys if key.startswith("crowd")]
    print_line(
        f"near-identical {what}, recall of {len(copies)} planted pairs",
        "share",
        float(np.mean(joined)),
        precision=1 - len(wrong) / max(len(found), 1),
        pairs=len(found),
        crowd=len(crowd),
        crowd_in_one_group=float(np.bincount(crowd).max() / len(crowd)) if crowd else 1.0,
    )
    print_line(
        f"near-identical {what}, time to search {len(keys)}",
        "s",
        seconds,
        peak_mb_own=peaks[0],
        peak_mb_with_file_cache=peaks[1],
        scratch_gb=disk_gb,
    )


def identity_of(key: str) -> str:
    """Return what a clip is, or is a copy of."""
    return "crowd" if key.startswith("crowd") else key[:-2]


def write_fingerprints(store: Store, shard: str, keys: Sequence[str], fingerprints: Sequence[bytes]) -> None:
    write_measures(store, Shard("made", shard), keys, [Measures(fingerprint=each) for each in fingerprints])


def write_recorded(store: Store) -> dict[str, list[str]]:
    """Write fingerprints of recorded sounds, scenes of others, and a copy of each; return their keys.

    Those of which too little is left to compare are left out.
    """
    sounds, chance = recorded_sounds(), np.random.default_rng(0)
    clips = [(sound, sound) for sound in sounds[::2] if len(sound) > SAMPLE_RATE_HZ]
    scenes = make_scenes(sounds[1::2], num_scenes=350)
    clips += [(cut(scene), cut(scene, chance.uniform(-MAX_SHIFT_S, MAX_SHIFT_S))) for scene in scenes]
    keys, fingerprints = [], []
    for number, (clip, other) in enumerate(clips):
        pair = [fingerprint_of(fbank_of(each)) for each in (clip, vary(other, number, chance))]
        if (count_cells(unpack(pair)) >= MIN_CELLS).all():
            keys += [f"{number:04}-a", f"{number:04}-b"]
            fingerprints += pair
    write_fingerprints(store, "recorded", keys, fingerprints)
    return {"recorded": keys}


def write_synthetic(shard: tuple[int, int], shared: tuple[Store, float]) -> list[str]:
    """Write a shard of synthetic fingerprints, and return its keys: a copy's differs in its last letter."""
    (number, num_clips), (store, crowd_share) = shard, shared
    chance = np.random.default_rng(number)
    num_crowd, num_copies = round(crowd_share * num_clips), round(COPY_SHARE * num_clips / 2)
    keys = [f"clip-{number:06}-{place:04}-a" for place in range(num_clips)]
    fields = smooth_noise(chance, num_clips)
    for place in range(num_copies):
        shift, loudness = chance.integers(-MAX_COPY_SHIFT, MAX_COPY_SHIFT + 1), chance.uniform(0, MAX_COPY_NOISE)
        fields[num_copies + place] = np.roll(fields[place], shift, axis=0) + loudness * smooth_noise(chance, 1)[0]
        keys[num_copies + place] = keys[place][:-1] + "b"
    if num_crowd:
        # Half of the crowd are identical, the others differ from them and from each other.
        fields[-num_crowd:] = smooth_noise(np.random.default_rng(2**32), 1)
        fields[-num_crowd::2] += CROWD_NOISE * smooth_noise(chance, len(fields[-num_crowd::2]))
        keys[-num_crowd:] = [f"crowd-{number:06}-{place:04}-c" for place in range(num_crowd)]
    cells = np.packbits(np.stack([fields > 0.5, fields < -0.5], axis=2), axis=-1)
    write_fingerprints(store, f"{number:06}", keys, [each.tobytes() for each in cells])
    return keys


def smooth_noise(chance: np.random.Generator, num_clips: int) -> np.ndarray:
    """Return (num_clips, NUM_STEPS, NUM_BANDS) of deviation 1, as smooth as the windows of a fingerprint make it."""
    noise = chance.standard_normal((num_clips, NUM_STEPS, NUM_BANDS), np.float32)
    smooth = ndimage.uniform_filter1d(noise, 4, axis=1)
    return smooth / max(float(smooth.std()), 1e-6)


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Yield the most MB that this process and its children held: of their own, and with the files that they mapped.

    Pages of files that only one process maps are its own to psutil; but the system takes them back when it needs them.
    """
    peaks, is_over = [0.0, 0.0], threading.Event()

    def watch() -> None:
        while not is_over.wait(1.0):
            own = with_files = 0.0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:  # Ray's among them
                with suppress(OSError):  # it ended
                    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
                    mb = {line.split()[0]: int(line.split()[1]) / 1024 for line in lines}
                    own += mb["Pss_Anon:"] + mb["Pss_Shmem:"]
                    with_files += mb["Pss:"]
            peaks[:] = max(peaks[0], own), max(peaks[1], with_files)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        is_over.set()
        thread.join()


if __name__ == "__main__":
    main()
