"""The capture plugin as a wheel, built from the running package, for the engines' Python environment.

Whatever way this package was installed in, the servers get the very files that the trainer runs on: the version ends
with a digest of them, so that an environment with other files is noticed.
"""

import base64
import hashlib
import importlib.metadata
import zipfile
from pathlib import Path

DISTRIBUTION = "dflash-workbench"
ENTRY_POINT = ("sglang.srt.plugins", "dflash_capture", "dflash.online.capture_plugin:activate")

_PACKAGE = Path(__file__).resolve().parent.parent
_MODULES = (
    "__init__",
    "errors",
    "online/__init__",
    "online/capture_plugin",
    "online/capture_record",
    "online/capture_settings",
    "online/capture_writer",
    "online/environment_probe",
    "online/prompt_capture",
    "online/store",
    "online/store_errors",
)
_STUBS = _PACKAGE / "online" / "cpu_stubs"


def plugin_version(device: str) -> str:
    """Version of the wheel for that device, such as "0.1.0+plugin.1f3a9c0d2b44"."""
    digest = hashlib.sha256()
    for name, content in _files(device).items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return f"{_package_version()}+plugin.{digest.hexdigest()[:12]}"


def build_plugin_wheel(folder: Path, device: str) -> Path:
    """Write the wheel into `folder`. `device` "cpu" adds stand-ins for packages that need a GPU."""
    version = plugin_version(device)
    name = DISTRIBUTION.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    group, entry, target = ENTRY_POINT
    files = _files(device) | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: dflash\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[{group}]\n{entry} = {target}\n".encode(),
    }
    lines = [f"{path},sha256={_record_hash(content)},{len(content)}" for path, content in files.items()]
    files[f"{info}/RECORD"] = ("\n".join([*lines, f"{info}/RECORD,,"]) + "\n").encode()
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return wheel


def _files(device: str) -> dict[str, bytes]:
    """What goes into site-packages, by its path there: only what the plugin imports, so that it cannot import more."""
    files = {f"{_PACKAGE.name}/{module}.py": (_PACKAGE / f"{module}.py").read_bytes() for module in _MODULES}
    if device == "cpu":
        files |= {path.relative_to(_STUBS).as_posix(): path.read_bytes() for path in sorted(_STUBS.rglob("*.py"))}
    return files


def _package_version() -> str:
    try:
        return importlib.metadata.version(DISTRIBUTION).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return "0"


def _record_hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
