"""Run a command that is killed when the process which started it ends, however that ends.

    python -I -S tether.py PARENT_PID COMMAND ARGUMENT...

The command's own children go on unless they tie themselves to it: its id is in their environment (VARIABLE).
Standard library only, and quick to start: it runs in front of every engine. Linux only, as the engines are.
"""

import ctypes
import os
import signal
import sys

VARIABLE = "DFLASH_TETHER"
_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    tie(parent)  # survives exec, by which the command keeps this process's id
    os.environ[VARIABLE] = str(os.getpid())
    os.execvp(command[0], command)


def tie(parent: int) -> None:
    """Have this process killed when `parent` ends, or rather the thread of it that forked; leave if it has ended."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        sys.exit(f"prctl failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit("the parent ended first")


if __name__ == "__main__":
    main()
