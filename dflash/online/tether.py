"""Run a command that is killed when the process which started it ends, however that ends.

    python -I -S tether.py PARENT_PID COMMAND ARGUMENT...

Standard library only, and quick to start: it runs in front of every engine. Linux only, as the engines are.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    # The setting survives exec, so that the command keeps this process's id. It follows the thread that forked.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        sys.exit(f"prctl failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit("the parent ended first")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
