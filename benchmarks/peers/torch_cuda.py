"""PyTorch on a GPU: as on a CPU, and each of these also recorded once as a CUDA graph, which is what is then run.

Products and convolutions are of float32, without TF32, and cuDNN tries its algorithms at the first call of a shape.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.convolutional import ConvGan
from benchmarks.peers import NotThere, Program, torch as on_cpu
from benchmarks.scenarios import Array, Gan

WARM = 3  # steps before the recording, in which kernels are compiled and chosen and Adam makes its memory


def setup(threads: int) -> None:
    """Hold PyTorch to so many threads of the CPU and to float32."""
    if not torch.cuda.is_available():
        raise NotThere(f"PyTorch {torch.__version__} finds no GPU that it can use")
    on_cpu.setup(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


def gan(scenario: Gan, dtype: str, variant: str) -> Program:
    """A step of both players."""
    kind, _, graph = variant.partition("-")
    return _program(on_cpu.gan(scenario, dtype, kind, "cuda"), bool(graph))


def conv_gan(scenario: ConvGan, dtype: str, variant: str) -> Program:
    """A step of both players."""
    kind, _, graph = variant.partition("-")
    return _program(on_cpu.conv_gan(scenario, dtype, kind, "cuda"), bool(graph))


def _program(program: Program, graph: bool) -> Program:
    return Program(_graphed(program.step), program.read) if graph else program


def _graphed(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step as a graph, recorded at its fourth call; what it is given is copied to where the graph reads it."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    given: list[Any] = []
    calls, result = 0, None

    def call(*arrays: Any) -> Any:
        nonlocal calls, result
        calls += 1
        if calls <= WARM:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                losses = step(*arrays)
            torch.cuda.current_stream().wait_stream(stream)
            return losses
        if not given:
            given.extend(torch.empty_like(a) for a in arrays)
            with torch.cuda.graph(graph, stream=stream):  # which runs nothing
                result = step(*given)
        with torch.no_grad():
            for there, a in zip(given, arrays, strict=True):
                there.copy_(a)
        graph.replay()
        return result

    return call


def put(array: Array) -> Any:
    """A copy on the GPU."""
    return torch.from_numpy(array).cuda()


def timed(block: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds between two events around a block, and its result."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    result = block()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3, result


def peak() -> int:
    """The most bytes that its allocator has held."""
    return int(torch.cuda.max_memory_reserved())
