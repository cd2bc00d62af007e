"""Failures to join or start Ray."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cluster.session import check_cluster_answers
from pipeline.errors import ConfigError


def test_address_without_a_cluster_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(ConfigError, match=rf"expected a Ray cluster at {address}, found no answer within 0\.3 s"):
            check_cluster_answers(address, timeout_s=0.3)


def test_frozen_cluster_is_reported() -> None:
    """A stopped process still accepts connections, but never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started_s = time.monotonic()
        with pytest.raises(ConfigError, match="found no answer"):
            check_cluster_answers(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.3)
        assert time.monotonic() - started_s < 5


def test_automatic_address_of_a_dead_cluster_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    check_cluster_answers("auto", timeout_s=0.3)  # no cluster was ever started: Ray's own error is immediate
    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{closed.getsockname()[1]}\n")
    with pytest.raises(ConfigError, match=r"expected a Ray cluster at 127\.0\.0\.1:\d+, found no answer"):
        check_cluster_answers("auto", timeout_s=0.3)


@pytest.mark.process
def test_temporary_folder_with_a_long_path_is_reported_with_a_remedy(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 60) / ("b" * 60)
    folder.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    start = "from pipeline.cluster.session import ray_session\nwith ray_session(): pass"
    ended = subprocess.run(
        [sys.executable, "-c", start],
        env={**environment, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert f"ConfigError: Ray can't create its sockets below {folder}" in ended.stderr
    assert "set RAY_TMPDIR to a short local folder" in ended.stderr
