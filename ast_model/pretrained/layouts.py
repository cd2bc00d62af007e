"""Tensor names of published checkpoints: one table per layout, used for loading and for export.

A table maps modules and parameters of `AST` to their names in the layout, with `{}` for the number of a block. Three
names in a row are separate tensors for query, key and value, which `AST` concatenates along the first axis.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import WeightsError

Tensors = Mapping[str, Tensor]
Names = tuple[str, ...]

_PARAMETERS = ("class_token", "distillation_token", "positions")
_KINDS = ("weight", "bias")


@dataclass(frozen=True)
class Layout:
    """A naming scheme for the tensors of an AST."""

    title: str
    """Description of the layout for messages."""
    body: Mapping[str, str]
    """Names of all modules except the head. A checkpoint may prefix all of them."""
    head: Mapping[str, str]
    """Full names of the head's modules; the prefix applies to the body only."""
    unused: Names
    """Name prefixes, after the checkpoint's own prefix, of tensors to ignore."""
    mark: str = ""
    """Name of a tensor that identifies the layout. Default: the LayerNorm of the first block."""
    optional: Names = ()
    """Tensors of `AST` that some models of this layout lack."""

    def tensor_names(self, depth: int, prefix: str) -> dict[str, Names]:
        """Map each tensor of `AST` to its names in the checkpoint."""
        return {**dict(_expand(self.body, depth, prefix)), **dict(_expand(self.head, depth))}

    def find_prefix(self, tensors: Tensors) -> str | None:
        """Return the prefix of the body's names, or None if the tensors have another layout."""
        mark = self.mark or self._block_mark(0)
        return next((name.removesuffix(mark) for name in tensors if f".{name}".endswith(f".{mark}")), None)

    def count_blocks(self, tensors: Tensors, prefix: str) -> int:
        return next(number for number in range(len(tensors) + 1) if prefix + self._block_mark(number) not in tensors)

    def _block_mark(self, number: int) -> str:
        return self.body["blocks.{}.attention_norm"].format(number) + ".weight"


def find_layout(tensors: Tensors) -> tuple[Layout, str]:
    """Return the layout and the prefix of a checkpoint. Raises WeightsError for an unknown layout."""
    for layout in (OWN, EAT, EAT_HUB, TIMM, HUGGING_FACE, HUGGING_FACE_5):
        if (prefix := layout.find_prefix(tensors)) is not None:
            return (AUDIO_VIT if layout is TIMM and _is_audio_vit(tensors, prefix) else layout), prefix
    raise WeightsError(
        "expected weights of an AST (this project's, the official ones or Hugging Face's), an EAT, AudioMosaic,"
        " AudioMAE or distilled DeiT, "
        f"found {'tensors such as ' + ', '.join(list(tensors)[:3]) if tensors else 'no tensors'}"
    )


def _is_audio_vit(tensors: Tensors, prefix: str) -> bool:
    """Return True for patches of one channel, unlike an image model, without an AST's second token and head."""
    patches = tensors.get(f"{prefix}patch_embed.proj.weight")
    is_ast = f"{prefix}dist_token" in tensors or "mlp_head.1.weight" in tensors
    return not is_ast and patches is not None and patches.shape[1] == 1


def to_layout(weights: Tensors, layout: Layout, depth: int, prefix: str) -> dict[str, Tensor]:
    """Rename the tensors of `AST` to a layout."""
    renamed = {}
    for ours, theirs in layout.tensor_names(depth, prefix).items():
        renamed.update(zip(theirs, weights[ours].chunk(len(theirs)), strict=True))
    return renamed


def from_layout(tensors: Tensors, names: Mapping[str, Names]) -> dict[str, Tensor]:
    """Rename the tensors of a checkpoint to `AST`, given the result of `tensor_names`. Skips missing tensors."""
    return {
        ours: torch.cat([tensors[name] for name in theirs])
        for ours, theirs in names.items()
        if all(name in tensors for name in theirs)
    }


def _expand(table: Mapping[str, str], depth: int, prefix: str = "") -> Iterator[tuple[str, Names]]:
    """Yield the table's entries for each block number and, for modules, for weight and bias."""
    for ours, theirs in table.items():
        for ending in ("",) if ours in _PARAMETERS else [f".{kind}" for kind in _KINDS]:
            for number in range(depth if "{}" in ours else 1):
                names = tuple(prefix + name.format(number) + ending for name in theirs.split())
                yield ours.format(number) + ending, names


TIMM = Layout(
    title="timm's layout",  # of DeiT and, with the prefix `v.`, of the official AST
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

_OPTIONAL_NORMS = tuple(f"{norm}.{kind}" for norm in ("patch_norm", "input_norm", "norm") for kind in _KINDS)

AUDIO_VIT = Layout(
    title="timm's layout of an audio transformer",  # of AudioMosaic and AudioMAE
    body={
        **{ours: theirs for ours, theirs in TIMM.body.items() if ours != "distillation_token"},
        "patch_norm": "patch_embed.norm",
        "input_norm": "norm_pre",
    },
    head={"head.norm": "fc_norm", "head.linear": "head"},
    # Parts that only pre-training uses.
    unused=("projector.", "online_classifier.", "logit_scale", "logit_bias", "decoder_", "mask_token"),
    # AudioMosaic's pre-trained weights have the head's norm already.
    optional=(*_OPTIONAL_NORMS, "head.norm.weight", "head.norm.bias"),
)

OWN = Layout(
    title="this project's layout",
    body={name: name for name in (*TIMM.body, "patch_norm", "input_norm")},
    head={name: name for name in TIMM.head},
    unused=(),
    optional=("distillation_token", "positions", *_OPTIONAL_NORMS),
)

_OF_EAT = "modality_encoders.IMAGE."
EAT_POSITIONS = "fixed_positional_encoder.positions"

EAT = Layout(
    title="EAT's layout",  # of fairseq checkpoints of EAT and SSLAM; fine-tuned models add the prefix `model.`
    body={
        **{ours: theirs for ours, theirs in TIMM.body.items() if ours.startswith("blocks.")},
        "class_token": f"{_OF_EAT}extra_tokens",
        "patch_embedding": f"{_OF_EAT}local_encoder.proj",
        "norm": f"{_OF_EAT}context_encoder.norm",
    },
    head={"head.norm": "fc_norm", "head.linear": "head"},
    # Parts that only pre-training uses, and positions that follow from a formula.
    unused=(
        f"{_OF_EAT}{EAT_POSITIONS}",
        f"{_OF_EAT}decoder.",
        "shared_decoder.",
        "recon_proj.",
        "cls_proj.",
        "center",
        "_ema",
    ),
    mark=f"{_OF_EAT}extra_tokens",
)

EAT_HUB = Layout(
    title="EAT's layout on the Hugging Face hub",
    body={
        **{ours: theirs for ours, theirs in TIMM.body.items() if ours.startswith("blocks.")},
        "class_token": "extra_tokens",
        "patch_embedding": "local_encoder.proj",
        "norm": "pre_norm",
    },
    head={"head.norm": "model.fc_norm", "head.linear": "model.head"},
    unused=(EAT_POSITIONS,),
    mark="extra_tokens",
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
"""Names in files, including files of transformers 5."""

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
"""Names in memory: the `state_dict()` of a model in transformers 5."""
