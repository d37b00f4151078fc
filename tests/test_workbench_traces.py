"""Saved traces: opened again as they were, by ids that cannot leave their folder, and judged like any input."""

import json
import os
import resource
import signal

import pytest
from workbench_server import save_tiny_draft

from dflash.errors import UserError
from workbench.bench import Bench
from workbench.link_store import LinkStore
from workbench.race import Race
from workbench.race_record import exported, parse_record
from workbench.race_settings import RaceSettings
from workbench.traces import open_trace, save_trace, saved_picture


@pytest.fixture(scope="module")
def record(tiny_target, tiny_target_folder, tmp_path_factory):
    draft = save_tiny_draft(tiny_target, tmp_path_factory.mktemp("traces") / "draft")
    race = Race(Bench(tiny_target_folder, draft), RaceSettings("Hello <b>.", max_new_tokens=12))
    list(race.run())
    return race.record


def changed(record, path: str, value):
    tree = json.loads(json.dumps(exported(record)))
    at = tree
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        at = at[part]
    at[last] = value
    return tree


def test_a_saved_trace_opens_as_it_was_and_names_machine_and_day(record, tmp_path):
    name = save_trace(tmp_path, record)
    again = open_trace(tmp_path, name)
    assert again.model_copy(update={"saved": None}) == record
    shown = saved_picture(again)["recorded"]
    assert shown["kind"] == "Saved" and "torch" in shown["machine"] and shown["date"] == again.saved


def test_the_same_trace_is_kept_once(record, tmp_path):
    assert save_trace(tmp_path, record) == save_trace(tmp_path, record)
    assert len(list((tmp_path / ".traces").iterdir())) == 1


@pytest.mark.parametrize("name", ["../secret", "x" * 24, "", "0" * 23, "0" * 25, "/etc/passwd", "0" * 23 + "\n"])
def test_an_id_that_is_none_is_refused_before_any_file_is_touched(tmp_path, name):
    with pytest.raises(UserError, match="names no saved trace"):
        open_trace(tmp_path, name)


def test_a_missing_or_foreign_file_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="not here any more"):
        open_trace(tmp_path, "0" * 24)
    (tmp_path / ".traces").mkdir()
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    os.symlink(secret, tmp_path / ".traces" / ("0" * 24 + ".json"))
    with pytest.raises(UserError, match="not here any more"):
        open_trace(tmp_path, "0" * 24)


@pytest.mark.parametrize(
    ("content", "words"), [(b"{", "no JSON"), (b"\xff", "damaged"), (b"[]", "no trace"), (b"{}", "no trace")]
)
def test_a_damaged_file_is_a_sentence(tmp_path, content, words):
    (tmp_path / ".traces").mkdir()
    (tmp_path / ".traces" / ("a" * 24 + ".json")).write_bytes(content)
    with pytest.raises(UserError, match=words):
        open_trace(tmp_path, "a" * 24)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("draft.steps.1.accepted", 99),
        ("draft.steps.1.index", 7),
        ("draft.steps.1.emitted", []),
        ("draft.steps.1.draft_s", -1.0),
        ("draft.steps.1.verify_s", float("inf")),
        ("target.steps", []),
        ("texts.draft", []),
        ("texts.target.0.emitted", ["a", "b"]),
        ("settings.rule", "luck"),
        ("settings.prompt", 5),
        ("settings.history", [{"role": "alien", "content": "x"}]),
        ("machine", {"cpu": {"deep": 1}}),
        ("format", 2),
    ],
)
def test_a_record_that_contradicts_itself_is_named_by_its_place(record, path, value):
    with pytest.raises(UserError, match="This is no trace of the Decode page: ") as refused:
        parse_record(changed(record, path, value))
    assert path.split(".")[0] in str(refused.value)


def test_claims_are_worked_out_from_the_steps_and_not_believed(record):
    lying = changed(record, "speedup", 99.0) | {"identical": False}
    kept = exported(parse_record(lying))
    assert kept["identical"] is True and kept["speedup"] != 99.0


def test_the_store_is_bounded_in_size_and_number(tmp_path):
    store = LinkStore(tmp_path / "kept", "trace", max_bytes=10, max_entries=2)
    with pytest.raises(UserError, match="more than the"):
        store.save("x" * 11)
    store.save("one")
    store.save("two")
    assert store.open(store.save("one")) == "one"
    with pytest.raises(UserError, match="is full .2 saved files.: delete"):
        store.save("three")


def test_all_that_is_kept_together_is_bounded_and_what_is_there_stays(tmp_path):
    store = LinkStore(tmp_path / "kept", "trace", max_total=10)
    kept = store.save("four")
    with pytest.raises(UserError, match="is full .4 bytes, and no more than 10 may be kept.: delete"):
        store.save("more ü")  # 7 bytes in UTF-8
    assert store.open(kept) == "four"
    store.save("sixth!")
    assert len(list(store.folder.iterdir())) == 2


def test_a_disk_that_cannot_take_more_is_a_sentence_and_leaves_nothing_behind(tmp_path):
    store = LinkStore(tmp_path / "kept", "trace")
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1][1]))
    try:
        with pytest.raises(UserError, match="could not be kept in .*: File too large; make room there"):
            store.save("x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[1])
        signal.signal(signal.SIGXFSZ, before[0])
    assert list(store.folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be kept"):
        LinkStore(tmp_path / "file" / "kept", "trace").save("x")
