"""Regenerated answers: asked in the right words, every conversation exactly once, whatever servers and processes do."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from byte_tokenizer import byte_tokenizer
from online_fakes import FakeServer, FakeStore

from dflash.cli.main import main
from dflash.config import DataConfig
from dflash.data.conversations import Conversation, read_conversations
from dflash.data.load import load_conversations
from dflash.data.messages import Rejected
from dflash.errors import UserError
from dflash.online import retries
from dflash.online.answering import AnswerSettings, AskSettings
from dflash.online.regenerate import Order, describe_servers, regenerate
from dflash.online.turns import questions

TOKENIZER = byte_tokenizer()


def message(role: str, content: str = "x") -> dict:
    return {"role": role, "content": content}


def user(text: str) -> dict:
    return message("user", text)


def talk(path: Path, count: int, turns: int = 1) -> str:
    """`count` conversations of some turns each, with answers that nobody wants."""
    with open(path, "w") as file:
        for n in range(count):
            messages = []
            for turn in range(turns):
                messages += [user(f"question {n}.{turn}"), message("assistant", "an old answer")]
            file.write(json.dumps({"id": f"c{n}", "category": "test", "messages": messages}) + "\n")
    return str(path)


@pytest.fixture
def launch():
    """Starts servers that are dead at the end of the test."""
    servers = []

    def start(*behaviours) -> list[FakeServer]:
        for behave in behaviours:
            server = FakeServer(FakeStore(), behave)
            server.encode = lambda text: TOKENIZER.encode(text, add_special_tokens=False)
            servers.append(server)
        return servers[-len(behaviours) :]

    yield start
    for server in servers:
        server.die()


@pytest.fixture
def make(tmp_path):
    """Regenerates into OUT; settings of answers and of asking by keyword."""

    def run(data: str, servers: list[FakeServer], *, out: Path = tmp_path / "out.jsonl", limit=None, **settings):
        asked = {name: settings.pop(name) for name in ("in_flight", "patience") if name in settings}
        answers = AnswerSettings(**{"max_new_tokens": 64, **settings})
        order = Order(DataConfig(train=[data], limit=limit), "some-target", None, answers)
        addresses = [server.address for server in servers]
        return regenerate(order, out, addresses, TOKENIZER, AskSettings(**{"patience": 20.0, **asked}), progress=False)

    return run


def answer(number, request):
    return "answer"


def first(*actions: str):
    return lambda number, request: actions[number] if number < len(actions) else "answer"


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def prompts(server: FakeServer) -> list[str]:
    return [TOKENIZER.decode(request["input_ids"]) for request in server.requests]


# What is asked


@pytest.mark.parametrize(
    ("roles", "everything", "last"),
    [
        ("ua", [[0]], [0]),
        ("u", [[0]], [0]),
        ("suaua", [[0, 1], [3]], [0, 1, 2, 3]),
        ("uau", [[0], [2]], [0, 1, 2]),
        ("uuaa", [[0, 1]], [0, 1]),
        ("uasua", [[0], [2, 3]], [0, 1, 2, 3]),
        ("uas", [[0]], [0]),
        ("aua", [[1]], [0, 1]),
        ("suuu", [[0, 1], [2], [3]], [0, 1, 2, 3]),  # prompts, which nobody has answered yet
    ],
)
def test_an_answer_is_due_behind_every_question(roles, everything, last):
    names = {"u": "user", "a": "assistant", "s": "system"}
    messages = [message(names[role], str(place)) for place, role in enumerate(roles)]
    conversation = Conversation("c", messages)
    found = questions(conversation, last_only=False)
    assert [[int(part["content"]) for part in parts] for parts in found] == everything
    (opening,) = questions(conversation, last_only=True)
    assert [int(part["content"]) for part in opening] == last


def test_answers_that_hang_together_with_tools_are_left_out_unless_only_the_last_one_is_given_anew():
    call = {**message("assistant", ""), "tool_calls": [{"function": {"name": "f"}}]}
    conversation = Conversation("c", [user("?"), call, message("tool", "42"), message("assistant", "It is 42.")])
    with pytest.raises(Rejected, match="tool calls"):
        questions(conversation, last_only=False)
    assert questions(conversation, last_only=True) == [conversation.messages[:3]]
    with pytest.raises(Rejected, match="no turn of the user"):
        questions(Conversation("c", [message("system"), message("assistant")]), last_only=False)


def test_the_target_sees_its_own_earlier_answers(launch, make, tmp_path):
    (server,) = launch(answer)
    server.reply = lambda tokens: f"new after {len(tokens)}"
    make(talk(tmp_path / "talk.jsonl", 1, turns=2), [server])
    one, two = prompts(server)
    assert one == "<|im_start|>user\nquestion 0.0<|im_end|>\n<|im_start|>assistant\n"
    own = f"new after {len(server.requests[0]['input_ids'])}"
    assert two == f"{one}{own}<|im_end|>\n<|im_start|>user\nquestion 0.1<|im_end|>\n<|im_start|>assistant\n"
    (found,) = records(tmp_path / "out.jsonl")
    assert found["messages"][1] == message("assistant", own) and len(found["messages"]) == 4


def test_the_last_answer_alone_is_given_behind_those_that_were_given(launch, make, tmp_path):
    (server,) = launch(answer)
    make(talk(tmp_path / "talk.jsonl", 1, turns=2), [server], last_turn_only=True)
    (asked,) = prompts(server)
    assert "an old answer<|im_end|>\n<|im_start|>user\nquestion 0.1" in asked
    (found,) = records(tmp_path / "out.jsonl")
    assert found["messages"][1]["content"] == "an old answer" and found["messages"][3]["content"].startswith("answer ")


def test_prompt_files_are_answered_turn_by_turn_beside_conversations(launch, make, tmp_path):
    prompts_file, talk_file = tmp_path / "ask.jsonl", talk(tmp_path / "talk.jsonl", 2)
    prompts_file.write_text('{"turns": ["One?", "Two?"], "category": "math"}\n{"id": "mine", "turns": ["Three?"]}\n')
    (server,) = launch(answer)
    order = Order(DataConfig(train=[talk_file, str(prompts_file)]), "m", None, AnswerSettings(max_new_tokens=9))
    regenerate(order, tmp_path / "out.jsonl", [server.address], TOKENIZER, AskSettings(), progress=False)
    found = records(tmp_path / "out.jsonl")
    assert [record["id"] for record in found] == ["ask-1", "mine", "c0", "c1"]
    assert [m["role"] for m in found[0]["messages"]] == ["user", "assistant"] * 2 and found[0]["category"] == "math"
    prompts_file.write_text('{"id": "c1", "turns": ["One?"]}\n')
    with pytest.raises(UserError, match="Two conversations have the id 'c1'"):
        regenerate(order, tmp_path / "new.jsonl", [server.address], TOKENIZER, AskSettings(), progress=False)


def test_greedy_answers_have_no_seed_and_others_one_of_their_own_that_stays(launch, make, tmp_path):
    data = talk(tmp_path / "talk.jsonl", 3, turns=2)
    (server,) = launch(answer)
    make(data, [server], max_new_tokens=5)
    assert {json.dumps(r["sampling_params"]) for r in server.requests} == {'{"max_new_tokens": 5, "temperature": 0.0}'}
    seeds = []
    for number, actions in enumerate([(), ("busy", "busy", "hang up")]):
        (server,) = launch(first(*actions))
        make(data, [server], temperature=0.7, out=tmp_path / f"{number}.jsonl")
        seeds.append({r["sampling_params"]["sampling_seed"] for r in server.requests})
        assert len(server.requests) == 6 + len(actions)
    assert seeds[0] == seeds[1] and len(seeds[0]) == 6  # the same when asked for again


def test_what_a_template_writes_of_an_answer_belongs_to_it(launch, tmp_path):
    tokenizer = byte_tokenizer()
    opened = tokenizer.chat_template.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    tokenizer.chat_template = opened
    (server,) = launch(answer)
    server.reply = lambda tokens: "hm\n</think>\nYes."
    order = Order(DataConfig(train=[talk(tmp_path / "t.jsonl", 1)]), "m", None, AnswerSettings(max_new_tokens=9))
    regenerate(order, tmp_path / "out.jsonl", [server.address], tokenizer, AskSettings(), progress=False)
    assert records(tmp_path / "out.jsonl")[0]["messages"][-1]["content"] == "<think>\nhm\n</think>\nYes."


# What comes of it


def test_the_file_reads_as_training_data_in_the_order_of_the_data_with_the_answers_supervised(launch, make, tmp_path):
    slow = launch(lambda number, request: "late" if number % 3 == 0 else "answer", answer)
    result = make(talk(tmp_path / "talk.jsonl", 30, turns=2), slow, in_flight=4)
    assert result["conversations"] == 30 and result["tokens"] > 0 and result["rejected"] == 0
    out = tmp_path / "out.jsonl"
    assert [record["id"] for record in records(out)] == [f"c{n}" for n in range(30)]
    assert records(out)[0]["target"] == "some-target" and records(out)[0]["category"] == "test"
    rendered = load_conversations(DataConfig(train=[str(out)]), TOKENIZER).rendered
    assert len(rendered) == 30
    supervised = [token for token, on in zip(rendered[0].input_ids, rendered[0].loss_mask) if on]
    own = [m["content"] for m in records(out)[0]["messages"] if m["role"] == "assistant"]
    assert TOKENIZER.decode(supervised) == "".join(f"{text}<|im_end|>" for text in own)
    assert not (tmp_path / "out.jsonl.journal").exists()


def test_how_the_file_came_about_is_recorded(launch, make, tmp_path):
    servers = launch(first("busy"), answer)
    make(talk(tmp_path / "talk.jsonl", 4), servers, temperature=0.5, seed=3, limit=3)
    found = json.loads((tmp_path / "out.jsonl.provenance.json").read_text())
    assert found["settings"]["model"] == "some-target" and found["settings"]["temperature"] == 0.5
    assert found["settings"]["seed"] == 3 and found["settings"]["limit"] == 3 and found["conversations"] == 3
    assert found["sglang"] == "0.5.23" and found["servers"] == [s.address for s in servers] and found["retries"] == 1
    assert found["last_sitting"]["tokens"] == found["tokens"] > 0


def test_an_answer_that_was_cut_ends_the_conversation_and_is_not_taken_for_finished(launch, make, tmp_path):
    (server,) = launch(first("cut"))
    make(talk(tmp_path / "talk.jsonl", 1, turns=3), [server])
    (found,) = records(tmp_path / "out.jsonl")
    assert len(found["messages"]) == 2 and found["finished"] is False and len(server.requests) == 1
    assert read_conversations(tmp_path / "out.jsonl")[0].finished is False


def test_answers_get_the_room_that_rows_and_servers_leave(launch, make, tmp_path):
    data = talk(tmp_path / "talk.jsonl", 1, turns=3)
    (server,) = launch(answer)
    make(data, [server], max_length=115, max_new_tokens=80)
    lengths = [len(request["input_ids"]) for request in server.requests]
    limits = [request["sampling_params"]["max_new_tokens"] for request in server.requests]
    assert limits == [min(80, 115 - length) for length in lengths] and len(limits) == 2  # a third one has no room
    (found,) = records(tmp_path / "out.jsonl")
    assert len(found["messages"]) == 4 and found["finished"] is True
    (small,) = launch(answer)
    small.info["max_req_input_len"] = 80
    make(data, [small], max_new_tokens=100, out=tmp_path / "small.jsonl")
    assert small.requests[0]["sampling_params"]["max_new_tokens"] == 80 - lengths[0]


def test_what_cannot_be_answered_is_left_out_and_counted_with_its_reason(launch, make, tmp_path):
    data = tmp_path / "talk.jsonl"
    talk(data, 4)
    with open(data, "a") as file:
        file.write(json.dumps({"id": "long", "messages": [user("x" * 300)]}) + "\n")
        file.write(json.dumps({"id": "nobody", "messages": [message("system")]}) + "\n")
        file.write("no json\n")
    (server,) = launch(first("refuse", "silent", "abort"))
    result = make(str(data), [server], in_flight=1, max_length=200)
    assert [record["id"] for record in records(tmp_path / "out.jsonl")] == ["c3"]
    assert dict(result["reasons"]) == {
        "refused by the server: The input (N tokens) is longer than the context (N tokens)": 1,
        "an empty answer": 1,
        "refused by the server: too long": 1,
        "a prompt that leaves no room for an answer in 200 tokens": 1,
        "no turn of the user": 1,
    }
    assert result["rejected"] == 5 and result["unreadable"] == [("not valid JSON (Expecting value)", 1)]
    make(str(data), [], max_length=200)  # complete: nobody is asked


# Faults


def test_what_fails_is_asked_for_again_and_every_conversation_is_answered_once(launch, make, tmp_path):
    faults = ["hang up", "malformed", "no json", "busy"]
    servers = launch(lambda number, request: faults[number % 8 // 2] if number % 2 else "answer", answer)
    result = make(talk(tmp_path / "talk.jsonl", 40, turns=2), servers, in_flight=4)
    assert [record["id"] for record in records(tmp_path / "out.jsonl")] == [f"c{n}" for n in range(40)]
    assert result["retries"] >= 3
    assert sum(len(server.requests) for server in servers) == 80 + result["retries"]


def test_a_server_that_dies_is_replaced_by_the_others(launch, make, tmp_path):
    dying, living = launch(lambda number, request: "die" if number == 5 else "answer", answer)
    make(talk(tmp_path / "talk.jsonl", 40), [dying, living], in_flight=3)
    assert len(records(tmp_path / "out.jsonl")) == 40 and len(living.requests) >= 30


def test_each_server_works_on_as_many_as_it_may_even_when_another_rests(launch, make, tmp_path):
    resting, other = launch(lambda number, request: "busy", lambda number, request: "late")
    make(talk(tmp_path / "talk.jsonl", 9), [resting, other], in_flight=3)
    assert other.most == 3 and resting.most <= 3
    assert len(records(tmp_path / "out.jsonl")) == 9


def test_patience_ends_the_work_and_what_was_done_is_kept(launch, make, tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "_LONGEST_PAUSE", 0.2)
    data = talk(tmp_path / "talk.jsonl", 6)
    (server,) = launch(lambda number, request: "answer" if number < 3 else "busy")
    with pytest.raises(UserError, match=r"The answer to conversation 'c\d' could not be had in 0.5 s; .*HTTP 503"):
        make(data, [server], in_flight=1, patience=0.5)
    assert not (tmp_path / "out.jsonl").exists()
    (server,) = launch(answer)
    make(data, [server])
    assert len(server.requests) == 3 and len(records(tmp_path / "out.jsonl")) == 6


def in_a_running_loop(work):
    """Called as a notebook's cell is."""

    async def cell():
        return work()

    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(cell())
    finally:
        loop.close()


def test_in_a_notebook_whose_thread_runs_a_loop_the_file_is_the_same(launch, make, tmp_path):
    data = talk(tmp_path / "talk.jsonl", 5, turns=2)
    make(data, launch(answer))
    in_a_running_loop(lambda: make(data, launch(answer), out=tmp_path / "cell.jsonl"))
    assert (tmp_path / "cell.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(UserError, match="HTTP 404"):
        in_a_running_loop(lambda: make(data, launch(lambda *_: "not found"), out=tmp_path / "other.jsonl"))


@pytest.fixture
def interruptible():
    """SIGINT raises KeyboardInterrupt, even where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_cell_of_a_notebook_keeps_what_was_done_and_leaves_no_thread(launch, make, tmp_path):
    def interrupting(number, request):
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)
            return "late"
        return "answer"

    data = talk(tmp_path / "talk.jsonl", 6)
    (server,) = launch(interrupting)
    with pytest.raises(KeyboardInterrupt):
        in_a_running_loop(lambda: make(data, [server], in_flight=1))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("event-loop")]
    assert len(server.requests) == 4 and not (tmp_path / "out.jsonl").exists()
    (server,) = launch(answer)
    in_a_running_loop(lambda: make(data, [server], in_flight=1))
    assert len(server.requests) == 3 and len(records(tmp_path / "out.jsonl")) == 6


KILLED = """
import sys
sys.path[:0] = sys.argv[1:3]
from dflash.cli.main import main
sys.exit(main(["regenerate", *sys.argv[3:]]))
"""


def test_a_process_that_is_killed_again_and_again_loses_and_doubles_nothing(launch, tmp_path, tiny_target_folder):
    data, out = talk(tmp_path / "talk.jsonl", 60), tmp_path / "out.jsonl"
    (server,) = launch(lambda number, request: time.sleep(0.05) or "answer")
    roots = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]
    command = [sys.executable, "-c", KILLED, *roots, data, "--server", server.address, "--out", str(out)]
    command += ["--target", tiny_target_folder, "--in-flight", "2"]
    kills = 0
    while kills < 3:
        asked = len(server.requests)
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while len(server.requests) < asked + 8 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, process.stderr.read().decode()
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        assert not out.exists()
    with open(tmp_path / "out.jsonl.journal", "ab") as journal:
        journal.write(b'{"id": "c5')  # as a kill in the middle of a write leaves it
    finished = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert [record["id"] for record in records(out)] == [f"c{n}" for n in range(60)]
    assert len(server.requests) <= 60 + 2 * kills  # what was in flight at each kill is asked for again, nothing else


def test_only_one_process_works_on_a_file(launch, make, tmp_path):
    held = []

    def meanwhile(number, request):
        if not held:
            held.append(True)
            with pytest.raises(UserError, match="being made by another process"):
                make(data, launch(answer))
            held.append(True)
        return "answer"

    data = talk(tmp_path / "talk.jsonl", 2)
    make(data, launch(meanwhile), in_flight=1)
    assert held == [True, True]


# What is refused


def test_other_settings_neither_go_on_nor_pass_for_done(launch, make, tmp_path):
    data = talk(tmp_path / "talk.jsonl", 3)
    (server,) = launch(lambda number, request: "answer" if number < 1 else "not found")
    with pytest.raises(UserError, match="HTTP 404"):
        make(data, [server], in_flight=1)
    with pytest.raises(UserError, match=r"unfinished work .* with other settings \(temperature = 0.0\)"):
        make(data, launch(answer), temperature=1.0)
    make(data, launch(answer))
    with pytest.raises(UserError, match=r"is complete already, but was made with other settings \(seed = 0\)"):
        make(data, launch(answer), seed=1)


def test_data_that_was_mended_is_in_nobodys_way(launch, make, tmp_path):
    data = tmp_path / "talk.jsonl"
    data.write_text("no json\n")
    with pytest.raises(UserError, match="holds no conversations"):
        make(str(data), launch(answer))
    assert list(tmp_path.iterdir()) == [data]
    make(talk(data, 2), launch(answer))
    assert len(records(tmp_path / "out.jsonl")) == 2


def test_a_data_file_that_has_grown_does_not_pass_for_done(launch, make, tmp_path):
    data = talk(tmp_path / "talk.jsonl", 3)
    make(data, launch(answer))
    make(data, [])
    talk(tmp_path / "talk.jsonl", 4)
    with pytest.raises(UserError, match=r"is complete already, .* \(data_files_sha256 = \['\w{16}'\]\)"):
        make(data, launch(answer))


def test_data_of_which_everything_is_left_out_gives_no_file_and_says_why(launch, make, tmp_path, capsys):
    data = talk(tmp_path / "talk.jsonl", 3)
    words = r"No conversation of .*talk.jsonl got an answer, .* \(3 left out: an empty answer\)"
    with pytest.raises(UserError, match=words):
        make(data, launch(lambda number, request: "silent"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["talk.jsonl"]
    make(data, launch(answer), temperature=0.5)  # nothing is in the way of another try
    assert len(records(tmp_path / "out.jsonl")) == 3


def test_a_server_of_another_model_is_doubted_in_a_sentence(launch, tmp_path):
    (server,) = launch(answer)
    server.info["model_path"] = "/models/some-target-Base"
    order = Order(DataConfig(train=[talk(tmp_path / "t.jsonl", 1)]), "org/some-target", None, AnswerSettings())
    said = []
    with pytest.raises(UserError, match="limit its tokens"):
        regenerate(order, tmp_path / "o.jsonl", [server.address], TOKENIZER, AskSettings(), say=said.append)
    assert len(said) == 1 and "serves '/models/some-target-Base', and the target is 'org/some-target'" in said[0]


@pytest.mark.parametrize(
    ("servers", "words"),
    [([""], "Server '' is no http address"), (["localhost:30000"], "write it like http://127.0.0.1:30000"),
     (["http://a:1", "http://a:1/"], "A server is listed twice")],
)  # fmt: skip
def test_what_is_no_list_of_servers_is_one_sentence(tmp_path, capsys, servers, words):
    options = [word for server in servers for word in ("--server", server)]
    assert main(["regenerate", talk(tmp_path / "t.jsonl", 1), "--out", str(tmp_path / "o.jsonl"), *options]) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_files_that_are_none_of_ours_are_left_alone(launch, make, tmp_path):
    data = talk(tmp_path / "talk.jsonl", 3)
    (tmp_path / "out.jsonl").write_text("mine\n")
    with pytest.raises(UserError, match="exists already, and not from this command"):
        make(data, launch(answer))
    assert (tmp_path / "out.jsonl").read_text() == "mine\n"
    (tmp_path / "other.jsonl.journal").write_text("mine\nand mine\n")
    with pytest.raises(UserError, match="other.jsonl.journal is damaged at byte 0: delete it"):
        make(data, launch(answer), out=tmp_path / "other.jsonl")
    assert (tmp_path / "other.jsonl.journal").read_text() == "mine\nand mine\n"


def test_servers_have_to_serve_one_model_and_read_text_as_the_template_is_tokenized(launch, make, tmp_path):
    one, two = launch(answer, answer)
    two.info["model_path"] = "/elsewhere/models--org--some-target/snapshots/0123abc/"
    assert describe_servers([one.address, two.address]).model == "/models/some-target"
    two.info["model_path"] = "/models/another"
    with pytest.raises(UserError, match="serves '/models/another', but .* serves '/models/some-target'"):
        describe_servers([one.address, two.address])
    one.encode = lambda text: [1, 2, 3]
    with pytest.raises(UserError, match="has another tokenizer"):
        make(talk(tmp_path / "talk.jsonl", 1), [one])
    with pytest.raises(UserError, match="limit its tokens"):
        make(talk(tmp_path / "talk.jsonl", 1), launch(answer), max_new_tokens=None)


def test_the_command_tells_what_came_of_it(launch, tmp_path, tiny_target_folder, capsys):
    (server,) = launch(first("refuse"))
    server.info["model_path"] = tiny_target_folder
    command = ["regenerate", talk(tmp_path / "talk.jsonl", 5), "--server", server.address]
    command += ["--out", str(tmp_path / "out.jsonl"), "--in-flight", "1"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "out.jsonl: 4 conversations with" in said and "1 left out: refused by the server" in said
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["conversations"] == 4 and len(server.requests) == 5
    server.die()
    assert main(command) == 0  # it is complete, and so are servers of no matter
    assert "out.jsonl: 4 conversations with" in capsys.readouterr().out
    assert main([*command, "--seed", "1"]) == 2
    assert "was made with other settings (seed = 0)" in capsys.readouterr().err
    assert main(["regenerate", "talk.jsonl", "--server", server.address, "--out", str(tmp_path / "new.jsonl")]) == 2
    assert "cannot be reached" in capsys.readouterr().err and not (tmp_path / "new.jsonl").exists()
