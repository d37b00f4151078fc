"""The engines' own Python environment: SGLang pins other versions of torch and transformers than the trainer uses.

It is a virtual environment with everything pinned, found by its folder's name. The CPU form is what CI runs; the CUDA
form is the same steps with SGLang's own dependencies, and has not been run yet: no machine here has a GPU.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dflash.devices import nvidia_driver_is_here
from dflash.errors import UserError
from dflash.files import locked
from dflash.online.installer import Installer
from dflash.online.patching import SourcePatch, shipped_patches
from dflash.online.plugin_wheel import build_plugin_wheel, plugin_version

Device = Literal["cpu", "cuda"]

SGLANG_VERSION = "0.5.23"
# Both own the package `mooncake`, so only one of them may be installed; the second fails without libcuda.so.1.
MOONCAKE_WHEELS: dict[Device, str] = {
    "cpu": "mooncake-transfer-engine-non-cuda",
    "cuda": "mooncake-transfer-engine",
}
_REQUIREMENTS = Path(__file__).with_name("requirements")
_NEEDED_BYTES = {"cpu": 5 << 30, "cuda": 20 << 30}  # while it is installed; 2.9 GB are left of the first
_STAMP = "installed.json"
_LOG = "install.log"
_LOCK = ".lock"
# What an environment's folder may hold before it has a pyvenv.cfg: what an interrupted installation leaves.
_OWN_NAMES = {"bin", "include", "lib", "lib64", "share", _LOCK, _LOG}


@dataclass(frozen=True)
class EngineEnvironment:
    """One environment, whether or not it exists yet."""

    folder: Path
    device: Device

    @classmethod
    def at(cls, folder: Path | str | None = None, device: Device | None = None) -> "EngineEnvironment":
        """The environment in that folder, else the one for that device (this machine's, if None) in the usual place."""
        device = device or detect_device()
        return cls(Path(folder).absolute() if folder else engines_root() / f"{SGLANG_VERSION}-{device}", device)

    @property
    def python(self) -> Path:
        """Its interpreter. Start it with -I, so that it imports nothing from outside."""
        return self.folder / "bin" / "python"

    @property
    def install_command(self) -> str:
        """What a user types to get it."""
        default = self == EngineEnvironment.at(device=self.device)
        return f"dflash engines install --device {self.device}" + ("" if default else f" --dir {self.folder}")

    @property
    def is_patched(self) -> bool:
        """Whether it holds an older SGLang with the patch that is shipped for it (`dflash patch`): that one is kept."""
        try:
            return SourcePatch.find(self.folder).state() == "patched"
        except UserError:  # no SGLang, one without a patch, or one that somebody else changed
            return False

    @property
    def is_installed(self) -> bool:
        """Whether an installation was finished, with the packages and the plugin that this version wants."""
        return self._stamp() == self._wanted()

    def versions(self) -> dict[str, str]:
        """Installed distributions and their versions, as their metadata say; nothing of it is run or imported."""
        folders = [str(folder) for folder in self.folder.glob("lib/python3*/site-packages")]
        found = importlib.metadata.distributions(path=folders)
        return {name.lower().replace("_", "-"): one.version for one in found if (name := one.metadata["Name"])}

    def install(self, python: str = sys.executable) -> bool:
        """Build or complete it, with this Python; returns whether there was anything to do.

        An interrupted installation is completed by the next one. Only one process installs; others wait for it. Where
        a patched SGLang is in it, the capture plugin is all that is installed.

        Raises:
            UserError: no network, no space, no permission, or something else lies in the folder.
        """
        with self._locked():
            stamp, wanted = self._stamp(), self._wanted()
            if stamp == wanted:
                return False
            installer = Installer(self.python, self.folder / _LOG)
            if stamp.get("packages") != wanted["packages"] and not self.is_patched:
                self._require_space()
                installer.create(python, self.folder)
                for file, options in self._requirement_files():
                    installer.install(["-r", str(file), *options], f"the packages of {file.name}")
                self._write_stamp({"packages": wanted["packages"]})
            wheel = build_plugin_wheel(self.folder, self.device)
            installer.install([str(wheel), "--no-deps", "--no-index", "--force-reinstall"], "the capture plugin")
            wheel.unlink()
            self._write_stamp(wanted)
            return True

    def probe(self) -> dict:
        """What works in it: versions, `mooncake_error`, `plugin_error` (None where all is well); takes half a minute.

        Raises:
            UserError: there is no such environment, or its Python does not even start.
        """
        if not self.python.is_file():
            raise UserError(f"There is no engines' environment in {str(self.folder)!r}: run '{self.install_command}'.")
        outcome = subprocess.run(
            [self.python, "-I", "-m", "dflash.online.environment_probe"],
            capture_output=True, text=True, env=self.variables(), cwd=self.folder,
        )  # fmt: skip
        lines = outcome.stdout.strip().splitlines()
        if outcome.returncode or not lines:
            reason = (outcome.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise UserError(
                f"The engines' environment in {str(self.folder)!r} is broken ({reason}): remove the folder and run "
                f"'{self.install_command}'."
            )
        return json.loads(lines[-1])

    def faults(self, found: dict) -> list[str]:
        """What keeps servers from working in it, a sentence each, from what `probe` found."""
        sentences = []
        if found["sglang"] is None:
            sentences.append(f"SGLang is not installed: run '{self.install_command}'.")
        elif found["sglang"] in shipped_patches() and not self.is_patched:
            sentences.append(
                f"SGLang {found['sglang']} is installed without its patch: run 'dflash patch apply {self.folder}', or "
                f"'{self.install_command}' to have {SGLANG_VERSION} in its place."
            )
        elif found["sglang"] != SGLANG_VERSION and not self.is_patched:
            sentences.append(
                f"SGLang {found['sglang']} is installed, {SGLANG_VERSION} is needed: run '{self.install_command}'."
            )
        if found["mooncake_error"]:
            by_pip = f"{self.python} -m pip install {MOONCAKE_WHEELS[self.device]}"
            sentences.append(
                f"Mooncake cannot be imported ({found['mooncake_error']}): run 'sudo apt-get install libibverbs1 "
                f"libcurl4 libnuma1', then '{by_pip if self.is_patched else self.install_command}'."
            )
        if found["plugin_error"]:
            sentences.append(
                f"The capture plugin is not active ({found['plugin_error']}): run '{self.install_command}'."
            )
        elif found["dflash-workbench"] != plugin_version(self.device):
            sentences.append(
                f"The capture plugin is of another version ({found['dflash-workbench']}): run '{self.install_command}'."
            )
        return sentences

    def variables(self) -> dict[str, str]:
        """Environment variables for its processes: this process's, plus what the device needs."""
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**os.environ, "PATH": path, **self.device_variables}

    @property
    def device_variables(self) -> dict[str, str]:
        """Those that SGLang needs on that device."""
        return {"SGLANG_USE_CPU_ENGINE": "1"} if self.device == "cpu" else {}

    def _requirement_files(self) -> Iterator[tuple[Path, list[str]]]:
        if self.device == "cpu":
            yield _REQUIREMENTS / f"sglang-{SGLANG_VERSION}-cpu-alone.txt", ["--no-deps"]
        yield _REQUIREMENTS / f"sglang-{SGLANG_VERSION}-{self.device}.txt", []

    def _wanted(self) -> dict[str, str]:
        pins = b"".join(file.read_bytes() for file, _ in self._requirement_files())
        packages = "patched" if self.is_patched else hashlib.sha256(pins).hexdigest()
        return {"packages": packages, "plugin": plugin_version(self.device)}

    def _stamp(self) -> dict[str, str]:
        try:
            return json.loads((self.folder / _STAMP).read_text())
        except (OSError, ValueError):
            return {}  # never finished

    def _write_stamp(self, stamp: dict[str, str]) -> None:
        partial = self.folder / f"{_STAMP}.partial"
        partial.write_text(json.dumps(stamp))
        partial.replace(self.folder / _STAMP)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"Folder {str(self.folder)!r} cannot be made ({error.strerror}): give another --dir."
            ) from error
        foreign = {path.name for path in self.folder.iterdir()} - _OWN_NAMES
        if foreign and not (self.folder / "pyvenv.cfg").exists():
            raise UserError(f"Folder {str(self.folder)!r} holds something else ({min(foreign)}): give an empty --dir.")
        with locked(self.folder / _LOCK):
            yield

    def _require_space(self) -> None:
        free, needed = shutil.disk_usage(self.folder).free, _NEEDED_BYTES[self.device]
        if free < needed:
            raise UserError(
                f"The engines need {needed / 2**30:.0f} GiB in {str(self.folder)!r}, but only {free / 2**30:.1f} GiB "
                "are free: make room, or give a --dir on another disk."
            )


def engines_root() -> Path:
    """Folder of all environments: `$DFLASH_CACHE/engines`, else `dflash-workbench/engines` in the user's cache."""
    if explicit := os.environ.get("DFLASH_CACHE"):
        return Path(explicit).absolute() / "engines"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dflash-workbench" / "engines"


def detect_device() -> Device:
    """ "cuda" where NVIDIA's driver is loaded; torch is not asked, since importing it takes seconds."""
    return "cuda" if nvidia_driver_is_here() else "cpu"
