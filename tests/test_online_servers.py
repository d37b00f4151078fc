"""Which server is asked next."""

import pytest

from dflash.online.servers import ServerList


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def servers(clock) -> ServerList:
    return ServerList(["http://a:1", "http://b:1/", "http://c:1"], clock)


def test_the_one_with_the_fewest_requests_is_asked(servers):
    a, b, c = servers.servers
    assert b.address == "http://b:1"
    with servers.asking(a), servers.asking(b):
        assert servers.choose() is c
        with servers.asking(c), servers.asking(c):
            assert servers.choose() in (a, b)
    assert [server.in_flight for server in servers.servers] == [0, 0, 0]


def test_equals_take_turns(servers):
    chosen = []
    for _ in range(6):
        server = servers.choose()
        servers.succeeded(server, 10)
        chosen.append(server.address)
    assert sorted(chosen) == sorted(["http://a:1", "http://b:1", "http://c:1"] * 2)


def test_a_document_avoids_the_server_that_failed_it_unless_there_is_no_other(servers):
    a, b, c = servers.servers
    with servers.asking(b), servers.asking(c):
        assert servers.choose(avoid=a) in (b, c)
    for server in (b, c):
        servers.failed(server, rest=True)
    assert servers.choose(avoid=a) is a


def test_failed_servers_rest_longer_each_time_until_they_succeed(clock):
    servers = ServerList(["http://a:1"], clock)
    rests = []
    for _ in range(8):
        servers.failed(servers.servers[0], rest=True)
        servers.failed(servers.servers[0], rest=True)  # another request of the same crash
        rests.append(servers.seconds_until_awake())
        assert servers.choose() is None
        clock.now += rests[-1]
        assert servers.choose() is servers.servers[0]
    assert all(later > 1.1 * earlier for earlier, later in zip(rests, rests[1:4])) and max(rests) < 20
    servers.succeeded(servers.servers[0], 5)
    servers.failed(servers.servers[0], rest=True)
    assert servers.seconds_until_awake() < 0.7
    assert servers.servers[0].failures == 17 and servers.servers[0].tokens == 5


def test_a_failure_that_is_not_the_servers_does_not_send_it_to_rest(servers):
    servers.failed(servers.servers[0], rest=False)
    assert servers.seconds_until_awake() == 0


def test_busy_time_and_requests_are_integrated_over_time(servers, clock):
    a = servers.servers[0]
    with servers.asking(a):
        clock.now += 2
        assert a.load(clock.now) == (2, 2)  # what is under way counts
        with servers.asking(a):
            clock.now += 3
    clock.now += 10
    assert a.load(clock.now) == (5, 8)
    with servers.asking(a):
        clock.now += 1
    assert a.load(clock.now) == (6, 9)
