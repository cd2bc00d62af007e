"""Run the service on Ray Serve. Replicas batch the windows of all their requests and follow the champion."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import BackpressureConfig, HTTPOptions
from ray.serve.schema import LoggingConfig

from ast_model.config.sizes import size_name
from ast_model.inference import Tagger
from ast_model.service.gate import RETRY_AFTER_S, Gate
from ast_model.service.service import PendingWindow, Result, ServedModel, Service, run_batch
from jobs.command_line.cli import configure_logging, resolve_root
from jobs.service.settings import ServeConfig
from jobs.service.web import Figures, make_app
from pipeline.cluster.session import ray_session
from pipeline.errors import ConfigError, InputError, describe
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

APPLICATION = "audio-tagging"
REGISTRY = "models:/"
MAX_CONNECTIONS = 1_000
"""Maximum concurrent requests per replica. The limit is high, because the middleware limits complete uploads, and
clients that send a byte per second must not block the service."""
MAX_QUEUED = 100
MIN_TOKEN_CHARS = 16
MAX_ERROR_CHARS = 500


def serve_model(config: ServeConfig) -> None:
    """Serve until interrupted. Raises ConfigError or InputError if the model or the port can't be used."""
    token = read_token(config.token_file)
    version = current_version(config)
    check_port(config.host, config.port)
    # Serve's proxy inherits this variable from a Ray that was started here. Nodes of an existing cluster must set it.
    os.environ.setdefault(
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "jobs.service.header_timeout:install_header_timeout"
    )
    with ray_session():
        # Stop replicas on SIGTERM as on Ctrl-C. Ray's own handler would abort, so replace it after the start of Ray.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt), running(config, token, version) as address:
            print(f"\npage: {address}/\nAPI:  {address}/openapi.json\n(Ctrl-C ends the service)", flush=True)
            threading.Event().wait()


@contextlib.contextmanager
def running(config: ServeConfig, token: str, version: str = "") -> Iterator[str]:
    """Run the service on the current Ray, and yield its address."""
    # Reserve a GPU or CPU for the model. Decoding shares the CPU.
    resources = {"num_cpus": 1, "num_gpus": 1} if config.use_gpu else {"num_cpus": 1}
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    deployment = serve.deployment(
        name="replica",
        num_replicas=config.num_replicas,
        ray_actor_options=resources,
        max_ongoing_requests=MAX_CONNECTIONS,
        max_queued_requests=MAX_QUEUED,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_S),
        logging_config=quiet,
    )(Replica)
    serve.start(http_options=HTTPOptions(host=config.host, port=config.port), logging_config=quiet)
    try:
        serve.run(deployment.bind(config, token, version), name=APPLICATION, route_prefix="/")
        host = f"[{config.host}]" if ":" in config.host else config.host
        yield f"http://{host}:{config.port}"
    finally:
        serve.shutdown()


@serve.ingress()
class Replica:
    """A copy of the model with its application.

    The model's process forms the batches, so that audio never passes through Ray's object store.
    """

    def __init__(self, config: ServeConfig, token: str, version: str):
        configure_logging()
        self.config, self.token, self.figures = config, token, Figures()
        batches: Any = self.run  # the decorator adds setters that its type does not declare
        batches.set_max_batch_size(config.batch_size)
        batches.set_batch_wait_timeout_s(config.batch_wait_ms / 1000)
        self.service = Service(load_model(config, version), config.limits, self.run)
        self._follower = asyncio.get_running_loop().create_task(self._follow()) if is_followed(config) else None

    def __serve_build_asgi_app__(self) -> Gate:
        return make_app(self.service, self.config.limits, self.token, self.figures)

    # Allow two concurrent batches. A CPU has a second core, and a GPU computes one batch while the next is prepared.
    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.005, max_concurrent_batches=2)
    async def run(self, pending: list[PendingWindow]) -> list[Result]:
        self.figures.batches.observe(len(pending))
        # Compute in a thread, so that the event loop can read and answer requests meanwhile.
        return await asyncio.to_thread(run_batch, pending)

    async def _follow(self) -> None:
        """Load a new model when the alias moves.

        The old model answers until the new model is loaded, and finishes its requests. No request waits, as it would
        for the start of a new replica.
        """
        while True:
            await asyncio.sleep(self.config.poll_s)
            try:
                version = await asyncio.to_thread(current_version, self.config)
                if version != self.service.model.version:
                    self.service.model = await asyncio.to_thread(load_model, self.config, version)
                    log.info("version %s of %s now answers requests", version, self.config.checkpoint)
            except Exception as error:  # after any error the current model continues to answer
                log.warning("the model was not exchanged: %s", describe(error, MAX_ERROR_CHARS))


def is_followed(config: ServeConfig) -> bool:
    return config.checkpoint.startswith(REGISTRY)


def current_version(config: ServeConfig) -> str:
    """Return the current version behind `models:/…`, or "" for a checkpoint outside the registry."""
    if not is_followed(config):
        return ""
    from ast_model.tracking.registry import REGISTERED, find_version
    from ast_model.tracking.server import connect

    name, separator, alias = config.checkpoint.removeprefix(REGISTRY).replace("@", "/").partition("/")
    if name != REGISTERED or not separator:
        raise ConfigError(
            f"expected models:/{REGISTERED}@ALIAS or models:/{REGISTERED}/VERSION, found {config.checkpoint}"
        )
    return str(find_version(connect(Store(resolve_root(config.root))), alias).version)


def load_model(config: ServeConfig, version: str) -> ServedModel:
    """Load the checkpoint, or a version of the registry through a temporary folder."""
    device = "cuda" if config.use_gpu else "cpu"
    if not version:
        tagger = Tagger.load(config.checkpoint, config.labels or None, device, config.calibrated)
        return ServedModel(tagger, name_model(config.checkpoint, tagger))
    from ast_model.tracking.pyfunc import CHECKPOINT
    from ast_model.tracking.registry import download, find_version
    from ast_model.tracking.server import connect

    client = connect(Store(resolve_root(config.root)))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        download(client, find_version(client, version), folder)
        tagger = Tagger.load(folder / "artifacts" / CHECKPOINT, None, device, config.calibrated)
    return ServedModel(tagger, name_model(config.checkpoint, tagger), version)


def name_model(checkpoint: str, tagger: Tagger) -> str:
    """Return a readable name: the public address or file name, then the run's title or the model's size.

    The name never contains paths of this machine, which mean nothing to users and are private.
    """
    title, path = tagger.metadata.title, Path(checkpoint).expanduser()
    if title and path.exists():
        return title
    return f"{path.resolve().name if path.exists() else checkpoint} · {title or size_name(tagger.model.config)}"


def read_token(file: str) -> str:
    """Return the first line of the token file, or "" without a file. Raises InputError."""
    if not file:
        return ""
    try:
        token = Path(file).expanduser().read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--token-file: can't read {file}: {error}") from error
    if len(token) < MIN_TOKEN_CHARS or not token.isascii():
        raise InputError(
            f"--token-file: expected at least {MIN_TOKEN_CHARS} characters of ASCII in {file}, found {len(token)};"
            " create one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return token


def check_port(host: str, port: int) -> None:
    """Raise ConfigError for an unusable address. Serve would start anyway and report the problem only in a log."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise ConfigError(f"{host}:{port} can't be used: {error.strerror}; set --host or --port") from error
