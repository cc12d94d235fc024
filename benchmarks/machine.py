"""What a figure was measured on."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "transformers", "sentence-transformers", "pillow", "numpy", "polars")


def machine() -> dict[str, str | int | float]:
    """CPU, cores that this process may use, memory in GB."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": _cpu(), "cores": cores or 1, "memory_gb": round(memory / 1e9, 1)}


def versions() -> dict[str, str]:
    """Python and the packages that decide the speed."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
