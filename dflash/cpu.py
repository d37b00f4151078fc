"""What the CPU is called and can do, as far as the system says."""

import platform
from pathlib import Path


def cpu_name() -> str:
    """The model's name, or at least the architecture's."""
    return _first_cpu().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """Instruction-set flags such as `avx512_bf16` and `amx_bf16`; empty where the system does not list them."""
    return set(_first_cpu().get("flags", "").split())


def _first_cpu() -> dict[str, str]:
    """Fields of the first CPU in /proc/cpuinfo; empty where there is none (macOS, Windows)."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    pairs = (line.partition(":") for line in path.read_text(encoding="utf-8").split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
