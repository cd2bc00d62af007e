import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHOW = """
import ray
from pipeline.cluster.session import ray_session, spans_hosts

with ray_session():
    print("addresses", *[node["NodeManagerAddress"] for node in ray.nodes()], "spans hosts", spans_hosts())
"""


@pytest.mark.process
def test_submitted_demo_stays_on_loopback() -> None:
    """Otherwise the demo's media would not be served over HTTP with its planned faults."""
    command = [sys.executable, "scripts/submit_local.py", "python", "-c", SHOW]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert "addresses 127.0.0.2 spans hosts False" in ended.stdout
