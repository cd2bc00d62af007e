"""Scheduled reruns: their fields match the public schemas, and the job accepts their commands.

The schemas are excerpts of KubeRay's `ray.io_raycronjobs.yaml` and Kubernetes' batch/v1.
"""

import shlex
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jobs.preprocess import COMMAND_LINE
from jobs.preprocessing.settings import RunCommand

DEPLOY = Path(__file__).parents[1] / "deploy"
CRON = r"^(\S+ ){4}\S+$"
TEXT, NUMBER, NAMES_TO_TEXT = {"type": "string"}, {"type": "integer"}, {"additionalProperties": {"type": "string"}}


def fields(required: tuple[str, ...] = (), /, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


RAY_JOB = fields(
    ("entrypoint",),
    activeDeadlineSeconds=NUMBER,
    backoffLimit=NUMBER,
    clusterSelector=NAMES_TO_TEXT,
    entrypoint=TEXT,
    entrypointNumCpus={"type": "number"},
    submissionMode={"enum": ["K8sJobMode", "HTTPMode"]},
)
ENV = fields(("name",), name=TEXT, value=TEXT, valueFrom=fields(secretKeyRef=fields(("key",), name=TEXT, key=TEXT)))
CONTAINER = fields(
    ("name",),
    name=TEXT,
    image=TEXT,
    env={"type": "array", "items": ENV},
    command={"type": "array", "items": TEXT},
    args={"type": "array", "items": TEXT},
    resources=fields(requests=NAMES_TO_TEXT, limits=NAMES_TO_TEXT),
)
POD = fields(
    ("containers", "restartPolicy"),
    restartPolicy={"enum": ["Never", "OnFailure"]},
    containers={"type": "array", "items": CONTAINER, "minItems": 1},
)
JOB = fields(("template",), backoffLimit=NUMBER, activeDeadlineSeconds=NUMBER, template=fields(("spec",), spec=POD))
SPECS = {
    "raycronjob.yaml": (
        "ray.io/v1",
        "RayCronJob",
        fields(
            ("schedule", "jobTemplate"),
            schedule={"type": "string", "pattern": CRON},
            suspend={"type": "boolean"},
            jobTemplate=RAY_JOB,
        ),
    ),
    "cronjob.yaml": (
        "batch/v1",
        "CronJob",
        fields(
            ("schedule", "jobTemplate"),
            schedule={"type": "string", "pattern": CRON},
            concurrencyPolicy={"enum": ["Allow", "Forbid", "Replace"]},
            startingDeadlineSeconds=NUMBER,
            successfulJobsHistoryLimit=NUMBER,
            failedJobsHistoryLimit=NUMBER,
            jobTemplate=fields(("spec",), spec=JOB),
        ),
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_document_matches_its_schema(name: str) -> None:
    document = yaml.safe_load((DEPLOY / name).read_text())
    version, kind, spec = SPECS[name]
    jsonschema.validate(
        document,
        fields(
            ("apiVersion", "kind", "metadata", "spec"),
            apiVersion={"const": version},
            kind={"const": kind},
            metadata=fields(("name",), name=TEXT),
            spec=spec,
        ),
    )


def check_command(arguments: list[str]) -> None:
    python, script, *rest = arguments
    assert (python.rpartition("/")[2], script) == ("python", "jobs/preprocess.py")
    command = COMMAND_LINE.parse(rest)
    assert isinstance(command, RunCommand)
    assert command.data.media == ("youtube",)


def test_scheduled_commands_are_accepted_by_the_job() -> None:
    check_command(
        shlex.split(yaml.safe_load((DEPLOY / "raycronjob.yaml").read_text())["spec"]["jobTemplate"]["entrypoint"])
    )
    cron = yaml.safe_load((DEPLOY / "cronjob.yaml").read_text())["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    (container,) = cron["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["ray", "job", "submit", "--"]
    check_command(container["args"])
    cluster = yaml.safe_load((DEPLOY / "raycluster.yaml").read_text())
    (ray,) = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert container["image"] == ray["image"]
    # The operator stores the token in a secret with the cluster's name, so other secrets need another name.
    assert container["env"][2]["valueFrom"]["secretKeyRef"]["name"] == cluster["metadata"]["name"]
    assert [source["secretRef"]["name"] for source in ray["envFrom"]] != [cluster["metadata"]["name"]]
    assert container["env"][0]["value"] == f"http://{cluster['metadata']['name']}-head-svc:8265"
    (line,) = [line for line in (DEPLOY / "crontab").read_text().splitlines() if not line.startswith("#")]
    assert len(line.split(maxsplit=5)[:5]) == 5
    check_command(shlex.split(line.split(" && ")[1].split(" >> ")[0]))


def test_lock_pins_the_javascript_runtime_of_yt_dlp() -> None:
    (pin,) = {requirement.split(";")[0] for requirement in requires("yt-dlp") or () if "pin-deno" in requirement}
    assert pin in (DEPLOY.parent / "requirements.lock").read_text().splitlines()
    assert "pip install --no-cache-dir -r requirements.lock\n" in (DEPLOY / "Dockerfile").read_text()
