"""The record of all ranks: what is summed, what is averaged, and that it is there for a pipeline only."""

import json
from dataclasses import replace

import pytest

from dflash.online.statistics import OnlineStatistics, ServerStatistics, pipeline_record, pooled


def server(address: str = "http://a:1", **values) -> ServerStatistics:
    defaults = dict(
        in_flight=2, documents=10, tokens=1000, failures=1, resting=False, tokens_per_s=100.0, busy=0.5, requests=1.5
    )
    return ServerStatistics(address, **{**defaults, **values})


def rank(**values) -> OnlineStatistics:
    defaults = dict(
        in_flight=4, in_flight_limit=8, queued=3, ready=2, documents=20, tokens=2000, bytes=64000, retries=1,
        store_full=0, wait_seconds=5.0, read_seconds=1.0, seconds=10.0, tokens_per_s=200.0, bytes_per_s=6400.0,
        waited=0.25, reading=0.1, store_used_bytes=500, store_capacity_bytes=1000, last_trouble=None,
        servers=(server(), server("http://b:1", busy=1.0)),
    )  # fmt: skip
    return OnlineStatistics(**{**defaults, **values})


def test_counts_and_rates_of_ranks_are_summed_and_shares_averaged():
    second = rank(
        tokens=3000, tokens_per_s=300.0, waited=0.75, reading=0.3, seconds=12.0, store_full=2, last_trouble="lost",
        servers=(server(tokens=500, busy=0.8, resting=True), server("http://b:1", busy=0.0)),
    )  # fmt: skip
    found = pooled([rank(), second])
    assert found["ranks"] == 2 and found["seconds"] == 12
    assert found["in_flight"] == 8 and found["in_flight_limit"] == 16 and found["documents"] == 40
    assert found["tokens"] == 5000 and found["tokens_per_s"] == 500 and found["bytes_per_s"] == 12800
    assert found["wait_percent"] == 50 and found["read_percent"] == pytest.approx(20) and found["store_full"] == 2
    assert found["last_trouble"] == "lost"
    a, b = found["servers"]
    assert (a["address"], a["tokens"], a["in_flight"], a["resting_ranks"]) == ("http://a:1", 1500, 4, 1)
    assert a["requests"] == 3 and a["tokens_per_s"] == 200
    assert a["busy_percent"] == pytest.approx(90)  # 1 - 0.5 * 0.2
    assert b["busy_percent"] == 100
    assert json.loads(json.dumps(found)) == found


def test_the_store_is_one_for_all_ranks():
    found = pooled([rank(), rank(store_used_bytes=700)])
    assert (found["store_used_bytes"], found["store_capacity_bytes"]) == (700, 1000)
    unknown = replace(rank(), store_used_bytes=None, store_capacity_bytes=None)
    assert pooled([unknown, rank()])["store_used_bytes"] == 500
    assert pooled([unknown])["store_capacity_bytes"] is None


def test_only_a_source_with_a_pipeline_adds_to_the_record():
    class Source:
        def statistics(self):
            return rank()

    assert pipeline_record(object(), lambda item: [item]) == {}
    assert pipeline_record(Source(), lambda item: [item, item])["online"]["ranks"] == 2
