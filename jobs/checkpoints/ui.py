"""Serve MLflow's pages for a local store, and open its list of runs."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from pathlib import Path

from ast_model.tracking.relocate import rewrite_store_paths
from ast_model.tracking.server import check_server, runs_page_url
from jobs.checkpoints.settings import UIConfig
from jobs.command_line.cli import resolve_root
from pipeline.errors import ConfigError, TrackingError
from pipeline.store.layout import MLFLOW_ARTIFACTS, MLFLOW_DATABASE

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0


def serve(config: UIConfig) -> None:
    """Serve until interrupted. Raises ConfigError if the database is missing or the port is in use."""
    root, address = Path(resolve_root(config.root)), f"http://{HOST}:{config.port}"
    if not (root / MLFLOW_DATABASE).is_file():
        if not config.create:
            raise ConfigError(
                f"expected {root / MLFLOW_DATABASE}, found none; train first, or set --root (make: ROOT=…)"
            )
        root.mkdir(parents=True, exist_ok=True)
    rewrite_store_paths(root)
    try:
        socket.create_server((HOST, config.port)).close()
    except OSError as error:
        raise ConfigError(
            f"port {config.port} can't be used: {error.strerror}; set --port (make: PORT=5001)"
        ) from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM must end the server as well
    server = _start_server(root, config.port)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            _wait_until_up(address, server)
            page = runs_page_url(address)
            print(f"\ntrainings: {page}\n(stop the server with Ctrl-C)", flush=True)
            if sys.platform == "darwin" or os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}:
                webbrowser.open(page)
            server.wait()
        finally:
            server.terminate()
            server.wait()


def _start_server(root: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{root / MLFLOW_DATABASE}"]
    command += ["--serve-artifacts", "--artifacts-destination", str(root / MLFLOW_ARTIFACTS)]
    # Otherwise the server prints its own address, which opens a page without trainings.
    command += ["--uvicorn-opts", "--log-level warning"]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    # Disable MLflow's job execution, which serves language models and doubles the start time. The server finds uvicorn
    # through PATH.
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment.get('PATH', os.defpath)}"
    return subprocess.Popen(command, env=environment)


def _wait_until_up(address: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return check_server(address)
        except TrackingError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
