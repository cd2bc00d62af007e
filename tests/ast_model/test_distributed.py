import os

import pytest
import torch

from ast_model.distributed import join_world
from pipeline.errors import ConfigError


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Simulated machine with `count` GPUs. `set` is the index of the selected GPU."""
    machine = {"count": 1}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: machine["count"] > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: machine["count"])
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: machine.update(set=device.index))
    return machine


def test_cpu_ranks_do_not_occupy_a_gpu(cuda: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with join_world("cpu") as world:
        assert world.device == torch.device("cpu")
    assert "set" not in cuda


def test_each_rank_takes_its_gpu_and_surplus_ranks_are_rejected(
    cuda: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    expected = r"found 1 GPUs and a rank 1, .*--nproc-per-node 1.*--no-use-gpu"
    with pytest.raises(ConfigError, match=expected), join_world("cuda"):
        pass
    cuda["count"] = 2
    with join_world("cuda") as world:
        assert world.device == torch.device("cuda", 1)
    assert cuda["set"] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a usable GPU")
def test_unusable_gpu_is_rejected_with_driver_and_cuda_versions() -> None:
    assert "LOCAL_RANK" not in os.environ
    expected = rf"torch {torch.__version__.split('+')[0]}.*, built for CUDA .*, found (no )?NVIDIA driver.*--no-use-gpu"
    with pytest.raises(ConfigError, match=expected), join_world("cuda"):
        pass
