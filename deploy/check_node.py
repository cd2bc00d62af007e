"""Check that a node can train, before Ray starts on it: GPUs, driver and torch must agree.

    python deploy/check_node.py [--cache /mnt/cache]

A node with too old a driver would join the cluster and fail every training worker placed on it. This check fails once,
with a reason. Nodes without NVIDIA GPUs pass.
"""

import argparse
import os
import re
import sys
from pathlib import Path

NVIDIA = "0x10de"
DISPLAY_CLASSES = ("0x0300", "0x0302")
"""PCI classes of GPUs with and without display output."""
MIN_DRIVER_OF_CUDA = {"12": 525, "13": 580}
"""Oldest driver branch for each major version of CUDA, from NVIDIA's release notes."""


def find_problems(pci: Path, driver_version: Path, cuda: str | None, num_visible: int, cache: str) -> list[str]:
    """Return one sentence per problem. `cuda` is the CUDA version of the torch build, None for a CPU build."""
    num_gpus = count_gpus(pci)
    problems = []
    if cache and not os.access(cache, os.W_OK):
        problems.append(f"expected the cache folder {cache} to be writable, but it is not; check its mount")
    if not num_gpus:
        return problems
    if cuda is None:
        return [*problems, f"expected a CUDA build of torch for {num_gpus} GPUs, found a CPU build"]
    needed = MIN_DRIVER_OF_CUDA.get(cuda.split(".")[0], max(MIN_DRIVER_OF_CUDA.values()))
    found = read_driver(driver_version)
    if found is None:
        problems.append(f"found {num_gpus} GPUs but no NVIDIA driver; use an image with driver {needed} or later")
    elif found < needed:
        problems.append(
            f"expected an NVIDIA driver of {needed} or later for CUDA {cuda}, found {found}; use a newer image"
        )
    elif num_visible != num_gpus:
        problems.append(
            f"expected torch to see {num_gpus} GPUs, found {num_visible}; run the container with NVIDIA's runtime"
        )
    return problems


def count_gpus(pci: Path) -> int:
    """Count NVIDIA GPUs on the PCI bus, independent of any driver."""
    devices = [(device / "vendor", device / "class") for device in pci.glob("*")]
    return sum(
        vendor.read_text().strip() == NVIDIA and kind.read_text().startswith(DISPLAY_CLASSES)
        for vendor, kind in devices
        if vendor.exists() and kind.exists()
    )


def read_driver(version: Path) -> int | None:
    """Return the branch of the loaded driver, such as 580, or None without a driver."""
    if not version.exists():
        return None
    found = re.search(r"\b(\d{3,4})\.\d+(\.\d+)?\b", version.read_text())
    return int(found[1]) if found else None


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(description="Check that this node can train.")
    parser.add_argument("--cache", default="", help="folder for cached shards; must be writable")
    arguments = parser.parse_args()
    problems = find_problems(
        Path("/sys/bus/pci/devices"),
        Path("/proc/driver/nvidia/version"),
        torch.version.cuda,
        torch.cuda.device_count(),
        arguments.cache,
    )
    for problem in problems:
        print(f"check_node: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
