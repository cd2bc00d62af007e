"""Batches on their way to the device, one ahead of the step that takes them."""

from collections.abc import Iterator

import torch

from ast_model.data.loader import Batch


def feed(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches on the device, each copied while the step before it runs. On a CPU, yield them as they are.

    Fbanks travel as the float16 that they are stored in, and become float32 on the device. Batches in pinned memory
    (`BatchReader.prefetch`) are copied by the GPU alone; torch keeps that memory for the next batches.
    """
    if device.type == "cpu":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    following: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        current, following = following, _start_copy(batch, device, stream)
        if current is not None:
            yield _finish_copy(*current)
    if following is not None:
        yield _finish_copy(*following)


def _start_copy(batch: Batch, device: torch.device, stream: torch.cuda.Stream) -> tuple[Batch, torch.cuda.Event]:
    is_copied = torch.cuda.Event()
    with torch.cuda.stream(stream):
        copy = batch.to(device)
    # An event of this copy alone: to wait for the stream would be to wait for the next batch's copy, too.
    is_copied.record(stream)
    return copy, is_copied


def _finish_copy(batch: Batch, is_copied: torch.cuda.Event) -> Batch:
    current = torch.cuda.current_stream(batch.clips.device)
    current.wait_event(is_copied)  # the GPU waits, not the CPU
    for tensor in batch.tensors().values():
        tensor.record_stream(current)  # else its memory could be given to the next copy while the step still reads it
    return batch
