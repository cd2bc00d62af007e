"""Write tests/ast_model/pretrained/eat_logits.json: the logits of EAT's own code for the weights of the tests.

    git clone https://github.com/cwx-worst-one/EAT /tmp/EAT
    python -m scripts.eat_logits /tmp/EAT

EAT's models run unchanged. They import fairseq and timm, which do not install with current versions of torch, so this
script replaces the few parts that a forward pass without masks uses. The folder SSLAM_Inference of
https://github.com/ta012/SSLAM contains the same files.
"""

import dataclasses
import functools
import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.ast_model.pretrained import eat

OUTPUT = Path(__file__).parents[1] / "tests" / "ast_model" / "pretrained" / "eat_logits.json"


class MLP(nn.Module):
    """timm's MLP: two linear layers with an activation between them."""

    def __init__(self, in_features: int, hidden_features: int, act_layer: Any, drop: float):
        super().__init__()
        self.fc1, self.act, self.fc2 = (
            nn.Linear(in_features, hidden_features),
            act_layer(),
            nn.Linear(hidden_features, in_features),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Unused(nn.Module):
    """Module that only pre-training uses."""

    def __init__(self, *values: Any, **options: Any):
        super().__init__()


def replace_module(name: str, **attributes: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module


def import_eat(folder: Path) -> tuple[Any, Any]:
    """Import EAT's pre-training module, which contains the encoder, and its classification module."""
    replace_module("omegaconf", II=lambda name: None, MISSING=None, open_dict=None)
    replace_module("fairseq", checkpoint_utils=None, tasks=None)
    replace_module("fairseq.tasks", FairseqTask=object)
    replace_module("fairseq.dataclass", FairseqDataclass=object)
    replace_module("fairseq.models", BaseFairseqModel=nn.Module, register_model=lambda *_, **__: lambda model: model)
    replace_module("fairseq.models.wav2vec")
    replace_module("fairseq.models.wav2vec.wav2vec2", TransformerSentenceEncoderLayer=Unused)
    names = "EMAModule EMAModuleConfig GradMultiply SamePad SamePad2d TransposeLast".split()
    replace_module("fairseq.modules", LayerNorm=nn.LayerNorm, **dict.fromkeys(names, Unused))
    replace_module("fairseq.modules.transformer_sentence_encoder", init_bert_params=lambda module: None)
    replace_module("fairseq.data")
    replace_module("fairseq.data.data_utils", compute_mask_indices=None)
    replace_module("fairseq.utils", index_put=None)
    replace_module("timm")
    replace_module("timm.models")
    replace_module("timm.models.layers", to_2tuple=lambda size: size if isinstance(size, tuple) else (size, size))
    vit = dict.fromkeys(("PatchEmbed", "Block", "Attention"), Unused)
    replace_module("timm.models.vision_transformer", Mlp=MLP, DropPath=nn.Identity, **vit)
    for name, place in (("EAT", folder), ("EAT.models", folder / "models")):
        replace_module(name, __path__=[str(place)])
    # EAT uses configs as field defaults, which Python 3.11 accepts only if they are hashable.
    plain = dataclasses.dataclass
    dataclasses.dataclass = functools.partial(plain, unsafe_hash=True)  # pyright: ignore
    try:
        names = ("EAT.models.EAT_pretraining", "EAT.models.EAT_audio_classification")
        pretraining, classification = map(importlib.import_module, names)
    finally:
        dataclasses.dataclass = plain
    return pretraining, classification


def make_model(folder: Path) -> nn.Module:
    """Return the classifier with the tests' weights; its constructor would read a checkpoint."""
    pretraining, classification = import_eat(folder)
    config = pretraining.Data2VecMultiConfig()
    vars(config).update(depth=eat.DEPTH, num_heads=eat.WIDTH // 64, embed_dim=eat.WIDTH, seed=0)
    image = config.modalities.image
    vars(image).update(in_chans=1, prenet_depth=0, num_extra_tokens=1, embed_dim=eat.WIDTH, decoder=None)
    image.target_length = eat.NUM_FRAMES
    model = classification.MaeImageClassificationModel.__new__(classification.MaeImageClassificationModel)
    nn.Module.__init__(model)
    model.cfg = types.SimpleNamespace(prediction_mode=classification.PredictionMode.CLS_TOKEN)
    model.linear_classifier, model.d2v_multi, model.mixup_fn, model.specaug = False, True, None, False
    model.model = pretraining.Data2VecMultiModel(config, [pretraining.Modality.IMAGE], skip_ema=True)
    model.fc_norm, model.head = nn.LayerNorm(eat.WIDTH, eps=1e-6), nn.Linear(eat.WIDTH, eat.NUM_CLASSES)
    for name, parameter in model.named_parameters():
        if not name.endswith("positions"):
            parameter.data.copy_(eat.draw(name, tuple(parameter.shape)))
    assert set(eat.draw_checkpoint()) == {name for name in model.state_dict() if not name.endswith("positions")}
    return model.eval()


def main(folder: str) -> None:
    with torch.inference_mode():
        logits = make_model(Path(folder))(eat.draw_fbank()[:, None])
    OUTPUT.write_text(json.dumps({"made_by": "scripts/eat_logits.py", "logits": logits.tolist()}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
