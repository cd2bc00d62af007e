"""Drain this Ray node when its cloud announces that the machine will be interrupted.

    python deploy/spot_drain.py aws|gcp

`ray start` ignores spot notices. This daemon polls the machine's metadata service and drains the node on a notice, so
that the training writes a checkpoint at once instead of losing minutes of work. It runs beside Ray on each spot node
and needs only the standard library.

AWS announces an interruption two minutes ahead, Google Cloud 30 seconds.
Sources: AWS EC2 user guide, "Spot Instance interruption notices" and IMDSv2; Compute Engine documentation, "Spot VMs".
"""

import argparse
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable

AWS = "http://169.254.169.254"
GCP = "http://metadata.google.internal"
POLL_S = 5.0
TIMEOUT_S = 5.0
AWS_TOKEN_TTL_S = 300
NOTICE_S = {"aws": 110, "gcp": 25}
"""Deadline passed to Ray: the cloud's notice less a margin for polling."""


def is_aws_interrupted(service: str) -> bool:
    """Query IMDSv2, which answers 404 for `instance-action` until an interruption is announced."""
    token = _request(
        f"{service}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(AWS_TOKEN_TTL_S)}, "PUT"
    )
    action = _request(f"{service}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    return bool(action)


def is_gcp_interrupted(service: str) -> bool:
    """Query the metadata server, which answers TRUE once the machine is being preempted."""
    return _request(f"{service}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}) == "TRUE"


def _request(address: str, headers: dict[str, str], method: str = "GET") -> str:
    """Return the response text, empty for status 404."""
    request = urllib.request.Request(address, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return response.read(4096).decode(errors="replace").strip()
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 404:
                return ""
            raise


def wait_for_notice(is_interrupted: Callable[[str], bool], service: str, poll_s: float = POLL_S) -> None:
    """Block until an interruption is announced; an unreachable service is retried and logged once per outage."""
    was_reachable = True
    while True:
        try:
            if is_interrupted(service):
                return
            was_reachable = True
        except OSError as error:
            if was_reachable:
                print(f"spot_drain: {service} does not answer ({error}); retrying", file=sys.stderr, flush=True)
            was_reachable = False
        time.sleep(poll_s)


def drain(cloud: str, ray_arguments: list[str], poll_s: float) -> bool:
    """Ask Ray to drain this node until it accepts or the deadline passes; return True if it accepted."""
    deadline_s = time.monotonic() + NOTICE_S[cloud]
    while (left_s := deadline_s - time.monotonic()) > 0:
        command = ["ray", "drain-node", "--reason=DRAIN_NODE_REASON_PREEMPTION"]
        command += [f"--reason-message=spot notice of {cloud}", f"--deadline-remaining-seconds={left_s:.0f}"]
        if subprocess.run([*command, *ray_arguments], check=False).returncode == 0:
            return True
        time.sleep(poll_s)
    return False


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description="Drain this Ray node when its cloud announces an interruption.",
        epilog="Further arguments, such as --address, are passed to `ray drain-node`.",
    )
    parser.add_argument("cloud", choices=sorted(NOTICE_S))
    parser.add_argument("--service", help="address of the metadata service; default: the cloud's")
    parser.add_argument("--poll-s", type=float, default=POLL_S, help="seconds between polls")
    arguments, ray_arguments = parser.parse_known_args(argv)
    is_interrupted, service = {"aws": (is_aws_interrupted, AWS), "gcp": (is_gcp_interrupted, GCP)}[arguments.cloud]
    wait_for_notice(is_interrupted, arguments.service or service, arguments.poll_s)
    print("spot_drain: interruption announced, draining this Ray node", file=sys.stderr, flush=True)
    return 0 if drain(arguments.cloud, ray_arguments, arguments.poll_s) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
