"""Scripts on cluster nodes: the check before Ray starts, and the spot daemon."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.check_node import find_problems
from deploy.spot_drain import is_aws_interrupted, is_gcp_interrupted, wait_for_notice
from tests.metadata_service import MetadataService, serve_metadata

ROOT = Path(__file__).parents[1]
DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}.95.05  Release Build"


@pytest.fixture
def service() -> Iterator[MetadataService]:
    with serve_metadata() as server:
        yield server


@pytest.mark.parametrize("ask", [is_aws_interrupted, is_gcp_interrupted])
def test_wait_ends_on_a_notice_and_survives_errors(ask, service: MetadataService, capfd) -> None:
    service.notices[:] = [404, 500, 500, 404, 200]
    wait_for_notice(ask, service.address, poll_s=0.001)
    assert service.notices == [200]
    assert capfd.readouterr().err.count("does not answer") == 1


@pytest.mark.process
@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_daemon_drains_its_node_until_ray_accepts(cloud: str, service: MetadataService, tmp_path: Path) -> None:
    """A fake `ray` program refuses the first request; the rehearsal drains a real node."""
    service.notices[:] = [200]
    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n[ $(wc -l < {tmp_path}/calls) -gt 1 ]\n')
    ray.chmod(0o755)
    command = [sys.executable, "-m", "deploy.spot_drain", cloud, "--service", service.address, "--poll-s", "0.01"]
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    subprocess.run(
        [*command, "--address=head:6379"], cwd=ROOT, env={**os.environ, "PATH": path}, check=True, timeout=60
    )
    first, second = (tmp_path / "calls").read_text().splitlines()
    assert first.startswith("drain-node --reason=DRAIN_NODE_REASON_PREEMPTION")
    assert second.endswith("--address=head:6379")


@pytest.fixture
def pci(tmp_path: Path) -> Path:
    """PCI bus with two NVIDIA GPUs, an NVIDIA audio device and a network card."""
    cards = {"01": ("0x10de", "0x030200"), "02": ("0x10de", "0x030000"), "03": ("0x10de", "0x040300")}
    for slot, (vendor, kind) in (cards | {"04": ("0x1d0f", "0x020000")}).items():
        device = tmp_path / "pci" / f"0000:{slot}:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "class").write_text(f"{kind}\n")
    return tmp_path / "pci"


@pytest.mark.parametrize(
    ("driver", "cuda", "num_visible", "problem"),
    [
        (580, "13.0", 2, None),
        (525, "12.8", 2, None),
        (570, "13.0", 0, "driver of 580 or later for CUDA 13.0, found 570"),
        (580, "13.0", 0, "see 2 GPUs, found 0; run the container"),
        (None, "13.0", 0, "no NVIDIA driver"),
        (580, None, 0, "found a CPU build"),
    ],
)
def test_node_check_names_the_problem(
    driver: int | None, cuda: str | None, num_visible: int, problem: str | None, pci: Path, tmp_path: Path
) -> None:
    version = tmp_path / "version"
    if driver is not None:
        version.write_text(DRIVER.format(driver))
    found = find_problems(pci, version, cuda, num_visible, cache=str(tmp_path))
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]


def test_node_without_gpus_passes_but_needs_its_cache_folder(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert find_problems(missing, missing, "13.0", 0, cache="") == []
    (problem,) = find_problems(missing, missing, "13.0", 0, cache=str(missing))
    assert f"cache folder {missing}" in problem
