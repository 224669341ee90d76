"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import time
from pathlib import Path

PACKAGES = ("relion_pseudosubtomo", "numpy", "pyFFTW", "mpi4py", "starfile", "mrcfile")
#: Bytes written to find the disk's rate, and at once.
DISK_BYTES, DISK_BLOCK = 1 << 30, 1 << 24


def describe_machine() -> dict[str, str]:
    """Return processor, memory, system and versions."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    described = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }
    for package in PACKAGES:
        try:
            described[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            described[package] = "not installed"
    return described


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def measure_disk(folder: Path, n_bytes: int = DISK_BYTES) -> float:
    """Return the bytes that a disk takes in a second: one large file, until it is on the disk."""
    block = os.urandom(DISK_BLOCK)
    path = folder / "disk_rate.tmp"
    started = time.perf_counter()
    try:
        with open(path, "wb", 0) as file:
            for _ in range(max(1, n_bytes // DISK_BLOCK)):
                file.write(block)
            os.fsync(file.fileno())
        seconds = time.perf_counter() - started
        return path.stat().st_size / seconds
    finally:
        path.unlink(missing_ok=True)


def free_bytes(folder: Path) -> int:
    """Return how much a disk can still take."""
    return shutil.disk_usage(folder).free
