"""Measure the comparison of two copies: differences found among planted ones, and false alarms among unchanged clips.

Unchanged clips differ by noise 40 dB below the signal and a delay of 10 ms, as after a good codec. Planted: shifts of
0.1 to 10 s, gains of 1 to 12 dB, swapped clips. Prints JSON lines: false alarms, recall and clips per second; no peer.

    python -m bench.copy_differences
    python -m bench.copy_differences --clips 300
"""

import argparse
import time

import numpy as np
import pyarrow as pa

from bench.lines import print_line
from pipeline.quality.copy_differences import compare_measures
from tests.pipeline.quality.test_copy_differences import RATE, measured, recording

NO_ALARM = {"same", "identical", "unclear"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=5000, help="unchanged clips; a tenth as many of each difference")
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    first, unchanged = list[pa.Table](), list[pa.Table]()
    planted: dict[str, list[tuple[pa.Table, pa.Table]]] = {"shift": [], "gain": [], "swap": []}
    previous = None
    for number in range(arguments.clips):
        sound = recording(number)
        clip = sound[: 10 * RATE]
        noise = 0.01 * clip.std() * random.standard_normal(len(clip)).astype(np.float32)
        first.append(measured([clip]))
        unchanged.append(measured([sound[160 : 160 + 10 * RATE] + noise]))
        if number % 10 == 0:
            start = int(10 ** random.uniform(-1, 1) * RATE)
            planted["shift"].append((first[-1], measured([sound[start : start + 10 * RATE]])))
            gain = 10 ** (random.choice([-1, 1]) * random.uniform(1, 12) / 20)
            planted["gain"].append((first[-1], measured([(gain * clip).astype(np.float32)])))
            if previous is not None:
                planted["swap"].append((first[-1], previous))
            previous = first[-1]
    started = time.perf_counter()
    kinds = compare_measures(pa.concat_tables(first), pa.concat_tables(unchanged))["kinds"].to_pylist()
    seconds = time.perf_counter() - started
    print_line("copy_differences.false_alarms", "clips", sum(kind not in NO_ALARM for kind in kinds), clips=len(kinds))
    for name, pairs in planted.items():
        tables = [pa.concat_tables(each) for each in zip(*pairs, strict=True)]
        found = compare_measures(*tables)["kinds"].to_pylist()
        recall = np.mean([kind not in NO_ALARM for kind in found])
        print_line(f"copy_differences.recall_{name}", "share", float(recall), clips=len(found))
    print_line("copy_differences.speed", "clips/s", len(kinds) / seconds)


if __name__ == "__main__":
    main()
