"""Shares in per cent."""

import pytest

from workbench.percent import percent


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.747, "75 %"),
        (1 - 13 / 5120, "99.7 %"),
        (13 / 5120, "0.3 %"),
        (1 - 1e-6, "99.9999 %"),
        (0.004, "0.4 %"),
    ],
)
def test_what_is_neither_nothing_nor_all_never_reads_so(share, words):
    assert percent(share) == words
