"""Settings of the service."""

from dataclasses import dataclass, field

from ast_model.service.limits import LOOPBACK, Limits
from jobs.command_line.settings import Input
from pipeline.config import check_above_0
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class ServeConfig:
    """Settings of the service."""

    checkpoint: str
    """A checkpoint's folder, a Hugging Face folder or hub name, an official .pth, or models:/audioset-ast@champion,
    which is followed: a new champion is loaded beside the old one, and then takes over."""
    labels: Input = ""
    """The class_labels_indices.csv of an official .pth, which names no classes."""
    root: str = "data/demo"
    """Folder or s3:// address of the store whose registry models:/… is looked up in."""
    calibrated: bool = False
    """Answer with probabilities, and only classes above their thresholds, by the checkpoint's calibration.json."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than this machine's own needs --token-file."""
    port: int = 8000
    """Port to listen on."""
    token_file: Input = ""
    """File whose first line every request must bring as Authorization: Bearer TOKEN."""
    num_replicas: int = 1
    """Copies of the model, each a process with a CPU, or with a GPU if --use-gpu is set."""
    use_gpu: bool = False
    """Give each copy a GPU."""
    batch_size: int = 16
    """Windows, of all requests at a copy, in one batch."""
    batch_wait_ms: float = 5.0
    """How long a batch that isn't full waits for more."""
    poll_s: float = 60.0
    """How often the registry is asked whether the alias has moved."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and not self.token_file:
            raise ConfigError(
                f"expected --token-file for --host {self.host}, found none: whoever reaches the address could use the"
                " service; name a file that holds a token"
            )
        check_above_0(self, ("num_replicas", "batch_size", "poll_s"))
