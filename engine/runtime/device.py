"""The few things that differ between a CPU and a device that runs behind the host."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def to_host(tensor: Tensor) -> Tensor:
    """The tensor in host memory. From a device the copy is only enqueued: read it after `Stopwatch.wait`."""
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def to_device(values: Tensor | Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on the device with values of the host. The copy is only enqueued: a copy from ordinary memory would
    wait until the device has done all that is enqueued before it, and the step after it would come late.
    """
    tensor = values if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class Stopwatch:
    """Marks the begin and the end of one step's work on the device."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
        self._begin_s = self._end_s = 0.0

    def begin(self) -> None:
        """What is enqueued from here on counts."""
        self._begin_s = self._clock()
        if self._events:
            self._events[0].record()

    def end(self) -> None:
        """What is enqueued from here on does not."""
        self._end_s = self._clock()
        if self._events:
            self._events[1].record()

    def wait(self) -> float:
        """Block until the device has passed the end; seconds it was busy."""
        if not self._events:
            return self._end_s - self._begin_s
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1])) / 1000
