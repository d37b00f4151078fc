"""Why a job ended as it did, in one sentence: its exit code and the end of its log, read as an engineer would."""

import re
import signal

_OUT_OF_MEMORY = (
    "It was killed by the operating system (signal 9), which mostly means that the machine ran out of memory: lower "
    "run.micro_batch_size, blocks.num_anchors or data.max_length, or end other programs first."
)

# Searched in this order, in the last lines of the log; the first that occurs names the cause.
_SIGNS: tuple[tuple[str, str], ...] = (
    (
        r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory|HIP out of memory",
        "The GPU ran out of memory: lower run.micro_batch_size or blocks.num_anchors, set "
        "parallel.activation_checkpointing=true, or end other programs on that GPU.",
    ),
    (
        r"No space left on device|Disk quota exceeded|disk is full",
        "The disk is full: free some space or lower checkpoint.keep, then resume.",
    ),
    (
        r"DefaultCPUAllocator: can't allocate memory|MemoryError|Cannot allocate memory",
        "The machine ran out of memory: lower run.micro_batch_size, blocks.num_anchors or data.max_length.",
    ),
    (
        r"Address already in use|EADDRINUSE|address is already in use",
        "A network port that it needs is taken by another process, perhaps a run that still goes on: end that one or "
        "wait for it, then start again.",
    ),
    (
        r"NCCL (error|WARN)|ncclSystemError|ncclInternalError|ncclUnhandledCudaError|Watchdog caught collective",
        "The GPUs lost touch with one another (NCCL): look for the first rank that failed in the log.",
    ),
    (
        r"CUDA driver version is insufficient|no NVIDIA driver|CUDA is not available|no CUDA-capable device",
        "No usable GPU was found: `dflash doctor` says what is missing; run.device=auto takes the CPU.",
    ),
    (r"No module named '([\w.]+)'", "The package {0} is not installed: `dflash doctor` says how to get it."),
)
_SIGNALS = {
    signal.SIGKILL: _OUT_OF_MEMORY,
    signal.SIGBUS: "It was ended by signal 7 (SIGBUS), mostly because shared memory (/dev/shm) is full.",
    signal.SIGTERM: "Somebody or something else ended it (SIGTERM): it was not stopped from here.",
    signal.SIGINT: "Somebody or something else interrupted it (SIGINT): it was not stopped from here.",
}
_REFUSED = (2, 127)  # bad input, a full disk; a program that is not there
_OWN_SENTENCE = re.compile(r"^dflash(?: \w+)?: (?!note: )(.+)$")
_EXCEPTION = re.compile(r"^(?:\w+\.)*(\w*(?:Error|Exception|Failed|Interrupt))(?:: (.+))?$")


def likely_cause(exit_code: int, tail: str) -> str:
    """One sentence. `exit_code` is negative for a signal, as `subprocess` counts; `tail` is the end of the log."""
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    own = next((found[1] for line in reversed(lines) if (found := _OWN_SENTENCE.match(line))), None)
    if own is not None and exit_code in _REFUSED:
        return own
    for pattern, sentence in _SIGNS:
        if found := re.search(pattern, tail):
            return sentence.format(*found.groups())
    number = _signal_of(exit_code)
    if number is not None:
        name = signal.Signals(number).name
        return _SIGNALS.get(number, f"It was ended by {name}: the end of the log may say why.")
    for line in reversed(lines):
        if error := _EXCEPTION.match(line):
            return f"It failed with {error[1]}{': ' + error[2] if error[2] else ''}."
    return f"It ended with exit code {exit_code} and did not say why: read the end of its log."


def _signal_of(exit_code: int) -> int | None:
    """A shell or a launcher reports a signal as 128 + its number."""
    number = -exit_code if exit_code < 0 else exit_code - 128
    return number if number in list(signal.Signals) else None
