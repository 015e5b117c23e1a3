"""The machine: which CPUs a measurement takes, and what a reader has to know about them."""

import importlib
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
_LIBRARIES = ("numpy", "numba", "llvmlite", "jaxlib")


def available() -> list[int]:
    """CPUs that this process may use: one of each core first, because two threads of one core share its units."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    firsts: list[int] = []
    others: list[int] = []
    cores: set[str] = set()
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(_TOPOLOGY.format(cpu))
        core = siblings.read_text() if siblings.exists() else str(cpu)
        (others if core in cores else firsts).append(cpu)
        cores.add(core)
    return firsts + others


def environment(threads: int, caches: str) -> dict[str, str]:
    """Variables that hold every library to so many threads and make it keep what it compiles below `caches`."""
    n = str(threads)
    return os.environ | {
        "OMP_NUM_THREADS": n,
        "OPENBLAS_NUM_THREADS": n,
        "MKL_NUM_THREADS": n,
        "VECLIB_MAXIMUM_THREADS": n,
        "NUMEXPR_NUM_THREADS": n,
        "NUMBA_NUM_THREADS": n,
        "MINIGAN_NUM_THREADS": n,
        "TF_NUM_INTRAOP_THREADS": n,
        "TF_NUM_INTEROP_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CPU_COUNT": n,  # of tinygrad, as DEV
        "DEV": "CPU",
        "MINIGAN_CACHE_DIR": f"{caches}/minigan",
        "TORCHINDUCTOR_CACHE_DIR": f"{caches}/torch",
        "JAX_COMPILATION_CACHE_DIR": f"{caches}/jax",
        "CACHEDB": f"{caches}/tinygrad.db",
        "CUPY_CACHE_DIR": f"{caches}/cupy",
        "CUDA_CACHE_PATH": f"{caches}/cuda",
        "TRITON_CACHE_DIR": f"{caches}/triton",
        "JAX_PLATFORMS": "cpu",  # where it also could use a GPU
    }


def load() -> list[float]:
    """Processes that wanted to run, on average over 1, 5 and 15 minutes; empty where the system does not say."""
    return [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else []


def _model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _vectors() -> list[str]:
    """Vector instructions that NumPy finds, of the kinds that make a difference."""
    extension = importlib.import_module("numpy._core._multiarray_umath")
    features: dict[str, bool] = getattr(extension, "__cpu_features__", {})
    return [name for name in ("NEON", "AVX2", "FMA3", "AVX512F", "AVX512BW") if features.get(name)]


def description() -> dict[str, Any]:
    """CPU, cores, load, system and Python."""
    return {
        "cpu": _model(),
        "vectors": _vectors(),
        "cpus": len(available()),
        "load": load(),
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
    }


def _driver() -> str:
    """The version of NVIDIA's driver on Linux; empty elsewhere."""
    version = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", version.read_text()) if version.exists() else None
    return found[0] if found else ""


def _cuda_version(number: int) -> str:
    """13020 is 13.2."""
    return f"{number // 1000}.{number % 1000 // 10}"


def card() -> dict[str, Any]:
    """The first GPU, its driver, the CUDA which that can run and the one CuPy is built with, and CuPy."""
    cupy = importlib.import_module("cupy")
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(0)
    return {
        "name": properties["name"].decode(),
        "memory": properties["totalGlobalMem"],
        "multiprocessors": properties["multiProcessorCount"],
        "driver": _driver(),
        "driver_cuda": _cuda_version(runtime.driverGetVersion()),
        "cuda": _cuda_version(runtime.runtimeGetVersion()),
        "cupy": cupy.__version__,
    }


def libraries() -> dict[str, str]:
    """Versions of what the contestants share or are built on, as far as they are installed."""
    installed = {d.metadata["Name"].lower() for d in metadata.distributions()}
    return {name: metadata.version(name) for name in _LIBRARIES if name in installed}
