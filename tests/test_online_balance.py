"""Who waits for whom, told from records whose answer is known; every number below can be checked by hand."""

import pytest

from dflash.online.balance import load_of, verdict
from dflash.online.split import Capacity, best_split, split, splits
from dflash.online.statistics import pooled
from test_online_statistics import rank


def record(number: int = 1, *, wait: float = 0.0, busy: float = 100.0, gpus: int | None = 1, **online) -> dict:
    """Ten seconds of two servers and six ranks: 20,000 tokens/s, 50 documents a record, nothing wrong."""
    server = {"gpus": gpus, "busy_percent": busy, "requests": 4.0, "resting_ranks": 0, "tokens_per_s": 10_000.0}
    values = {
        "ranks": 6, "seconds": 10.0, "documents": 50 * number, "tokens": 200_000 * number, "retries": 0,
        "store_full": 0, "tokens_per_s": 20_000.0, "bytes_per_s": 2e6, "wait_percent": wait, "read_percent": 10.0,
        "in_flight_limit": 96,
        "store_used_bytes": 100, "store_capacity_bytes": 1000, "last_trouble": None,
        "servers": [{"address": "http://a:1", **server}, {"address": "http://b:1", **server}],
    }  # fmt: skip
    values |= online
    return {"kind": "train", "step": number, "tokens_per_s": 20_000.0, "data_wait_percent": wait, "online": values}


def run(count: int = 5, **values) -> list[dict]:
    return [record(number, **values) for number in range(1, count + 1)]


def test_without_a_record_of_a_pipeline_nothing_is_claimed():
    for records in ([], [{"kind": "validation", "loss": 1.0}], [{"kind": "train", "tokens_per_s": 5.0}]):
        found = verdict(records)
        assert found.bottleneck == "unknown" and found.suggested_split is None and found.load is None
        assert "no record" in found.words


def test_lines_of_another_version_are_passed_over():
    for change in ({"online": {}}, {"online": {"servers": []}}, {"online": "?"}, {"data_wait_percent": None}):
        assert verdict([record() | change]).bottleneck == "unknown"
    for servers in ([None], ["http://a:1"], [{}]):
        assert verdict([record(servers=servers)]).bottleneck == "unknown"
    whole = record(wait=50.0)
    assert set(whole["online"]) <= set(pooled([rank()])) and set(whole["online"]["servers"][0]) <= set(
        pooled([rank()])["servers"][0]
    )
    assert verdict([record() | {"online": {}}, whole]).bottleneck == "servers"


def test_one_record_gives_a_verdict_that_says_how_little_it_rests_on():
    found = verdict([record(wait=50.0)])
    assert found.bottleneck == "servers" and "one record only" in found.words
    assert "one record" not in verdict(run(3)).words


def test_a_trainer_that_hardly_waits_for_busy_servers_is_balanced():
    found = verdict(run(wait=1.0, busy=98.0))
    assert found.bottleneck == "balanced" and found.suggested_split is None
    assert "busy 98 %" in found.words and "waits 1 %" in found.words


def test_slow_servers_are_named_with_the_split_that_balances_them():
    # A serving GPU gives 10,000 tokens/s, a training one could take 20,000 / (1 - 0.5) / 6 = 6,667. Of 8 GPUs,
    # 3 + 5 reach min(30,000, 33,333) instead of min(20,000, 40,000).
    found = verdict(run(wait=50.0))
    assert found.bottleneck == "servers"
    better = found.suggested_split
    assert (better.serving, better.training, better.tokens_per_s, better.limit) == (3, 5, 30_000, "servers")
    assert "3 serving and 5 training" in found.words and "1.50 times" in found.words and "50 %" in found.words


def test_a_slow_trainer_is_named_with_the_split_that_balances_it():
    # A serving GPU could give 10,000 / 0.4 = 25,000; a training one takes 20,000 / 6. 1 + 7 reach 23,333.
    found = verdict(run(busy=40.0))
    assert found.bottleneck == "trainer"
    assert (found.suggested_split.serving, found.suggested_split.training) == (1, 7)
    assert "1.17 times" in found.words and "work 40 % of the time" in found.words


def test_only_ranks_that_can_share_a_step_are_suggested():
    found = verdict(run(wait=50.0), ranks_fit=lambda ranks: ranks in (1, 2, 4, 6, 8))
    assert (found.suggested_split.serving, found.suggested_split.training) == (3, 4)


def test_where_no_split_is_better_it_says_so():
    # 10,000 / 0.85 for a server, 3,333 for a rank: 2 + 6 is the best of eight already.
    found = verdict(run(busy=85.0))
    assert found.bottleneck == "trainer" and found.suggested_split is None
    assert "No other split of the 8 GPUs" in found.words


def test_servers_of_several_gpus_stay_whole():
    found = verdict(run(wait=50.0, gpus=4))
    # 8 GPUs serve at 2,500 each, 6 train at 6,667: 12 + 2 would give min(30,000, 13,333), 8 + 6 stays best.
    assert found.suggested_split is None and "14 GPUs" in found.words
    # With four times as many waiting ranks: 24 train at 1,667, so 12 + 20 give min(30,000, 33,333).
    found = verdict(run(wait=50.0, gpus=4, ranks=24))
    assert (found.suggested_split.serving, found.suggested_split.training) == (12, 20)


def test_where_gpus_are_not_known_the_need_is_told_as_a_factor():
    slow_servers, slow_trainer = verdict(run(wait=50.0, gpus=None)), verdict(run(busy=40.0, gpus=None))
    assert slow_servers.suggested_split is slow_trainer.suggested_split is None
    assert "2.0 times as many servers" in slow_servers.words
    assert "2.5 times as fast a trainer" in slow_trainer.words


@pytest.mark.parametrize(
    ("values", "side", "said"),
    [
        ({"store_full": 17}, "store", "The store is full: 17 captures"),
        ({"read_percent": 95.0, "busy": 50.0}, "link", "reading takes 95 %"),
        ({"busy": 50.0}, "requests", "Raise online.in_flight"),
        ({"busy": 50.0, "wait_percent": 5.0}, "host", "Raise features.prefetch"),
    ],
)
def test_what_else_makes_the_trainer_wait_has_a_name(values, side, said):
    records = run(wait=30.0, **values)
    if side == "store":
        records[0]["online"]["store_full"] = 0
    found = verdict(records)
    assert found.bottleneck == side and said in found.words and found.suggested_split is None


def test_documents_that_are_asked_for_again_and_again_are_a_fault():
    records = [record(number, wait=30.0, retries=20 * number, last_trouble="it hung up") for number in range(1, 5)]
    found = verdict(records)
    assert found.bottleneck == "faults" and "it hung up" in found.words and "60 documents" in found.words
    few = [record(number, wait=30.0, retries=number) for number in range(1, 5)]
    assert verdict(few).bottleneck == "servers"


def test_a_few_captures_that_found_no_room_are_not_what_the_trainer_waits_for():
    """50 documents a record: two of them, asked for again, are 4 %, and three are 6 %."""
    few, many = (
        [record(number, wait=30.0, store_full=each * number, retries=each * number) for number in range(1, 5)]
        for each in (2, 3)
    )
    assert verdict(few).bottleneck == "servers" and "store" not in verdict(few).words
    assert verdict(many).bottleneck == "store"


def test_a_store_that_is_nearly_full_is_told_beside_the_verdict():
    assert "93 % full" in verdict(run(store_used_bytes=930)).words
    assert "full" not in verdict(run(store_used_bytes=None, store_capacity_bytes=None)).words


def test_a_dead_server_is_named_and_does_not_count_as_idle():
    records = run(wait=50.0)
    for line in records:
        dead = line["online"]["servers"][1]
        dead |= {"busy_percent": 0.0, "tokens_per_s": 0.0, "resting_ranks": 6}
    found = verdict(records)
    assert found.bottleneck == "servers" and found.load.busy == 1 and found.load.serving == 1
    assert "Of 2 servers, 1 cannot be reached: http://b:1." in found.words


def test_a_pipeline_that_did_nothing_yet_claims_no_speed():
    idle = record(0, wait=100.0, busy=0.0, tokens_per_s=0.0)
    found = verdict([idle])
    assert found.suggested_split is None and found.load.capacity is None


def test_it_tells_how_it_goes_now_not_how_it_began():
    began = [record(number, wait=90.0) for number in range(1, 6)]
    goes = [record(number, busy=40.0) for number in range(6, 40)]
    assert verdict(began + goes).bottleneck == "trainer"
    assert load_of(began + goes).records == 20


def test_the_first_record_of_every_start_is_left_out():
    first, resumed = record(1, wait=90.0), record(1, wait=90.0, busy=10.0)
    steady = [record(number, wait=1.0) for number in (2, 3, 4)]
    load = load_of([first, *steady, resumed, *steady])
    assert load.records == 6 and load.waits == pytest.approx(0.01) and load.busy == 1
    assert load.documents == 300  # 3 x 50 of each start


def test_longer_windows_weigh_more():
    records = [record(1), record(2, wait=10.0), record(3, wait=40.0, seconds=30.0)]
    assert load_of(records).waits == pytest.approx((0.1 * 10 + 0.4 * 30) / 40)


def test_a_split_is_as_fast_as_its_slowest_part():
    capacity = Capacity(server=100, trainer=50)
    one = split(1, 4, capacity)
    assert (one.tokens_per_s, one.limit, one.server_idle, one.trainer_idle) == (100, "servers", 0, 0.5)
    linked = split(2, 4, Capacity(100, 50, link=20))
    assert (linked.tokens_per_s, linked.limit, linked.server_idle, linked.trainer_idle) == (80, "link", 0.6, 0.6)


def test_splits_are_all_there_and_the_best_is_the_fastest():
    found = list(splits(8, Capacity(100, 50), ranks_fit=lambda ranks: ranks in (1, 2, 4)))
    assert [(one.serving, one.training) for one in found] == [
        (1, 4), (2, 4), (3, 4), (4, 4), (5, 2), (6, 2), (7, 1)
    ]  # fmt: skip
    assert best_split(found) == split(2, 4, Capacity(100, 50))
    assert best_split([]) is None and list(splits(1, Capacity(100, 50))) == []
    # Where the link decides, each training GPU reads 20: the more of them, the better, while one server feeds them.
    assert best_split(list(splits(4, Capacity(100, 50, link=20)))) == split(1, 3, Capacity(100, 50, link=20))
