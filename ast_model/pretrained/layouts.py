"""Names that others give the tensors of `model.AST`: one table per layout, read in both directions.

A table maps our modules and parameters to theirs; `{}` stands for the number of a block. Where they keep query, key
and value apart, their three names stand in a row: our tensor is theirs on top of each other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import WeightsError

Tensors = Mapping[str, Tensor]
Names = tuple[str, ...]

_PARAMETERS = ("class_token", "distillation_token", "positions")


@dataclass(frozen=True)
class Layout:
    """One way to name the tensors."""

    title: str
    """For messages."""
    body: Mapping[str, str]
    """All but the head. Their names may have any prefix, one for all."""
    head: Mapping[str, str]
    unused: Names
    """Starts, after the prefix, of the names of tensors that we have no use for."""
    mark: str = ""
    """Name of a tensor that tells it from other layouts; that of the first block's LayerNorm unless set."""
    optional: Names = ()
    """Our tensors that some of its models lack."""

    def tensor_names(self, depth: int, prefix: str) -> dict[str, Names]:
        """Map each of our tensors to theirs."""
        return {**dict(_expand(self.body, depth, prefix)), **dict(_expand(self.head, depth))}

    def find_prefix(self, tensors: Tensors) -> str | None:
        """Return what stands before the body's names, or None if these tensors have another layout."""
        mark = self.mark or self._block_mark(0)
        return next((name.removesuffix(mark) for name in tensors if f".{name}".endswith(f".{mark}")), None)

    def count_blocks(self, tensors: Tensors, prefix: str) -> int:
        return next(number for number in range(len(tensors) + 1) if prefix + self._block_mark(number) not in tensors)

    def _block_mark(self, number: int) -> str:
        return self.body["blocks.{}.attention_norm"].format(number) + ".weight"


def find_layout(tensors: Tensors) -> tuple[Layout, str]:
    """Return the layout of a checkpoint and its prefix. Raises WeightsError if it is none of those below."""
    for layout in (OWN, EAT, TIMM, HUGGING_FACE, HUGGING_FACE_5):
        if (prefix := layout.find_prefix(tensors)) is not None:
            return layout, prefix
    raise WeightsError(
        "expected weights of an AST (ours, the official ones or Hugging Face's), an EAT or a distilled DeiT, "
        f"found tensors such as {', '.join(list(tensors)[:3]) or 'none at all'}"
    )


def to_layout(weights: Tensors, layout: Layout, depth: int, prefix: str) -> dict[str, Tensor]:
    """Give our tensors the names of a layout."""
    renamed = {}
    for ours, theirs in layout.tensor_names(depth, prefix).items():
        renamed.update(zip(theirs, weights[ours].chunk(len(theirs)), strict=True))
    return renamed


def from_layout(tensors: Tensors, names: Mapping[str, Names]) -> dict[str, Tensor]:
    """Give tensors our names, as `tensor_names` has them; what is missing is left out."""
    return {
        ours: torch.cat([tensors[name] for name in theirs])
        for ours, theirs in names.items()
        if all(name in tensors for name in theirs)
    }


def _expand(table: Mapping[str, str], depth: int, prefix: str = "") -> Iterator[tuple[str, Names]]:
    """Put every block's number for `{}`, and weight and bias for a module."""
    for ours, theirs in table.items():
        for ending in ("",) if ours in _PARAMETERS else (".weight", ".bias"):
            for number in range(depth if "{}" in ours else 1):
                names = tuple(prefix + name.format(number) + ending for name in theirs.split())
                yield ours.format(number) + ending, names


TIMM = Layout(
    title="timm's layout",  # of DeiT's weights too and, below `v.`, of the official AST's
    body={
        "class_token": "cls_token",
        "distillation_token": "dist_token",
        "positions": "pos_embed",
        "patch_embedding": "patch_embed.proj",
        "blocks.{}.attention_norm": "blocks.{}.norm1",
        "blocks.{}.attention.qkv": "blocks.{}.attn.qkv",
        "blocks.{}.attention.out": "blocks.{}.attn.proj",
        "blocks.{}.mlp_norm": "blocks.{}.norm2",
        "blocks.{}.mlp.up": "blocks.{}.mlp.fc1",
        "blocks.{}.mlp.down": "blocks.{}.mlp.fc2",
        "norm": "norm",
    },
    head={"head.norm": "mlp_head.0", "head.linear": "mlp_head.1"},
    unused=("head.", "head_dist."),
)

OWN = Layout(
    title="our own layout",
    body={name: name for name in TIMM.body},
    head={name: name for name in TIMM.head},
    unused=(),
    optional=("distillation_token", "positions"),
)

_OF_EAT = "modality_encoders.IMAGE."
EAT_POSITIONS = f"{_OF_EAT}fixed_positional_encoder.positions"

EAT = Layout(
    title="EAT's layout",  # of a fairseq checkpoint, of SSLAM's too; fine-tuned ones have it below `model.`
    body={
        **{ours: theirs for ours, theirs in TIMM.body.items() if ours.startswith("blocks.")},
        "class_token": f"{_OF_EAT}extra_tokens",
        "patch_embedding": f"{_OF_EAT}local_encoder.proj",
        "norm": f"{_OF_EAT}context_encoder.norm",
    },
    head={"head.norm": "fc_norm", "head.linear": "head"},
    # What pre-training learned with, and positions that follow from a formula.
    unused=(EAT_POSITIONS, f"{_OF_EAT}decoder.", "shared_decoder.", "recon_proj.", "cls_proj.", "center", "_ema"),
    mark=f"{_OF_EAT}extra_tokens",
)

_HUGGING_FACE_ENDS = {
    "class_token": "embeddings.cls_token",
    "distillation_token": "embeddings.distillation_token",
    "positions": "embeddings.position_embeddings",
    "patch_embedding": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_HUGGING_FACE_HEAD = {"head.norm": "classifier.layernorm", "head.linear": "classifier.dense"}
_HUGGING_FACE_UNUSED = ("pooler.", "classifier.", "cls_classifier.", "distillation_classifier.")

HUGGING_FACE = Layout(
    title="Hugging Face's layout",
    body={
        **_HUGGING_FACE_ENDS,
        "blocks.{}.attention_norm": "encoder.layer.{}.layernorm_before",
        "blocks.{}.attention.qkv": "encoder.layer.{}.attention.attention.query "
        "encoder.layer.{}.attention.attention.key encoder.layer.{}.attention.attention.value",
        "blocks.{}.attention.out": "encoder.layer.{}.attention.output.dense",
        "blocks.{}.mlp_norm": "encoder.layer.{}.layernorm_after",
        "blocks.{}.mlp.up": "encoder.layer.{}.intermediate.dense",
        "blocks.{}.mlp.down": "encoder.layer.{}.output.dense",
    },
    head=_HUGGING_FACE_HEAD,
    unused=_HUGGING_FACE_UNUSED,
)
"""On disk, also as transformers 5 writes it."""

HUGGING_FACE_5 = Layout(
    title="the layout of transformers 5",
    body={
        **_HUGGING_FACE_ENDS,
        "blocks.{}.attention_norm": "layers.{}.layernorm_before",
        "blocks.{}.attention.qkv": "layers.{}.attention.q_proj layers.{}.attention.k_proj layers.{}.attention.v_proj",
        "blocks.{}.attention.out": "layers.{}.attention.o_proj",
        "blocks.{}.mlp_norm": "layers.{}.layernorm_after",
        "blocks.{}.mlp.up": "layers.{}.mlp.fc1",
        "blocks.{}.mlp.down": "layers.{}.mlp.fc2",
    },
    head=_HUGGING_FACE_HEAD,
    unused=_HUGGING_FACE_UNUSED,
)
"""In memory: what `state_dict()` of a model gives there."""
