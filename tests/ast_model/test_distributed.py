import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from ast_model import distributed
from ast_model.distributed import GLOO_INTERFACE, join_world, select_gloo_interface
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
    expected = r"found 1 GPUs for local rank 1 .*--nproc-per-node 1.*--no-use-gpu"
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


@pytest.fixture
def two_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with a loopback and a network interface, and no choice by the user."""
    addresses = {"lo": ["127.0.0.1", "::1"], "eth7": ["10.1.2.3", "fe80::7%eth7"]}
    found = {name: [SimpleNamespace(address=address) for address in each] for name, each in addresses.items()}
    monkeypatch.setattr(distributed.psutil, "net_if_addrs", lambda: found)
    monkeypatch.setenv(GLOO_INTERFACE, "")  # restored after the test
    monkeypatch.delenv(GLOO_INTERFACE)


@pytest.mark.usefixtures("two_interfaces")
@pytest.mark.parametrize(
    ("address", "expected"),
    [("10.1.2.3", "eth7"), ("127.0.0.1", "lo"), ("fe80::7", "eth7"), ("10.9.9.9", None), ("", None)],
)
def test_gloo_uses_the_interface_of_the_nodes_address(address: str, expected: str | None) -> None:
    select_gloo_interface(address)
    assert os.environ.get(GLOO_INTERFACE) == expected


@pytest.mark.usefixtures("two_interfaces")
def test_gloo_keeps_the_interface_chosen_by_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GLOO_INTERFACE, "eth0")
    select_gloo_interface("10.1.2.3")
    assert os.environ[GLOO_INTERFACE] == "eth0"


@pytest.mark.usefixtures("two_interfaces")
@pytest.mark.parametrize(("local_world_size", "expected"), [("2", "lo"), ("1", "eth7")])
def test_ranks_select_the_interface_towards_the_main_rank(
    monkeypatch: pytest.MonkeyPatch, local_world_size: str, expected: str
) -> None:
    own_address = "127.0.0.1" if local_world_size == "2" else "127.0.1.1"
    towards = {"main": own_address, distributed.REMOTE_ADDRESS: "10.1.2.3"}
    monkeypatch.setattr(distributed, "_address_towards", towards.__getitem__)
    for name, value in {"MASTER_ADDR": "main", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": local_world_size}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda backend: None)
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: None)
    with join_world("cpu"):
        assert os.environ[GLOO_INTERFACE] == expected


@pytest.mark.process
@pytest.mark.parametrize("at", ["start", "exchange"])
def test_silent_rank_is_named_in_time(at: str) -> None:
    """Rank 1 stops like a frozen host: its connections stay open, but it sends nothing."""
    code = f"""
import os, signal
from ast_model.distributed import join_world
with join_world("cpu") as world:
    def freeze(at):
        if world.rank == 1 and at == {at!r}:
            os.kill(os.getpid(), signal.SIGSTOP)
    freeze("start")
    world.gather_texts("rank", "", 2)
    freeze("exchange")
    world.seconds_of_all_reduce(8 << 20, 2)
"""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", code]
    frozen = subprocess.Popen(command, env={**env, "RANK": "1"}, stderr=subprocess.DEVNULL)
    try:
        main = subprocess.run(
            command, env={**env, "RANK": "0"}, stderr=subprocess.PIPE, text=True, timeout=40, check=False
        )
    finally:
        frozen.kill()
        frozen.wait()
    expected = {
        "start": "WorkerError: expected all 2 ranks within 2 s, found no answer of rank 1; this is rank 0 on ",
        "exchange": "WorkerError: all 2 ranks answer, but they could not exchange 8 MB within 2 s",
    }
    assert main.returncode != 0
    assert expected[at] in main.stderr
