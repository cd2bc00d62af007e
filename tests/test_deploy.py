"""Cluster files, checked without a cloud: Ray validates them, and versions match the lock."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from deploy.check_node import MIN_DRIVER_OF_CUDA
from jobs.audioset import COMMAND_LINE
from pipeline.cluster.placement import POOL

ROOT = Path(__file__).parents[1]
CLUSTERS = ["cluster.yaml", "cluster-gcp.yaml"]
RAY_VERSION = re.search(r"^ray\[.*\]==(\S+)$|^ray==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
assert RAY_VERSION
VERSION = RAY_VERSION[1] or RAY_VERSION[2]


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.fixture(params=CLUSTERS)
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Cluster config as completed by Ray's launcher."""
    prepared = prepare_config(read(request.param))
    validate_config(prepared)
    return prepared


def test_setup_commands_replace_ray_defaults(cluster: dict[str, Any]) -> None:
    commands = " ".join(cluster["setup_commands"] + cluster["head_setup_commands"] + cluster["worker_setup_commands"])
    assert "requirements.lock" in commands
    assert ".whl" not in commands
    assert "nightly" not in commands


def test_head_runs_no_tasks_and_is_not_a_spot_machine(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert not is_spot(head["node_config"])


def is_spot(node: dict[str, Any]) -> bool:
    return "InstanceMarketOptions" in node or any(each.get("preemptible") for each in node.get("scheduling", []))


def test_workers_are_spot_machines_that_scale_from_zero(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    for name in ("fetch", "train"):
        assert is_spot(types[name]["node_config"])
        assert types[name]["min_workers"] == 0 < types[name]["max_workers"]
        assert all(isinstance(count, int) for count in types[name]["resources"].values())
    assert "GPU" not in types["fetch"]["resources"]
    assert types["train"]["resources"]["GPU"] > 0


def test_labels_choose_the_nodes_and_the_autoscaler_obeys_them(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert {name: kind["labels"] for name, kind in types.items()} == {name: {POOL: name} for name in types}
    (start,) = [command for command in cluster["head_start_ray_commands"] if "ray start" in command]
    assert "RAY_enable_autoscaler_v2=1" in start
    spec = read("deploy/raycluster.yaml")["spec"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    groups = {"head": spec["headGroupSpec"]} | {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert {name: group["rayStartParams"]["labels"] for name, group in groups.items()} == {
        name: f"{POOL}={name}" for name in types
    }


def test_nodes_require_the_token_and_use_the_pinned_image(cluster: dict[str, Any]) -> None:
    assert cluster["docker"]["image"].startswith(f"rayproject/ray:{VERSION}-py311")
    assert cluster["file_mounts"]["/home/ray/.ray/auth_token"].endswith(".ray/auth_token")
    starts = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in command for command in starts if "ray start" in command)
    assert "disabled" not in (ROOT / "cluster.yaml").read_text()
    assert "-v /mnt/cache:/mnt/cache" in cluster["docker"]["run_options"]


def test_images_have_a_driver_for_cuda_13() -> None:
    aws = [node["node_config"]["ImageId"] for node in read("cluster.yaml")["available_node_types"].values()]
    assert {name.split("/latest/")[0] for name in aws} == {
        "resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04"
    }
    disks = [node["node_config"]["disks"] for node in read("cluster-gcp.yaml")["available_node_types"].values()]
    boots = [disk["initializeParams"] for node in disks for disk in node if disk.get("boot")]
    assert len(boots) == 3
    for boot in boots:
        driver = re.search(r"-nvidia-(\d+)$", boot["sourceImage"])
        assert driver
        assert int(driver[1]) >= MIN_DRIVER_OF_CUDA["13"]
        assert boot["diskType"].endswith("/pd-balanced")


def test_nodes_are_checked_and_spot_nodes_watch_for_notices(cluster: dict[str, Any]) -> None:
    assert "deploy/check_node.py" in " ".join(cluster["setup_commands"])
    cloud = cluster["provider"]["type"]
    assert any(f"deploy/spot_drain.py {cloud}" in command for command in cluster["worker_start_ray_commands"])
    assert not any("spot_drain" in command for command in cluster["head_start_ray_commands"])


def test_gcp_training_nodes_attach_local_disks() -> None:
    disks = read("cluster-gcp.yaml")["available_node_types"]["train"]["node_config"]["disks"]
    assert [disk.get("interface") for disk in disks] == [None, "NVME", "NVME", "NVME", "NVME"]


def test_iam_policy_covers_the_launcher() -> None:
    statements = json.loads((ROOT / "deploy/aws-iam-policy.json").read_text())["Statement"]
    actions = {
        action
        for each in statements
        for action in ([each["Action"]] if isinstance(each["Action"], str) else each["Action"])
    }
    assert {"ec2:RunInstances", "iam:PassRole", "ssm:GetParameters", "s3:PutObject"} <= actions
    assert not any(action == "*" for action in actions)


def pods() -> dict[str, dict[str, Any]]:
    spec = read("deploy/raycluster.yaml")["spec"]
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    return {name: group["template"]["spec"] for name, group in ({"head": spec["headGroupSpec"]} | groups).items()}


def test_pod_grace_period_exceeds_ray_drain_timeout() -> None:
    (drain_s,) = {
        int(variable["value"])
        for pod in pods().values()
        for variable in pod["containers"][0]["env"]
        if variable["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
    }
    graces = [pod["terminationGracePeriodSeconds"] for name, pod in pods().items() if name != "head"]
    assert min(graces) > drain_s


def test_kubernetes_cluster_matches_the_cluster_files() -> None:
    cluster = read("deploy/raycluster.yaml")
    spec = cluster["spec"]
    assert (cluster["apiVersion"], cluster["kind"], spec["rayVersion"]) == ("ray.io/v1", "RayCluster", VERSION)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert all(isinstance(value, str) for value in spec["headGroupSpec"]["rayStartParams"].values())
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("name", ["head", "fetch", "train"])
def test_pod_limits_equal_its_requests(name: str) -> None:
    pod = pods()[name]
    (container,) = pod["containers"]
    assert container["image"].endswith(f":{VERSION}")
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert all(isinstance(amount, str) for amount in container["resources"]["limits"].values())
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    assert {mount["name"] for mount in container.get("volumeMounts", [])} == volumes
    assert ("tolerations" in pod) == (name != "head")
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (name == "train")


def test_rayjob_entrypoint_is_accepted_by_the_job() -> None:
    job = read("deploy/rayjob.yaml")
    assert (job["kind"], job["spec"]["backoffLimit"]) == ("RayJob", 0)
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": read("deploy/raycluster.yaml")["metadata"]["name"]}
    python, script, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (python, script) == ("python", "jobs/audioset.py")
    config = COMMAND_LINE.parse(arguments)
    assert config.ray.num_workers == (4, 32)
    assert config.ray.use_gpu
    assert config.train.cache.folder == "/mnt/cache"


def test_image_is_built_on_the_pinned_ray() -> None:
    assert (ROOT / "deploy/Dockerfile").read_text().splitlines()[1] == f"FROM rayproject/ray:{VERSION}-py311-gpu"
