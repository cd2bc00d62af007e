"""Settings for the service."""

from dataclasses import dataclass, field

from ast_model.service.limits import LOOPBACK, Limits
from jobs.command_line.settings import Input
from pipeline.config import check_above_0
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class ServeConfig:
    """Settings for the service."""

    checkpoint: str
    """A checkpoint's folder, a Hugging Face folder or hub name, an official .pth, or models:/audioset-ast@champion. The
    service follows the champion: it loads a new one in the background and then switches."""
    labels: Input = ""
    """The class_labels_indices.csv for an official .pth, which contains no class names."""
    root: str = "data/demo"
    """Folder or s3:// address of the store with the registry for models:/…"""
    calibrated: bool = False
    """Use the checkpoint's calibration.json: return probabilities, and only classes above their thresholds."""
    host: str = "127.0.0.1"
    """Address to listen on. Addresses beyond this machine need --token-file."""
    port: int = 8000
    """Port to listen on."""
    token_file: Input = ""
    """File whose first line is a token. Each request must send it as Authorization: Bearer TOKEN."""
    num_replicas: int = 1
    """Number of copies of the model. Each copy is a process with a CPU, or with a GPU if --use-gpu is set."""
    use_gpu: bool = False
    """Give each copy a GPU."""
    batch_size: int = 16
    """Maximum windows per batch. A batch combines windows from all requests to a copy."""
    batch_wait_ms: float = 5.0
    """Milliseconds that an incomplete batch waits for more windows."""
    poll_s: float = 60.0
    """Seconds between checks of the registry for a moved alias."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and not self.token_file:
            raise ConfigError(
                f"--host {self.host} needs --token-file, because everyone who can reach the address could use the"
                " service; name a file with a token"
            )
        check_above_0(self, ("num_replicas", "batch_size", "poll_s"))
