"""venv and pip with a progress line, a log, and one sentence when they fail."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dflash.errors import UserError
from dflash.online import tether

# pip's words, and what they mean for the user. The first that fits decides.
_REASONS = (
    (r"No space left on device|Errno 28", "the disk is full: make room, then run the same command again"),
    (
        r"Name or service not known|Temporary failure in name resolution|Failed to establish a new connection"
        r"|NewConnectionError|ConnectTimeout|ReadTimeout|Network is unreachable|ProxyError|Connection (refused|reset)",
        "the package index cannot be reached: check the network, then run the same command again",
    ),
    (
        r"requirement (\S+) \(from versions: none\)",
        "pip's package index cannot be reached, or has no {0} at all: check the network and pip's index, then run the "
        "same command again",
    ),
    (
        r"No matching distribution found for (\S+)|Could not find a version that satisfies the requirement (\S+)",
        "the package index has no {0} for this Python: use Python 3.11, and the index that has it",
    ),
    (r"Permission denied|Errno 13", "files cannot be written there: give a --dir of your own"),
)
_STEPS = re.compile(
    r"^\s*(Collecting|Downloading|Using cached|Installing collected packages|Building wheel)\b:?\s*(.*)"
)


class Installer:
    """Fills one virtual environment. Everything that the tools print goes to the log, a summary to stderr."""

    def __init__(self, python: Path, log: Path) -> None:
        self.python, self.log = python, log
        self._progress = _ProgressLine()

    def create(self, base: str, folder: Path) -> None:
        """Make the environment with the Python `base`, or complete one that was interrupted."""
        self._run([base, "-m", "venv", str(folder)], "the virtual environment")

    def install(self, arguments: Sequence[str], what: str) -> None:
        """pip install with these arguments."""
        options = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
        # -I: packages of the caller's PYTHONPATH would count as installed.
        self._run([str(self.python), "-I", "-m", "pip", "install", *options, *arguments], what)

    def _run(self, command: list[str], what: str) -> None:
        lines: list[str] = []
        with open(self.log, "a") as log:
            log.write(f"$ {' '.join(command)}\n")
            # Tied to this process: a pip that outlived it would work on the same files as that of the next try.
            tied = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *command]
            process = subprocess.Popen(
                tied, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            try:
                for line in process.stdout:
                    log.write(line)
                    lines.append(line.rstrip())
                    if step := _STEPS.match(line):
                        self._progress.show(f"{what}: {step[1].lower()} {step[2]}")
                code = process.wait()
            except BaseException:
                process.terminate()
                process.wait()
                raise
            finally:
                self._progress.end(what)
        if code:
            raise UserError(f"Installing {what} failed: {explain(lines)}; the whole log is {self.log}.")


class _ProgressLine:
    """One line that is overwritten on a terminal; elsewhere one line for each thing that was installed."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._started = time.monotonic()

    def show(self, text: str) -> None:
        if self._live:
            width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
            line = f"{time.monotonic() - self._started:4.0f} s  {text}"
            print(f"\r{line[:width]:<{width}}", end="", file=sys.stderr, flush=True)

    def end(self, what: str) -> None:
        line = f"{time.monotonic() - self._started:4.0f} s  {what}"
        print(f"\r\x1b[K{line}" if self._live else line, file=sys.stderr, flush=True)


def explain(lines: Sequence[str]) -> str:
    """What went wrong, from everything that pip printed."""
    text = "\n".join(lines)
    for pattern, meaning in _REASONS:
        if found := re.search(pattern, text):
            return meaning.format(next((group for group in found.groups() if group), ""))
    errors = [line for line in lines if line.startswith(("ERROR:", "Error:"))] or lines[-1:] or ["it said nothing"]
    return errors[-1].removeprefix("ERROR:").strip().rstrip(".")
