"""The trace survives JSON, and its numbers follow from its steps."""

import json

import pytest

from dflash.decoding.trace import Step, Trace
from dflash.errors import UserError


@pytest.fixture
def trace() -> Trace:
    steps = [
        Step(0, [], 0, 7, [7], 0.0, 0.5, 0.0),
        Step(1, [1, 2, 3], 2, 9, [1, 2, 9], 0.01, 0.04, 0.0),
        Step(2, [4, 5, 6], 3, 8, [4], 0.01, 0.04, 0.0, gap=0.25),
    ]
    return Trace("draft", 11, 4, 0.0, "target", steps, prefill_s=0.5, time_to_first_token_s=0.4, stopped=True)


def test_tau_and_speed_leave_the_prefill_out(trace):
    assert trace.tokens == [7, 1, 2, 9, 4]
    assert trace.tau == 2.0
    assert trace.seconds == pytest.approx(0.1)
    assert trace.tok_s == pytest.approx(40)
    assert trace.accepted_histogram == [0, 0, 1, 1]


def test_a_trace_survives_json(trace):
    record = json.loads(json.dumps(trace.to_dict()))
    assert Trace.from_dict(record) == trace
    assert record["tau"] == 2.0 and record["tokens"] == trace.tokens


def test_a_record_of_something_else_is_refused(trace):
    with pytest.raises(UserError, match="no decoding trace"):
        Trace.from_dict({"mode": "draft"})
    with pytest.raises(UserError, match="no decoding trace"):
        Trace.from_dict(trace.to_dict() | {"steps": [{"x": 1}]})
