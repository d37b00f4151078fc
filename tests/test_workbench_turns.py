"""One computation at a time, first come first served, everyone knows their place."""

import threading

from workbench.turns import Turns, place_in_words


def test_the_first_visitor_does_not_wait():
    with Turns().ticket() as ticket:
        assert list(ticket.waiting()) == []


def test_those_behind_see_their_place_move_up():
    turns = Turns()
    with turns.ticket() as first:
        with turns.ticket() as second, turns.ticket() as third:
            assert next(second.waiting()) == 1
            places = third.waiting(look_again=30)
            assert next(places) == 2
            assert len(turns) == 3
            assert not list(first.waiting())


def test_a_place_is_announced_as_soon_as_it_changes():
    turns = Turns()
    seen, ready = [], threading.Event()

    def visit():
        with turns.ticket() as ticket:
            for ahead in ticket.waiting(look_again=30):  # far longer than this test may take
                seen.append(ahead)
                ready.set()

    with turns.ticket():
        visitor = threading.Thread(target=visit)
        visitor.start()
        assert ready.wait(10)
    visitor.join(10)
    assert not visitor.is_alive()
    assert seen == [1]


def test_whoever_gives_up_lets_the_next_one_in():
    turns = Turns()

    def decode():
        with turns.ticket() as ticket:
            yield from ticket.waiting()
            yield "computing"

    first, second, third = decode(), decode(), decode()
    assert next(first) == "computing"
    assert (next(second), next(third)) == (1, 2)
    second.close()  # a closed tab, waiting
    first.close()  # a closed tab, computing
    assert next(third) == "computing"
    third.close()
    assert len(turns) == 0


def test_an_error_in_a_computation_frees_its_place():
    turns = Turns()
    try:
        with turns.ticket():
            raise ValueError
    except ValueError:
        pass
    assert len(turns) == 0


def test_computations_never_overlap():
    turns, inside, most = Turns(), [0], [0]

    def compute():
        with turns.ticket() as ticket:
            ticket.wait()
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            threading.Event().wait(0.005)
            inside[0] -= 1

    threads = [threading.Thread(target=compute) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert most == [1] and len(turns) == 0


def test_places_are_told_in_words():
    assert place_in_words(1).startswith("One computation is ahead")
    assert place_in_words(3).startswith("3 computations are ahead")
