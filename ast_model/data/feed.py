"""Copy batches to the device, one batch ahead of the step."""

from collections.abc import Iterator

import torch

from ast_model.data.loader import Batch


def feed(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches on the device, each copied while the previous step runs. On a CPU, yield them unchanged.

    Fbanks are copied as float16 and converted to float32 on the device. Copies from pinned memory
    (`BatchReader.prefetch`) do not involve the CPU; torch reuses the pinned memory for later batches.
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
    # Use one event per copy. Waiting for the stream would also wait for the next batch's copy.
    is_copied.record(stream)
    return copy, is_copied


def _finish_copy(batch: Batch, is_copied: torch.cuda.Event) -> Batch:
    current = torch.cuda.current_stream(batch.clips.device)
    current.wait_event(is_copied)  # the GPU waits, not the CPU
    for tensor in batch.tensors().values():
        tensor.record_stream(current)  # otherwise the next copy could reuse the memory while the step still reads it
    return batch
