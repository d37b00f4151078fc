"""Why a job failed, told from its exit code and the end of its log."""

import pytest

from workbench.failure import likely_cause


@pytest.mark.parametrize(
    ("code", "log", "words"),
    [
        (-9, "step 10", "ran out of memory"),
        (137, "step 10", "ran out of memory"),
        (-7, "", "shared memory"),
        (-15, "", "SIGTERM"),
        (-11, "", "SIGSEGV"),
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "GPU ran out of memory"),
        (2, "dflash: /runs/a/metrics.jsonl: No space left on device; resume", "/runs/a/metrics.jsonl: No space left"),
        (1, "RuntimeError: unable to write: No space left on device", "disk is full"),
        (1, "OSError: [Errno 98] Address already in use", "port"),
        (1, "ModuleNotFoundError: No module named 'mooncake.store'", "mooncake.store is not installed"),
        (1, "torch.distributed.DistBackendError: NCCL error in: ...", "GPUs lost touch"),
        (2, "dflash: note: x\ndflash: data.train = ['a'] does not exist: mend it.", "data.train = ['a'] does not"),
        (1, "Traceback (most recent call last):\n  File x\nKeyError: 'batch'", "KeyError: 'batch'"),
        (3, "nothing", "exit code 3"),
    ],
)
def test_the_cause_is_named_in_words(code, log, words):
    assert words in likely_cause(code, log)


def test_a_note_is_no_cause():
    assert "exit code 2" in likely_cause(2, "dflash: note: no warm-up.")
