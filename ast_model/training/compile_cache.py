"""Compiled code in the store, so that starts and restarts on other machines don't compile again.

The cache is inductor's folder with the kernels for one device, version and shape. Whoever can write to the store can
run code in trainings, as with its pickled jobs.
"""

import dataclasses
import hashlib
import io
import json
import logging
import os
import platform
import shutil
import tarfile
import tempfile
from pathlib import Path

import torch

from ast_model.distributed import World
from ast_model.training.device import choose_compile
from ast_model.training.job import TrainingJob
from pipeline.errors import CorruptError, StoreError
from pipeline.store.layout import compiled_code
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
DIGEST_BYTES = 32
SHAPE_SETTINGS = "augment regularise activation_checkpointing loss precision compile attention".split()
"""Settings that become part of the compiled code."""


@dataclasses.dataclass
class CompileCache:
    """Inductor's folder on this machine, and its copy in the store. No failure of the cache ends a training."""

    store: Store
    name: str
    folder: Path
    is_stored: bool = False
    """The store has an intact copy."""

    def load(self) -> None:
        """Fetch the copy unless this machine has the folder, and make inductor use the folder."""
        try:
            self.is_stored = self.store.exists(self.name)
            if self.is_stored and not self.folder.exists():
                self._unpack(self.store.read_bytes(self.name))
        except (StoreError, OSError, tarfile.TarError) as error:
            self.is_stored = False
            log.warning("compiling again, because the compile cache can't be used: %s", error)
        os.environ[FOLDER_VARIABLE] = str(self.folder)

    def _unpack(self, data: bytes) -> None:
        digest, data = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            raise CorruptError(f"{self.store.url(self.name)} is damaged: its digest differs")
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=self.folder.parent))
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            tar.extractall(scratch, filter="data")
        try:
            scratch.rename(self.folder)
        except OSError:  # another rank of this machine was faster
            shutil.rmtree(scratch)

    def save(self) -> None:
        """Store the folder after compiling, unless the store has it."""
        if self.is_stored or not self.folder.is_dir():
            return
        try:
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
                tar.add(self.folder, arcname=".")
            data = packed.getvalue()
            self.store.write_bytes(self.name, hashlib.sha256(data).digest() + data)
            self.is_stored = True
        except (StoreError, OSError) as error:
            log.warning("the next start compiles again, because the compile cache can't be stored: %s", error)


def open_compile_cache(job: TrainingJob, world: World) -> CompileCache | None:
    """Load the compiled code of this training's device, versions and shapes; None if it does not compile.

    A folder that the user chose by `TORCHINDUCTOR_CACHE_DIR` stays in use, without a copy in the store.
    """
    base = Path(tempfile.gettempdir()) / f"audioset-ast-compiled-{os.getuid()}"
    chosen = os.environ.get(FOLDER_VARIABLE)
    if choose_compile(job.config, world) == "none" or (chosen and Path(chosen).parent != base):
        return None
    key = _key(job, world)
    cache = CompileCache(job.store, compiled_code(key), base / key)
    cache.load()
    return cache


def _key(job: TrainingJob, world: World) -> str:
    config = job.config
    facts = {
        "device": _describe_device(world.device),
        "versions": [torch.__version__, platform.python_version(), platform.libc_ver()],
        "model": dataclasses.asdict(job.model),
        "clips": [config.clips_per_micro_batch, config.global_batch_size, world.size],
        "precision": world.resolve(config.precision),
        "normalisation": dataclasses.asdict(job.normalisation),
        "settings": {name: getattr(config, name) for name in SHAPE_SETTINGS},
    }
    text = json.dumps(facts, sort_keys=True, default=dataclasses.asdict)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _describe_device(device: torch.device) -> list[str]:
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device), str(torch.cuda.get_device_capability(device))]
    # Inductor compiles for the processor of this machine: code for a newer one would crash.
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("model name", "flags"))
    ]
    return [platform.machine(), *sorted(set(models))]
