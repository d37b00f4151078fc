"""From the data section to rendered conversations: sources, options, ids, and a reason for everything left out."""

import json

import datasets
import httpx
import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError

from dflash.config import DataConfig
from dflash.data import hf_dataset
from dflash.data.load import Reject, load_conversations
from dflash.errors import UserError


def turns(user: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]


@pytest.fixture
def write(tmp_path):
    def write(name: str, *records: object) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def load(tiny_target):
    def load(*sources: str, **options):
        return load_conversations(DataConfig(train=list(sources), **options), tiny_target.tokenizer)

    return load


@pytest.fixture
def said(tiny_target):
    """The supervised text of every conversation loaded, without end-of-turn tokens."""

    def said(loaded) -> list[str]:
        return [
            tiny_target.tokenizer.decode(
                [t for t, m in zip(r.input_ids, r.loss_mask, strict=True) if m], skip_special_tokens=True
            )
            for r in loaded.rendered
        ]

    return said


def test_every_conversation_left_out_is_reported_with_line_and_reason(write, load, said):
    path = write(
        "mixed.jsonl",
        {"id": "good", "messages": turns("Hi", "Hello")},
        "{not json",
        {"id": "silent", "messages": turns("Hi", "")},
        {"id": "roles", "messages": [{"role": "robot", "content": "x"}]},
        {"id": "good", "messages": turns("Hi", "Hello")},
        {"id": "calls", "messages": [*turns("Hi", "")[:1], {"role": "gpt", "tool_calls": [{"function": {"name": "f"}}]}]},
        {"id": "late", "messages": turns("Hi " * 200, "Hello")},
        {"id": "last", "messages": turns("Hi", "Bye")},
    )
    loaded = load(path)
    assert said(loaded) == ["Hello", "Bye"]
    assert [(reject.line, reject.id) for reject in loaded.rejects] == [
        (2, ""), (3, "silent"), (4, ""), (5, "good"), (6, "calls"), (7, "late")
    ]
    reasons = [reject.reason for reject in loaded.rejects]
    for reason, words in zip(
        reasons,
        ["not valid JSON", "fewer than 2 supervised", "message 1 needs a role", "same conversation with the same id",
         "does not render tool calls", "fewer than 2 supervised tokens among the first 512"],
        strict=True,
    ):
        assert words in reason
    assert {reject.source for reject in loaded.rejects} == {path}


def test_reasons_are_counted_the_most_frequent_first(write, load):
    loaded = load(write("a.jsonl", {"messages": turns("Hi", "Hello")}, "?", {"messages": turns("Hi", "")}, "?"))
    assert [count for _, count in loaded.reasons] == [2, 1]
    assert "not valid JSON" in loaded.reasons[0][0]


def test_ids_that_collide_across_files_are_told_apart_by_the_files_name(write, load):
    first = write("one.jsonl", {"id": "7", "messages": turns("Hi", "a")}, {"messages": turns("Hi", "no id")})
    second = write("two.jsonl", {"id": "7", "messages": turns("Hi", "b")}, {"messages": turns("Hi", "none either")})
    loaded = load(first, second)
    assert [r.id for r in loaded.rendered] == ["7", "2", "two-7", "two-2"]


def test_ids_that_collide_within_a_file_are_told_apart_by_the_line(write, load):
    path = write("one.jsonl", *({"id": "x", "messages": turns("Hi", answer)} for answer in ("aa", "bb", "cc")))
    loaded = load(path)
    assert [r.id for r in loaded.rendered] == ["x", "one-x", "one-x-3"]


def test_the_same_conversation_twice_is_used_once_lest_it_is_held_out_and_trained_on(write, load):
    record = {"id": "x", "messages": turns("Hi", "Hello")}
    loaded = load(write("one.jsonl", record), write("two.jsonl", record, {"id": "y", "messages": turns("Hi", "Yes")}))
    assert [r.id for r in loaded.rendered] == ["x", "y"]
    (reject,) = loaded.rejects
    assert reject == Reject(reject.source, 1, "the same conversation with the same id came before", "x")
    assert reject.source.endswith("two.jsonl")


def test_thinking_is_kept_or_dropped_as_configured(write, load, said):
    answers = ["<think>\nHmm\n</think>\n\nFour.", "Hmm</think>Five.", "Six."]
    path = write("t.jsonl", *({"messages": turns("2 + 2?", answer)} for answer in answers), {
        "messages": [turns("3 + 4?", "")[0], {"role": "assistant", "content": "Seven.", "reasoning_content": "Hmm"}]
    })
    assert said(load(path)) == [*answers, "Seven."]
    assert said(load(path, thinking="drop")) == ["Four.", "Five.", "Six.", "Seven."]


def test_an_answer_that_was_cut_while_thinking_has_nothing_left_to_say(write, load):
    path = write("t.jsonl", {"messages": turns("a", "b")}, {"messages": turns("2?", "<think>Well"), "finished": False})
    assert len(load(path).rendered) == 2
    assert [r.reason for r in load(path, thinking="drop").rejects] == ["fewer than 2 supervised tokens"]


def test_only_the_last_answer_is_supervised_if_asked(write, load, said):
    path = write("m.jsonl", {"messages": [*turns("Hi", "Hello"), *turns("More", "Bye")]})
    assert said(load(path)) == ["HelloBye"]
    assert said(load(path, last_turn_only=True)) == ["Bye"]


def test_long_conversations_are_cut_and_marked_so(write, load):
    path = write("l.jsonl", *({"messages": turns("Hi", n * "x")} for n in (10, 100)))
    short, long = load(path, max_length=64).rendered
    assert (len(long.input_ids), long.truncated, short.truncated) == (64, True, False)


def test_a_limit_holds_for_each_source_and_stops_before_later_lines_are_judged(write, load):
    first = write("one.jsonl", {"messages": turns("Hi", "aa")}, {"messages": turns("Hi", "bb")}, "broken")
    second = write("two.jsonl", {"messages": turns("Hi", "cc")}, "broken", "broken")
    loaded = load(first, second, limit=2)
    assert len(loaded.rendered) == 3 and len(loaded.rejects) == 1


def test_a_file_without_any_conversation_is_refused_with_its_first_complaint(write, load):
    with pytest.raises(UserError, match=r"bad\.jsonl holds no conversations.*line 2: not valid JSON"):
        load(write("bad.jsonl", "", "nonsense", "more"))
    with pytest.raises(UserError, match="is empty"):
        load(write("empty.jsonl", ""))
    with pytest.raises(UserError, match=r"prompts\.jsonl holds prompts .*dflash synthesize --prompts"):
        load(write("prompts.jsonl", {"turns": ["Hi"]}))


ROWS = [
    {"id": "a", "messages": turns("Hi", "Hello"), "finished": True},
    {"id": "b", "messages": turns("You", "Me"), "finished": None},
    {"id": None, "messages": [*turns("One", "Two"), *turns("Three", "Four")], "finished": True},
]


@pytest.fixture
def hf_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf-cache"))


@pytest.fixture(params=["parquet file", "folder of parquet", "folder of arrow", "saved to disk", "saved with splits"])
def table(request, tmp_path, hf_cache) -> str:
    rows = datasets.Dataset.from_list(ROWS)
    if request.param == "saved to disk":
        rows.save_to_disk(tmp_path / "chats")
    elif request.param == "saved with splits":
        datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "chats")
    elif request.param == "parquet file":
        rows.to_parquet(tmp_path / "chats.parquet")
        return str(tmp_path / "chats.parquet")
    elif request.param == "folder of parquet":
        (tmp_path / "chats").mkdir()
        rows.to_parquet(tmp_path / "chats" / "train.parquet")
    else:
        rows.save_to_disk(tmp_path / "staging")
        (tmp_path / "chats").mkdir()
        (part,) = (tmp_path / "staging").glob("*.arrow")
        part.rename(tmp_path / "chats" / "train.arrow")
    return str(tmp_path / "chats")


@pytest.mark.parametrize("streaming", [False, True])
def test_tables_give_the_same_conversations_as_files(table, load, said, streaming):
    loaded = load(table, streaming=streaming)
    assert said(loaded) == ["Hello", "Me", "TwoFour"]
    assert [r.id for r in loaded.rendered] == ["a", "b", "chats-train-2"]
    assert said(load(table, streaming=streaming, limit=1)) == ["Hello"]


def test_streaming_with_a_limit_reads_only_what_is_needed(load, monkeypatch, tmp_path):
    def rows():
        yield from ROWS[:2]
        raise AssertionError("a third row was asked for")

    def load_dataset(*_args, streaming, **_kwargs):
        assert streaming
        return rows()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load(str(tmp_path), streaming=True, limit=2).rendered) == 2


def test_a_tables_nulls_do_not_become_arguments_of_tool_calls(hf_cache, tmp_path, load, monkeypatch):
    """Arrow gives every call the arguments of all calls, null where there were none."""
    calls = [{"function": {"name": n, "arguments": a}} for n, a in (("f", {"x": 1}), ("g", {"y": "z"}))]
    messages = [turns("Hi", "")[0], *({"role": "assistant", "content": None, "tool_calls": [c]} for c in calls)]
    datasets.Dataset.from_list([{"messages": messages}]).to_parquet(tmp_path / "calls.parquet")
    rows, _ = hf_dataset.read_rows(str(tmp_path / "calls.parquet"))
    (row,) = rows
    assert [m["tool_calls"][0]["function"]["arguments"] for m in row["messages"][1:]] == [{"x": 1}, {"y": "z"}]


def test_a_data_set_without_conversations_is_refused_by_its_columns(hf_cache, tmp_path, load):
    datasets.Dataset.from_list([{"text": "a", "label": 1}]).to_parquet(tmp_path / "texts.parquet")
    with pytest.raises(UserError, match="no column `messages` or `conversations` but label, text"):
        load(str(tmp_path / "texts.parquet"))


def test_a_missing_split_and_a_damaged_table_are_refused_in_a_sentence(hf_cache, tmp_path, load):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "chats")
    with pytest.raises(UserError, match="has no split 'test': choose one of train"):
        load(str(tmp_path / "chats"), split="test")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and then nothing")
    for streaming in (False, True):
        with pytest.raises(UserError, match=r"torn\.parquet.*could not be read"):
            load(str(tmp_path / "torn.parquet"), streaming=streaming)


def http_error(status: int) -> HfHubHTTPError:
    request = httpx.Request("GET", "https://hub.invalid/x")
    return HfHubHTTPError(f"{status} for url", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DatasetNotFoundError("Dataset 'x/y' is a gated dataset on the Hub."), "is gated: ask for access"),
        (http_error(403), "is gated: ask for access"),
        (DatasetNotFoundError("Dataset 'x/y' doesn't exist on the Hub."), "does not exist on the hub, or is private"),
        (http_error(401), "does not exist on the hub, or is private"),
        (http_error(503), "HTTP status 503: try again later"),
        (ConnectionError("Couldn't reach 'x/y' on the Hub (ConnectError)"), "the network failed: Couldn't reach"),
        (httpx.ReadTimeout("timed out"), "the network failed: timed out"),
        (ValueError("Unknown split.\nShould be one of ['test']."), r"\(split 'train'\) could not be read: Unknown split"),
    ],
)
@pytest.mark.parametrize("when", ["opening", "reading"])
def test_hub_failures_are_told_apart_from_one_another_and_from_a_bad_schema(load, monkeypatch, error, words, when):
    def broken():
        yield from ROWS[:1]
        raise error

    def load_dataset(*_args, **_kwargs):
        if when == "opening":
            raise error
        return broken()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hf_dataset, "hub_is_reachable", lambda: True)
    with pytest.raises(UserError, match=words) as caught:
        load("x/y", streaming=True)
    assert "'x/y'" in str(caught.value) and "\n" not in str(caught.value)


def test_without_a_network_a_name_that_is_no_file_says_both(load, monkeypatch):
    monkeypatch.setattr(hf_dataset, "hub_is_reachable", lambda: False)
    with pytest.raises(UserError, match="'nobody/nothing' is no file or folder here, and the .* hub cannot be reached"):
        load("nobody/nothing")
