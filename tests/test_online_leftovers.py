"""Objects that a run left in the store of servers that outlive it."""

import torch
from online_fakes import FakeStore

from dflash.online.leftovers import Leftovers


def test_what_nobody_reads_for_ten_minutes_is_removed_and_nothing_else():
    now, store = [0.0], FakeStore()
    leftovers = Leftovers(store, lambda: now[0])

    def removed_after(seconds: float) -> int:
        now[0] += seconds
        return leftovers.tick()

    for key in ("dflash/killed/0/rank0/a", "dflash/probe/b", "another-program/c"):
        store.put(key, torch.zeros(1))
    assert removed_after(60) == 0  # seen for the first time
    store.put("dflash/runs/0/rank0/d", torch.zeros(1))
    assert removed_after(599) == 0
    assert removed_after(61) == 2
    assert set(store.objects) == {"another-program/c", "dflash/runs/0/rank0/d"}


def test_a_key_that_comes_again_counts_from_then_on():
    now, store = [0.0], FakeStore()
    leftovers = Leftovers(store, lambda: now[0])
    for expected in (1, 0, 1):
        if expected:
            store.put("dflash/run/0/rank0/a", torch.zeros(1))
        now[0] += 590.0
        assert leftovers.tick() == 0 and len(store.objects) == expected
        store.sweep("dflash/run/")


def test_a_master_that_is_away_for_a_while_ends_nothing():
    now, store = [0.0], FakeStore()
    leftovers = Leftovers(store, lambda: now[0])
    store.put("dflash/run/0/rank0/a", torch.zeros(1))
    for down, removed in ((False, 0), (True, 0), (False, 1)):
        store.down = down
        now[0] += 600.0
        assert leftovers.tick() == removed
