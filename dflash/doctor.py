"""What works on this machine, what is missing and the command that gets it."""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from dflash.cpu import cpu_flags, cpu_name
from dflash.embedded import EMBEDDED_NAME, converted_folder, find_gguf
from dflash.embedded import WHEEL_REQUIREMENT as EMBEDDED_WHEEL
from dflash.online.environment import MOONCAKE_WHEELS, SGLANG_VERSION, EngineEnvironment
from dflash.online.plugin_wheel import plugin_version
from dflash.paths import cache_root

Status = Literal["ok", "optional", "warning", "missing"]

DISTRIBUTION = "dflash-workbench"
_MOONCAKE_LIBRARIES = {"libibverbs.so.1": "libibverbs1", "libcurl.so.4": "libcurl4", "libnuma.so.1": "libnuma1"}
_IMPORT_SECONDS = 60
_CONVERTED_BYTES = 300 << 20  # the embedded target in bf16 safetensors takes 270 MB


@dataclass(frozen=True)
class Finding:
    """One line of the report. `missing` means that `dflash generate` or the workbench cannot work without it;
    `optional` that only some other part needs it. `remedy` is a command or one sentence, empty where all is well."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at everything once. Imports torch; nothing is downloaded or converted, and no model is loaded."""
    return [
        *_distribution(),
        *_packages(),
        *_machine(),
        *_embedded_target(),
        *_shipped_drafts(),
        *_browser_tests(),
        *_engines(),
        *_cache_space(),
    ]


def is_usable(findings: list[Finding]) -> bool:
    """True when nothing that every user needs is missing."""
    return all(finding.status != "missing" for finding in findings)


def to_dict(findings: list[Finding]) -> dict:
    """The report as JSON-safe data: `usable` and the findings in order."""
    return {"usable": is_usable(findings), "findings": [asdict(finding) for finding in findings]}


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution without importing it, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _distribution() -> Iterator[Finding]:
    yield Finding("Python", "ok", f"{platform.python_version()} ({sys.executable})")
    where = Path(__file__).parent
    yield Finding(
        DISTRIBUTION, "ok", f"{installed_version(DISTRIBUTION) or 'not installed, run from source'} ({where})"
    )
    if other := installed_version("dflash"):
        yield Finding(
            "another dflash",
            "warning",
            f"z-lab's distribution `dflash` {other} is installed too and imports under the same name",
            f"pip uninstall dflash && pip install --force-reinstall --no-deps {DISTRIBUTION}",
        )


def _packages() -> Iterator[Finding]:
    for name in ("torch", "transformers", "accelerate", "gguf", "safetensors", "pydantic", "gradio", "plotly"):
        version = installed_version(name)
        if version:
            yield Finding(name, "ok", version)
        else:
            yield Finding(name, "missing", "not installed", f"pip install {name}")
    version = installed_version("datasets")
    yield _optional(
        "datasets", version, "`dflash synthesize --dataset` and training from the hub", "pip install datasets"
    )


def _machine() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return  # reported as missing above; nothing more can be said about devices without it
    import torch

    threads = torch.get_num_threads()
    yield Finding(
        "CPU", "ok", f"{cpu_name()}, {os.cpu_count()} cores, torch uses {threads} threads (--threads changes it)"
    )
    flags = cpu_flags()
    if fast := [name for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-bf16")) if flag in flags]:
        yield Finding("bf16 on the CPU", "ok", f"in hardware ({', '.join(fast)})")
    elif flags:
        yield Finding("bf16 on the CPU", "warning", "emulated, so slow", "use --dtype float32 on this CPU")
    else:
        yield Finding("bf16 on the CPU", "optional", "unknown: this system does not list its CPU's features")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(f"cuda:{index}", "ok", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        yield Finding("CUDA", "optional", "no device that torch can use; everything runs on the CPU")


def _embedded_target() -> Iterator[Finding]:
    converted = (converted_folder() / "model.safetensors").is_file()
    if gguf := find_gguf():
        yield Finding("embedded target", "ok", f"{EMBEDDED_NAME}, {gguf.stat().st_size / 2**20:.0f} MiB in its wheel")
    elif not converted:
        install = f"pip install --no-deps {EMBEDDED_WHEEL}"
        yield Finding("embedded target", "missing", f"{EMBEDDED_NAME} is not installed", install)
    if converted:
        yield Finding("its conversion", "ok", str(converted_folder()))
    elif gguf:
        remedy = "the first use converts it, in about 12 s"
        yield Finding("its conversion", "warning", f"not yet in {converted_folder()}", remedy)


def _shipped_drafts() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        return  # the module that knows the drafts needs both; they are reported as missing above
    from dflash.model.draft_folder import SHIPPED_DRAFTS

    for target, folder in SHIPPED_DRAFTS.items():
        weights = Path(folder) / "model.safetensors"
        if weights.is_file():
            detail = f"for {target}, {weights.stat().st_size / 2**20:.1f} MiB ({folder})"
            yield Finding("shipped draft", "ok", detail)
        else:
            remedy = f"pip install --force-reinstall --no-deps {DISTRIBUTION}, or give --draft FOLDER"
            yield Finding("shipped draft", "missing", f"for {target}: no {weights}", remedy)


def _browser_tests() -> Iterator[Finding]:
    yield _optional("pytest", installed_version("pytest"), "the tests", "pip install 'dflash-workbench[test]'")
    yield _optional("playwright", installed_version("playwright"), "browser tests", "pip install playwright")
    yield _optional("chromium", shutil.which("chromium"), "browser tests", "sudo apt-get install chromium")


def _engines() -> Iterator[Finding]:
    # Their packages are looked for, never imported: importing SGLang takes half a minute and may touch the GPU.
    environment = EngineEnvironment.at()
    command = environment.install_command
    here = environment.python.is_file()
    name = f"engines ({environment.device})"
    if not here:
        yield Finding(name, "optional", "not installed; needed for features from SGLang servers", command)
    elif environment.is_installed:
        yield Finding(name, "ok", f"{environment.folder}; dflash engines check starts what is in it")
    else:
        yield Finding(name, "warning", f"{environment.folder} is incomplete, or of another version of ours", command)
    if here:
        yield from _inside(environment)
    yield _mooncake(environment.device)
    for library, package in _MOONCAKE_LIBRARIES.items():
        yield _optional(package, library if _loads(library) else "", "Mooncake", f"sudo apt-get install {package}")


def _inside(environment: EngineEnvironment) -> Iterator[Finding]:
    """SGLang, Mooncake and the capture plugin in the engines' own environment, by the versions installed there."""
    versions, command = environment.versions(), environment.install_command
    sglang, plugin = versions.get("sglang"), versions.get(DISTRIBUTION)
    if sglang == SGLANG_VERSION:
        yield Finding("SGLang", "ok", sglang)
    else:
        yield Finding("SGLang", "warning", f"{sglang or 'missing'} there; {SGLANG_VERSION} is needed", command)
    wheels = [wheel for wheel in MOONCAKE_WHEELS.values() if wheel in versions]
    if wheels == [MOONCAKE_WHEELS[environment.device]]:
        yield Finding("Mooncake of the engines", "ok", f"{versions[wheels[0]]} ({wheels[0]})")
    else:
        found = f"{' and '.join(wheels) or 'missing'} there; {MOONCAKE_WHEELS[environment.device]} alone is needed"
        yield Finding("Mooncake of the engines", "warning", found, command)
    if plugin == plugin_version(environment.device):
        yield Finding("capture plugin", "ok", plugin)
    else:
        detail = f"{plugin or 'missing'} there; this package's is {plugin_version(environment.device)}"
        yield Finding("capture plugin", "warning", detail, command)


def _mooncake(device: str) -> Finding:
    """The trainer's own client, which has to be importable here."""
    wheels = {wheel: version for wheel in MOONCAKE_WHEELS.values() if (version := installed_version(wheel))}
    wheel = MOONCAKE_WHEELS[device]
    if len(wheels) > 1:
        mend = f"pip uninstall {' '.join(wheels)} && pip install {wheel}"
        return Finding("mooncake", "warning", "two distributions own the package", mend)
    if not wheels:
        return _optional("mooncake", None, "features through a Mooncake store", f"pip install {wheel}")
    ((found, version),) = wheels.items()
    if not (reason := _import_error("mooncake.store")):
        return Finding("mooncake", "ok", f"{version} ({found})")
    missing = [package for library, package in _MOONCAKE_LIBRARIES.items() if not _loads(library)]
    if missing:
        mend = f"sudo apt-get install {' '.join(missing)}"
    elif found != wheel:
        mend = f"pip uninstall {found} && pip install {wheel}"
    else:
        mend = f"pip install --force-reinstall --no-deps {wheel}"
    return Finding("mooncake", "warning", f"{version} ({found}) cannot be imported: {reason}", mend)


def _import_error(module: str) -> str | None:
    """Why a module cannot be imported, tried in a process of its own; None where it can."""
    command = [sys.executable, "-c", f"import {module}"]
    try:
        outcome = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"it takes more than {_IMPORT_SECONDS} s"
    if outcome.returncode == 0:
        return None
    return (outcome.stderr.strip().splitlines() or [f"exit code {outcome.returncode}"])[-1]


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _cache_space() -> Iterator[Finding]:
    root = cache_root()
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{root}, {free / 2**30:.1f} GiB free"
    another = "set DFLASH_CACHE to a folder with space that you may write to"
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        yield Finding("cache folder", "missing", f"{root} cannot be written", another)
    elif free < _CONVERTED_BYTES and not converted_folder().is_dir():
        yield Finding("cache folder", "missing", f"{detail}; the embedded target needs 0.3 GiB", another)
    else:
        yield Finding("cache folder", "ok", detail)


def _optional(name: str, found: str | None, needed_for: str, command: str) -> Finding:
    if found:
        return Finding(name, "ok", found)
    return Finding(name, "optional", f"not installed; needed for {needed_for}", command)
