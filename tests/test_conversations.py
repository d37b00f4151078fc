"""Reading JSONL: both spellings of conversations, and a bad line named by number and reason."""

import json

import pytest

from dflash.data.conversations import read_conversations, read_prompts
from dflash.data.messages import Rejected, parse_messages, parse_tools, without_thinking
from dflash.errors import UserError


@pytest.fixture
def jsonl(tmp_path):
    def write(*lines: object) -> str:
        path = tmp_path / "lines.jsonl"
        path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
        return str(path)

    return write


def test_prompts_keep_id_category_and_turns(jsonl):
    (prompt,) = read_prompts(jsonl({"id": "a-1", "category": "math", "turns": ["What is 2 + 2?", "And doubled?"]}))
    assert (prompt.id, prompt.category, prompt.turns) == ("a-1", "math", ["What is 2 + 2?", "And doubled?"])


def test_prompts_without_an_id_are_named_by_their_line(jsonl):
    prompts = read_prompts(jsonl({"turns": ["one"]}, "", {"turns": ["two"]}))
    assert [p.id for p in prompts] == ["1", "3"]


def test_a_limit_stops_before_later_lines_are_judged(jsonl):
    path = jsonl({"turns": ["one"]}, {"turns": ["two"]}, "not json")
    assert [p.turns for p in read_prompts(path, limit=2)] == [["one"], ["two"]]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{'single': 'quotes'}", "not valid JSON"),
        ('["a list"]', "expected an object, found list"),
        ('{"id": "x"}', "`turns` must be"),
        ('{"turns": []}', "`turns` must be"),
        ('{"turns": "text"}', "`turns` must be"),
        ('{"turns": ["  "]}', "`turns` must be"),
        ('{"turns": [1]}', "`turns` must be"),
    ],
)
def test_a_bad_prompt_line_is_named_by_number_and_reason(jsonl, line, reason):
    path = jsonl({"turns": ["good"]}, line)
    with pytest.raises(UserError, match="line 2") as caught:
        read_prompts(path)
    assert reason in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jsonl could not be read: No such file"):
        read_prompts(tmp_path / "nowhere.jsonl")


def test_a_folder_or_a_binary_file_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="could not be read"):
        read_prompts(tmp_path)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_prompts(binary)


def test_an_empty_file_holds_no_prompts_and_no_conversations(jsonl):
    with pytest.raises(UserError, match="holds no prompts"):
        read_prompts(jsonl())
    with pytest.raises(UserError, match="holds no conversations"):
        read_conversations(jsonl("", " "))


def test_both_public_spellings_of_a_conversation_read_the_same(jsonl):
    path = jsonl(
        {"id": 7, "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        {"id": 7, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    )
    first, second = read_conversations(path)
    assert first == second
    assert first.messages == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_an_answer_cut_at_the_limit_stays_marked(jsonl):
    messages = [{"role": "user", "content": "Hi"}]
    cut, whole = read_conversations(jsonl({"messages": messages, "finished": False}, {"messages": messages}))
    assert (cut.finished, whole.finished) == (False, True)


@pytest.mark.parametrize(
    "record",
    [
        {"messages": []},
        {"text": "no messages"},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": ["bare text"]},
    ],
)
def test_a_bad_conversation_is_named_by_line(jsonl, record):
    with pytest.raises(UserError, match="line 1"):
        read_conversations(jsonl(record))


CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def test_tool_calls_tools_and_reasoning_are_kept_and_nulls_are_not(jsonl):
    messages = [
        {"role": "developer", "content": "Be brief.", "tool_calls": None, "name": None},
        {"from": "human", "value": "Add."},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "Hm."},
        {"role": "tool", "content": "3", "tool_call_id": "1", "name": "add"},
    ]
    (conversation,) = read_conversations(jsonl({"messages": messages, "tools": json.dumps([{"name": "add"}])}))
    assert conversation.tools == [{"name": "add"}]
    assert conversation.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "Hm."},
        {"role": "tool", "content": "3", "tool_call_id": "1", "name": "add"},
    ]


def test_arguments_in_json_text_are_objects_to_the_template():
    """As text they would be quoted a second time by templates that write them as JSON."""
    call = {"function": {"name": "add", "arguments": '{"a": 1}'}}
    (message,) = parse_messages([{"role": "assistant", "tool_calls": [call]}], "here")
    assert message["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]


def test_a_content_in_parts_is_joined_if_all_of_it_is_text():
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert parse_messages([{"role": "user", "content": parts}], "here") == [{"role": "user", "content": "Hello"}]
    with pytest.raises(Rejected, match="here: message 1 needs a role"):
        parse_messages([{"role": "user", "content": [*parts, {"type": "image"}]}], "here")


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"function": {"name": "f", "arguments": "{a: 1}"}}, "arguments in message 1 are not valid JSON"),
        ({"function": {"name": "f", "arguments": "[1]"}}, "without a name or an object of arguments"),
        ({"function": {"arguments": {}}}, "without a name"),
        ("f()", "without a name"),
    ],
)
def test_a_malformed_tool_call_is_rejected(call, reason):
    with pytest.raises(Rejected, match=reason) as caught:
        parse_messages([{"role": "assistant", "content": "", "tool_calls": [call]}], "here")
    assert not caught.value.reason.startswith("here"), "the reason alone does not name the place"


@pytest.mark.parametrize("tools", ["{", "3", {"name": "f"}, ["f"]])
def test_malformed_tools_are_rejected(tools):
    with pytest.raises(Rejected, match="`tools`"):
        parse_tools(tools, "here")
    assert parse_tools(None, "here") is parse_tools("", "here") is parse_tools([], "here") is None


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Four.", "Four."),
        ("<think>\nHm.\n</think>\n\nFour.", "Four."),
        ("Hm.</think>Four.", "Four."),
        ("<think>a</think>Two and <think>b</think>two.", "Two and two."),
        ("Four.<think>Or", "Four."),
        ("<think>Hm", ""),
        (" spaces stay ", " spaces stay "),
    ],
)
def test_thinking_blocks_are_taken_out_whole(written, spoken):
    user = {"role": "user", "content": "<think>mine</think>"}
    answer = {"role": "assistant", "content": written, "thinking": "Hm."}
    assert without_thinking([user, answer]) == [user, {"role": "assistant", "content": spoken}]
