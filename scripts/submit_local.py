"""Start a Ray head on this machine, submit a job through Ray Jobs, follow its log, and stop Ray.

    python scripts/submit_local.py python jobs/audioset.py demo

Ray uses free ports on loopback and a new token. The exit code is the job's.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

HOST = "127.0.0.1"
NODE = "127.0.0.2"
"""Loopback address of the Ray node. Ray would replace 127.0.0.1 by the address of a network interface."""
OBJECT_STORE_BYTES = 200 * 2**20
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0


def main(entrypoint: list[str]) -> int:
    if not entrypoint:
        print(__doc__, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop Ray on SIGTERM as on Ctrl-C
    port, dashboard, client, agent = free_ports(4)
    submission = f"job-{secrets.token_hex(4)}"
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_API_SERVER_ADDRESS": f"http://{HOST}:{dashboard}",
    }
    env.pop("RAY_ADDRESS", None)
    ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    with ray_head([*ports, f"--dashboard-agent-listen-port={agent}"], env):
        submit = f"ray --logging-level error job submit --working-dir . --submission-id {submission}".split()
        submit += ["--metadata-json", json.dumps({"git": git_state()}), "--", *entrypoint]
        try:
            return subprocess.run(submit, env=env, check=False).returncode
        except KeyboardInterrupt:
            print("\nstopping the job", file=sys.stderr)
            stop = ["ray", "job", "stop", submission]
            subprocess.run(stop, env=env, check=False, timeout=STOP_TIMEOUT_S, stdout=subprocess.DEVNULL)
            return 130


def git_state() -> str:
    """Return the commit, with `-dirty` if files changed, or an empty string outside git.

    The job cannot find it: Ray Jobs uploads the folder without `.git`.
    """
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def ray_head(flags: list[str], env: dict[str, str]) -> Iterator[None]:
    """Run a Ray head; on exit, terminate every process that carries its token."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    command = ["ray", "start", "--head", "--block", f"--node-ip-address={NODE}", f"--dashboard-host={HOST}"]
    command += [*flags, f"--temp-dir={folder}", f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats"]
    log = folder / "start.log"
    with log.open("wb") as out:
        head = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_until_ready(head, env, log)
        yield
    finally:
        head.terminate()
        terminate_all(env["RAY_AUTH_TOKEN"])
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_ready(head: subprocess.Popen[bytes], env: dict[str, str], log: Path) -> None:
    """Wait until the head answers on the job server's port; exit with its log on a timeout."""
    headers = {"Authorization": f"Bearer {env['RAY_AUTH_TOKEN']}"}
    request = urllib.request.Request(f"{env['RAY_API_SERVER_ADDRESS']}/api/jobs/", headers=headers)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and head.poll() is None:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    sys.exit(f"Ray did not start within {START_TIMEOUT_S:.0f} s. Its log:\n{log.read_text()}")


def terminate_all(token: str) -> None:
    """Terminate every process with this token: Ray's own and leftovers of the job."""
    ours = [process for process in psutil.process_iter() if carries_token(process, token)]
    _, alive = psutil.wait_procs(ours, timeout=STOP_TIMEOUT_S / 3)
    for process in alive:
        process.terminate()
    _, alive = psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S / 3)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S / 3)


def carries_token(process: psutil.Process, token: str) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get("RAY_AUTH_TOKEN") == token
    except psutil.Error:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
