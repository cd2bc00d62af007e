"""The board and the alert rules show metrics that exist, and the docs list all of them."""

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
METRIC = re.compile(r"\bray_audioset_\w+")
OF_TRAININGS = ("train_", "system_", "eval_")


def documented() -> set[str]:
    return set(METRIC.findall((ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")))


def published() -> set[str]:
    """Return names in the source: conversions name theirs, trainings publish MLflow's names."""
    source = (ROOT / "pipeline" / "cluster" / "metrics.py").read_text(encoding="utf-8")
    counters = {f"{name}_total" for name in re.findall(r'_counter\("(\w+)"', source)}
    gauges = set(re.findall(r'gauges\.set\("(\w+)"', source)) | {"clips_planned"}
    step_metrics = (ROOT / "ast_model" / "training" / "step_metrics.py").read_text(encoding="utf-8")
    trainer = (ROOT / "ast_model" / "training" / "trainer.py").read_text(encoding="utf-8")
    logged = re.findall(r'"((?:train|system)/\w+)"', step_metrics + trainer)
    return {f"ray_audioset_{name.replace('/', '_').lower()}" for name in {*counters, *gauges, *logged, "eval/mAP"}}


def test_board_and_rules_use_documented_metrics_that_exist() -> None:
    board = json.loads((ROOT / "deploy" / "grafana.json").read_text(encoding="utf-8"))
    rules = yaml.safe_load((ROOT / "deploy" / "alerts.yaml").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    conditions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    assert len(queries) > 15 and len(conditions) > 5
    used = {name for text in queries + conditions for name in METRIC.findall(text)}
    assert used <= documented() <= published()
    assert {
        name for name in published() if not name.removeprefix("ray_audioset_").startswith(OF_TRAININGS)
    } <= documented()
