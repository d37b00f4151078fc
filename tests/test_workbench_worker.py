"""Work in a thread: reports arrive, errors reach the listener, leaving ends it at its next report."""

import threading

import pytest

from workbench.turns import Turns
from workbench.worker import Waiting, Worker


def test_the_newest_report_and_then_the_result_arrive():
    def work(report):
        for number in range(5):
            report(number)
        return "done"

    worker = Worker(work, Turns())
    seen = [report for report in worker if report is not None]
    assert seen[-1] == 4 and seen == sorted(seen)
    assert worker.result == "done"


def test_what_the_work_raises_reaches_whoever_iterates():
    def work(report):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(Worker(work, Turns()))


def test_leaving_ends_the_work_at_its_next_report_and_frees_its_turn():
    turns, left, reports = Turns(), threading.Event(), []

    def work(report):
        report("first")
        assert left.wait(10)
        while True:
            reports.append(1)
            report("more")

    worker = Worker(work, turns)
    running = iter(worker)
    while next(running) != "first":
        pass
    running.close()
    left.set()
    worker.thread.join(10)
    assert not worker.thread.is_alive()
    assert len(reports) == 1 and len(turns) == 0


def test_work_waits_for_its_turn_and_says_how_many_are_ahead():
    turns = Turns()
    with turns.ticket():
        worker = Worker(lambda report: "computed", turns)
        running = iter(worker)
        place = next(report for report in running if report is not None)
        assert isinstance(place, Waiting) and place == 1
        assert worker.result is None
    list(running)
    assert worker.result == "computed"


def test_a_listener_that_leaves_while_it_waits_gives_its_place_up():
    turns = Turns()
    with turns.ticket():
        worker = Worker(lambda report: None, turns)
        running = iter(worker)
        next(running)
        running.close()
        worker.thread.join(10)
        assert len(turns) == 1
