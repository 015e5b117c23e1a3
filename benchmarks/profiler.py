"""How long a GPU works, by PyTorch's profiler, which sees what any library of the process makes it do (CUPTI)."""

from collections.abc import Callable
from typing import Any

from benchmarks.peers import NotThere


def _union(spans: list[tuple[float, float]]) -> float:
    """The length of what the spans cover together."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def seconds_busy(block: Callable[[], Any]) -> float:
    """Seconds in which at least one kernel, copy or fill of a block, which waits for its end, is being done."""
    try:
        import torch
        from torch.profiler import ProfilerActivity, profile
    except ImportError:
        raise NotThere("it takes PyTorch's profiler, which is not installed") from None
    if not torch.cuda.is_available():
        raise NotThere("it takes PyTorch's profiler, and PyTorch finds no GPU that it can use")
    on_gpu = torch.autograd.DeviceType.CUDA
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        block()
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in record.events()
        if event.device_type == on_gpu and not event.is_user_annotation
    ]
    if not spans:
        raise NotThere("PyTorch's profiler has seen no kernel")
    return _union(spans) / 1e6
