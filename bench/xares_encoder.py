"""An AST as an encoder for X-ARES, the public suite that measures audio embeddings (https://github.com/jimbozhang/xares).

    pip install xares
    XARES_CHECKPOINT=CHECKPOINT python -m xares.run --max-jobs 8 bench/xares_encoder.py src/tasks/*.py

X-ARES makes the encoder without arguments, so the checkpoint's address comes from the environment. The tasks are files
of X-ARES' repository, which fetch their data themselves.
"""

import os

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from ast_model.data.augment import normalise
from ast_model.pretrained.load import fit_weights
from ast_model.pretrained.metadata import find_labels, read_metadata
from ast_model.pretrained.weight_files import read_weights
from pipeline.errors import ConfigError
from pipeline.fbank import compute_fbank
from pipeline.fbank_settings import FRAME_LENGTH, FRAME_SHIFT_MS, SAMPLE_RATE_HZ
from pipeline.labels import Labels

CHECKPOINT = "XARES_CHECKPOINT"
BATCH_WINDOWS = 16


class ASTEncoder(nn.Module):
    """Embeddings of a waveform, one for each step of the patches in time, averaged over frequency."""

    def __init__(self, checkpoint: str = "") -> None:
        super().__init__()
        checkpoint = checkpoint or os.environ.get(CHECKPOINT, "")
        if not checkpoint:
            raise ConfigError(f"expected a checkpoint in {CHECKPOINT}, found none: name a folder, .pth or hub name")
        file = read_weights(checkpoint)
        self.model = fit_weights(file, checkpoint).eval().requires_grad_(False)
        config = self.model.config
        # The classes count for nothing here, but an official .pth has its mean and std only with some.
        names = tuple(f"class {index}" for index in range(config.num_classes))
        metadata = read_metadata(file, config, None if find_labels(file, config) else Labels(names, names))
        self.mean, self.std = metadata.mean, metadata.std
        self.sampling_rate = SAMPLE_RATE_HZ
        self.output_dim = config.width
        self.hop_size_in_ms = config.time_stride * FRAME_SHIFT_MS

    def forward(self, audio: Tensor) -> Tensor:
        """Return embeddings (B, T, D), every `hop_size_in_ms`, of waveforms (B, S) or (S,) of any length."""
        waveform_BS = audio[None] if audio.ndim == 1 else audio
        waveform_BS = waveform_BS - waveform_BS.mean(dim=1, keepdim=True)
        waveform_BS = nnf.pad(waveform_BS, (0, max(0, FRAME_LENGTH - waveform_BS.shape[1])))
        with torch.inference_mode():
            fbank_BTM = compute_fbank(waveform_BS)
            windows_BWTM, num_steps = self._windows(fbank_BTM)
            batches = windows_BWTM.flatten(0, 1).split(BATCH_WINDOWS)
            steps_XTD = torch.cat([self._embed(batch) for batch in batches])
        return steps_XTD.unflatten(0, windows_BWTM.shape[:2]).flatten(1, 2)[:, :num_steps]

    def _windows(self, fbank_BTM: Tensor) -> tuple[Tensor, int]:
        """Cut an fbank into windows (B, W, T, M) whose steps follow each other evenly, the last padded with 0.

        A window starts where the next step of the one before it would be. Returns how many steps hold audio, too.
        """
        config = self.model.config
        hop = config.grid[1] * config.time_stride
        num_frames = fbank_BTM.shape[1]
        num_steps = -(-num_frames // config.time_stride)
        num_windows = -(-num_frames // hop)
        padded_BTM = nnf.pad(fbank_BTM, (0, 0, 0, (num_windows - 1) * hop + config.num_frames - num_frames))
        return padded_BTM.unfold(1, config.num_frames, hop).transpose(2, 3), num_steps

    def _embed(self, fbank_BTM: Tensor) -> Tensor:
        tokens_BND = self.model.tokens(normalise(fbank_BTM, self.mean, self.std))
        patches_BFTD = tokens_BND[:, self.model.config.num_extra_tokens :].unflatten(1, self.model.config.grid)
        return patches_BFTD.mean(dim=1)
