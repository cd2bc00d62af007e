"""Placement on real Ray nodes with the cluster files' labels, and on nodes without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group
from pipeline.cluster.placement import ON_TRAIN_NODES, POOL
from pipeline.cluster.tasks import run_tasks

def node_of(item, shared):
    return ray.get_runtime_context().get_node_id()

cluster = Cluster()
for pool in sys.argv[1:]:
    cluster.add_node(num_cpus=2, object_store_memory=80 * 2**20, labels={POOL: pool} if pool != "none" else {})
ray.init(address=cluster.address, log_to_driver=False)
pools = {node["NodeID"]: node["Labels"].get(POOL, "none") for node in ray.nodes()}
converted = {pools[node] for _, node in run_tasks(node_of, range(6), None, max_in_flight=6)}
group = placement_group([{"CPU": 1}] * 2, bundle_label_selector=[ON_TRAIN_NODES] * 2)
is_ready = group.wait(30)
bundles = ray.util.placement_group_table(group)["bundles_to_node_id"].values()
print(json.dumps([sorted(converted), sorted({pools[node] for node in bundles} if is_ready else [])]))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.rehearsal
@pytest.mark.parametrize(
    ("nodes", "expected"),
    [(["head", "fetch", "train"], [["fetch"], ["train"]]), (["none"], [["none"], ["none"]])],
)
def test_conversions_and_trainings_run_on_their_own_nodes(
    nodes: list[str], expected: list[list[str]], tmp_path: Path
) -> None:
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, *nodes], env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == expected
