"""Describe the provenance of a run: code, command, software, hardware and Ray job."""

import contextlib
import getpass
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import ray
import torch

from jobs.command_line.program import command, script

ROOT = Path(__file__).parents[2]
RAY_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
UNKNOWN, DIRTY = "unknown", "-dirty"
DESCRIBE = ["git", "describe", "--always", f"--dirty={DIRTY}", "--abbrev=40", "--exclude=*"]
"""Command that prints the full commit, and a mark if tracked files were changed."""
PACKAGES = ("torch", "torchaudio", "ray", "mlflow", "numpy")


def provenance() -> dict[str, str]:
    """Return provenance as tags of a run. Unavailable facts, such as the commit without git, are `unknown`."""
    metadata = json.loads(os.environ.get(RAY_JOB_VARIABLE, "{}")).get("metadata", {})
    commit, is_dirty = _git(metadata)
    return {
        "mlflow.user": _user(),
        "mlflow.source.name": script(),
        "command": command(),
        "mlflow.source.type": "JOB" if metadata else "LOCAL",
        "mlflow.source.git.commit": commit,
        "git.commit": commit,
        "git.dirty": is_dirty,
        "ray.submission_id": str(metadata.get("job_submission_id", "none")),
        "ray.job_id": ray.get_runtime_context().get_job_id() if ray.is_initialized() else "none",
        "hardware": _hardware(),
        "versions": ", ".join([f"python {platform.python_version()}", *(f"{n} {version(n)}" for n in PACKAGES)]),
    }


def _git(metadata: Mapping[str, Any]) -> tuple[str, str]:
    """Return the commit, and whether files were changed, from the working tree or from a Ray job's metadata."""
    described = metadata.get("git", "")
    if (ROOT / ".git").exists():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(DESCRIBE, cwd=ROOT, capture_output=True, text=True, check=True, timeout=10)
            described = done.stdout.strip()
    if not described:
        return UNKNOWN, UNKNOWN
    return described.removesuffix(DIRTY), str(described.endswith(DIRTY)).lower()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # the user of a container may have no name
        return UNKNOWN


def _hardware() -> str:
    """Describe the cluster or, without Ray, this machine."""
    if ray.is_initialized():
        have = ray.cluster_resources()
        kinds = [name.removeprefix("accelerator_type:") for name in have if name.startswith("accelerator_type:")]
        num_nodes = sum(node["Alive"] for node in ray.nodes())
        gpus = f"{have.get('GPU', 0):.0f} GPUs{' ' + '/'.join(kinds) if kinds else ''}"
        return f"{num_nodes} node{'s' * (num_nodes != 1)}, {have.get('CPU', 0):.0f} CPUs, {gpus}"
    count = torch.cuda.device_count()
    gpus = f"{count} GPUs {torch.cuda.get_device_name(0)}" if count else "0 GPUs"
    return f"1 node, {os.cpu_count()} CPUs, {psutil.virtual_memory().total / 2**30:.0f} GiB, {gpus}"
