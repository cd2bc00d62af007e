"""Compare a training step with other implementations, on the same batch and device, in alternating rounds.

    python -m bench.train_step                       # small models on a CPU: a smoke test, with ratios
    python -m bench.train_step --batch-size 64       # AST-base on a GPU

Prints a JSON line per comparison: samples per second (median of rounds), the other implementation's, and their ratio.
Ours: plain; compiled; with PaSST's patchout; and fed by the real loader from local shards (of noise, unless `--store
ROOT` names a store) instead of one batch on the device. Only ours augment the batch as well. Others: transformers' AST
with SDPA and fused Adam, plain and compiled; and the official arithmetic, with attention written out as products and a
softmax, fp16 autocast with a scaler on a GPU, and Adam by single parameters. The latter, and the compiled transformers
model, keep the attention weights for the backward (over 1 GB per clip for AST-base), so they take at most 32 clips.
"""

import argparse
import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Container, Generator, Iterator, Mapping
from statistics import median

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from transformers import ASTConfig as TheirConfig
from transformers import ASTForAudioClassification

from ast_model.config import ASTConfig, AugmentConfig, RegulariseConfig, TrainConfig
from ast_model.data.augment import Normalisation
from ast_model.data.loader import Batch
from ast_model.data.sampling import NUM_UNIFORMS
from ast_model.distributed import World
from ast_model.flops import training_flops
from ast_model.losses import clip_losses
from ast_model.model import AST, Attention
from ast_model.training.data import TrainingData
from ast_model.training.plan import TrainingPlan
from ast_model.training.state import TrainingState
from ast_model.training.step import Stepper
from ast_model.training.step_metrics import peak_flops
from bench.lines import print_line
from bench.stores import make_store
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.storage import Store

SMALL = ASTConfig(num_frames=256, width=96, depth=4, num_heads=4)
NORMAL = Normalisation(-4.27, 4.57)
Step = Callable[[], object]
WRITTEN_OUT = ("official arithmetic", "transformers, compiled")
MAX_WRITTEN_OUT_SIZE = 32


def make_batch(config: ASTConfig, size: int, device: torch.device) -> Batch:
    """Return a batch of noise, with half of the clips mixed."""
    random = np.random.default_rng(0)
    shape = (size, config.num_frames, config.num_mel_bins)
    clips = torch.from_numpy(random.normal(-4, 4, shape).astype(np.float16))
    mixed = torch.arange(0, size, 2)
    lengths = torch.full((size,), config.num_frames)
    return Batch(
        features="fbank",
        num_frames=config.num_frames,
        rows=np.arange(size),
        clips=clips,
        lengths_B=lengths,
        targets_BC=(torch.rand(size, config.num_classes) < 0.005).float(),
        mixed=mixed,
        partners=clips[mixed],
        partner_lengths_Q=lengths[mixed],
        lambda_Q=torch.full((len(mixed),), 0.5),
        uniforms=torch.rand(size, NUM_UNIFORMS),
    ).to(device)


def ours(config: ASTConfig, batches: Iterator[Batch], size: int, world: World, **settings) -> Step:
    train = TrainConfig(global_batch_size=size, micro_batch_size=size, augment=AugmentConfig(), **settings)
    state = TrainingState(AST(config).train(), train, world)
    stepper = Stepper(state, train, NORMAL, world)
    steps = itertools.count()
    return lambda: stepper.train_step(0, next(steps), batches)


def transformers_ast(config: ASTConfig, batch: Batch, world: World, is_compiled: bool = False) -> Step:
    theirs = TheirConfig(
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_ratio * config.width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_length=config.num_frames,
        num_mel_bins=config.num_mel_bins,
        frequency_stride=config.freq_stride,
        time_stride=config.time_stride,
    )
    theirs.num_labels = config.num_classes
    theirs._attn_implementation = "sdpa"
    model = nn.Sequential(ASTForAudioClassification(theirs)).to(world.device).train()
    if is_compiled:
        model.compile()
    optimizer = torch.optim.Adam(model.parameters(), 1e-5, TrainConfig.betas, fused=True)
    fbank_BTM = batch.clips.float()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with world.autocast("auto"):
            logits_BC = model(fbank_BTM).logits
        clip_losses(logits_BC.float(), batch.targets_BC, "bce").mean().backward()
        optimizer.step()

    return step


class WrittenOutAttention(Attention):
    """The official model's attention: products and a softmax, with each result in memory."""

    def forward(self, tokens_BND: Tensor, num_queries: int | None = None) -> Tensor:
        assert num_queries is None, "the official model computes all tokens in its last block"
        qkv_BN3HK = self.qkv(tokens_BND).unflatten(2, (3, self.num_heads, -1))
        query, key, value = qkv_BN3HK.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1)
        return self.out((weights @ value).transpose(1, 2).flatten(2))


def official_arithmetic(config: ASTConfig, batch: Batch, world: World) -> Step:
    model = AST(config)
    for block in model.blocks:
        assert isinstance(block, nn.Module)
        block.attention = WrittenOutAttention(config)
    model = model.to(world.device).train()
    is_gpu = world.device.type == "cuda"
    optimizer = torch.optim.Adam(model.parameters(), 1e-5, TrainConfig.betas, weight_decay=5e-7, foreach=False)
    scaler = GradScaler(world.device.type, enabled=is_gpu)
    fbank_BTM = batch.clips.float()

    def step() -> None:
        optimizer.zero_grad()
        with world.autocast("fp16" if is_gpu else "fp32"):
            logits_BC = model.head(model.tokens(fbank_BTM)[:, :2].mean(dim=1))
        loss = nnf.binary_cross_entropy_with_logits(logits_BC.float(), batch.targets_BC)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def stored_batches(snapshot: Snapshot, config: ASTConfig, size: int, world: World) -> Generator[Batch]:
    """Yield batches of a snapshot from the training's loader."""
    splits = tuple(split for split in ("balanced_train", "unbalanced_train") if split in snapshot.splits)
    train = TrainConfig(train_splits=splits, eval_split=splits[0], global_batch_size=size, micro_batch_size=size)
    train = dataclasses.replace(train, draws_per_epoch=size * 1000)
    data = TrainingData(TrainingPlan(snapshot, train), config.num_frames)
    for epoch in itertools.count():
        yield from data.batches(epoch, range(data.plan.num_steps), world)


def wait(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()


def warm_up(contenders: dict[str, Step], world: World) -> dict[str, float]:
    """Take three steps with each contender, and return the seconds of the first step, which includes compilation.

    Contenders that run out of memory are removed.
    """
    seconds = {}
    for name, step in list(contenders.items()):
        try:
            started = time.perf_counter()
            step()
            wait(world)
            seconds[name] = time.perf_counter() - started
            step()
            step()
        except torch.OutOfMemoryError as error:
            print(f"{name}: out of memory, {str(error).splitlines()[0][:200]}", flush=True)
            del contenders[name]
        if world.device.type == "cuda":
            torch.cuda.empty_cache()  # other contenders have batches of other sizes
    return seconds


def time_in_turns(contenders: dict[str, Step], world: World, rounds: int, steps: int) -> dict[str, float]:
    """Return the seconds per step of each contender (median of the rounds)."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, step in contenders.items():
            wait(world)
            started = time.perf_counter()
            for _ in range(steps):
                step()
            wait(world)
            seconds[name].append((time.perf_counter() - started) / steps)
    return {name: median(each) for name, each in seconds.items()}


def print_cells(
    names: Container[str], seconds: Mapping[str, float], size: int, config: ASTConfig, patchout: RegulariseConfig
) -> None:
    """Print each contender next to its reference, with MFU if the device's peak is known."""
    rates = {name: size / each for name, each in seconds.items()}
    for name in WRITTEN_OUT:
        if name in rates:
            rates[name] *= min(size, MAX_WRITTEN_OUT_SIZE) / size
    peak = peak_flops(torch.device("cuda")) if torch.cuda.is_available() else None
    cells = [("ours", "transformers"), ("ours", "official arithmetic")]
    cells += [(f"ours, {what}", "ours") for what in ("compiled", "compiled as a whole", "patchout", "fed")]
    cells += [("ours, compiled", peer) for peer in ("transformers", "transformers, compiled", "official arithmetic")]
    cells += [("ours, compiled as a whole", "transformers, compiled")]
    for name, peer in cells:
        if name in names and peer in rates:
            kept = patchout.num_kept_patches(config.grid) if "patchout" in name else config.num_patches
            flops_per_s = training_flops(config, kept) * rates[name]
            rest = {"tflops": flops_per_s / 1e12} | ({"mfu": flops_per_s / peak} if peak else {})
            print_line(name, "samples/s", rates[name], (peer, rates[peer]), batch_size=size, **rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=None, help="steps per round")
    parser.add_argument("--store", default="", help="root of a store to feed from")
    parser.add_argument("--compile", action="store_true", help="also benchmark compiled models; default on a GPU")
    args = parser.parse_args()
    is_gpu = torch.cuda.is_available()
    world = World(0, 1, torch.device("cuda", 0) if is_gpu else torch.device("cpu"))
    torch.set_num_threads(torch.get_num_threads() if is_gpu else 1)
    config, size = (ASTConfig.base(), args.batch_size or 64) if is_gpu else (SMALL, args.batch_size or 4)
    batch = make_batch(config, size, world.device)
    small_batch = make_batch(config, min(size, MAX_WRITTEN_OUT_SIZE), world.device)
    patchout = RegulariseConfig(patchout_freq=4, patchout_time=round(40 / 101 * config.grid[1]))
    with tempfile.TemporaryDirectory() as folder:
        snapshot = load_snapshot(Store(args.store)) if args.store else make_store(Store(folder), 4, 100)
        stored = stored_batches(snapshot, config, size, world)
        fed_config = dataclasses.replace(config, num_classes=len(snapshot.labels))
        contenders = {
            "ours": ours(config, itertools.repeat(batch), size, world),
            "ours, patchout": ours(config, itertools.repeat(batch), size, world, regularise=patchout),
            "ours, fed": ours(fed_config, stored, size, world),
            "transformers": transformers_ast(config, batch, world),
            "official arithmetic": official_arithmetic(config, small_batch, world),
        }
        compiled: dict[str, Step] = {}
        if is_gpu or args.compile:
            for what in ("blocks", "model"):
                name = "ours, compiled" if what == "blocks" else "ours, compiled as a whole"
                compiled[name] = ours(config, itertools.repeat(batch), size, world, compile=what)
            compiled["transformers, compiled"] = transformers_ast(config, small_batch, world, is_compiled=True)
        seconds: dict[str, float] = {}
        # Compiled models last, after printing all other results: compiling may exceed the deadline.
        for group in (contenders, compiled):
            for name, first_s in warm_up(group, world).items():
                if group is compiled:
                    print_line(f"first step, {name}", "s", first_s)
            seconds |= time_in_turns(group, world, args.rounds, args.steps or (20 if is_gpu else 2))
            print_cells(group, seconds, size, config, patchout)
        stored.close()


if __name__ == "__main__":
    main()
