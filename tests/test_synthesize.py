"""Training data made by the target: batched answers equal single ones, and an interrupted run goes on without loss."""

import json

import pytest
import torch
from datasets import Dataset

from dflash.data.conversations import Prompt, read_conversations
from dflash.data.generation import generate_batch
from dflash.data.hf_dataset import read_dataset_prompts
from dflash.data.synthesize import (
    SynthesisReport,
    SynthesisSettings,
    answer_prompts,
    self_instruct,
    user_turn_prefix,
)
from dflash.errors import UserError

SETTINGS = SynthesisSettings(max_new_tokens=12, max_prompt_tokens=80, batch_size=3)
PROMPTS = [Prompt(f"p{i}", ["word " * (i + 1)], "test") for i in range(7)]


def plain_greedy(target, prompt: list[int], limit: int) -> tuple[list[int], bool]:
    """The slow reference: the whole text again at every step, no cache, no batch."""
    answer: list[int] = []
    for _ in range(limit):
        token = int(target.forward(torch.tensor([prompt + answer]), keep_logits=1).logits[0, -1].argmax())
        if token in target.eos_token_ids:
            return answer, True
        answer.append(token)
    return answer, False


def test_a_padded_batch_gives_each_row_its_own_greedy_answer(tiny_target):
    prompts = [list(range(40, 40 + n)) for n in (3, 17, 9, 1)]
    batched = generate_batch(tiny_target, prompts, max_new_tokens=20)
    assert batched == [plain_greedy(tiny_target, p, 20) for p in prompts]


def test_rows_that_stop_leave_the_batch_and_the_others_go_on_unchanged(tiny_target, monkeypatch):
    prompts = [list(range(40, 40 + n)) for n in (3, 17, 9)]
    unstopped = generate_batch(tiny_target, prompts, max_new_tokens=20)
    # Make a token that the first row emits, and not the others before it, the stop token.
    stop = next(t for t in unstopped[0][0] if t not in unstopped[1][0])
    monkeypatch.setattr(type(tiny_target), "eos_token_ids", frozenset({stop}))
    expected = [plain_greedy(tiny_target, p, 20) for p in prompts]
    assert expected[0][1] is True, "the first row must stop for this test to mean anything"
    assert expected[1][1] is False
    assert generate_batch(tiny_target, prompts, max_new_tokens=20) == expected


def test_sampling_repeats_with_its_seed_and_changes_with_another(tiny_target):
    def sample(seed: int):
        generator = torch.Generator().manual_seed(seed)
        return generate_batch(tiny_target, [[40, 41]] * 3, max_new_tokens=10, temperature=1.0, generator=generator)

    assert sample(0) == sample(0)
    assert sample(0) != sample(1)


def test_a_tiny_nucleus_is_greedy(tiny_target):
    greedy = generate_batch(tiny_target, [[40, 41]], max_new_tokens=10)
    generator = torch.Generator().manual_seed(0)
    nucleus = generate_batch(
        tiny_target, [[40, 41]], max_new_tokens=10, temperature=1.0, top_p=1e-6, generator=generator
    )
    assert nucleus == greedy


def test_every_prompt_is_answered_once_and_reads_back_as_a_conversation(tiny_target, tmp_path):
    out = tmp_path / "new" / "answers.jsonl"
    report = answer_prompts(tiny_target, PROMPTS, out, SETTINGS, progress=False)
    conversations = read_conversations(out)
    assert sorted(c.id for c in conversations) == sorted(p.id for p in PROMPTS)
    assert report.written == len(PROMPTS)
    assert report.tokens > 0
    by_id = {c.id: c for c in conversations}
    assert by_id["p2"].messages[0] == {"role": "user", "content": PROMPTS[2].turns[0]}
    assert by_id["p2"].category == "test"


def test_a_second_run_writes_nothing_new(tiny_target, tmp_path):
    out = tmp_path / "answers.jsonl"
    answer_prompts(tiny_target, PROMPTS, out, SETTINGS, progress=False)
    before = out.read_bytes()
    report = answer_prompts(tiny_target, PROMPTS, out, SETTINGS, progress=False)
    assert out.read_bytes() == before
    assert (report.written, report.resumed) == (0, len(PROMPTS))


def test_a_line_torn_by_an_interruption_is_written_again(tiny_target, tmp_path):
    out = tmp_path / "answers.jsonl"
    answer_prompts(tiny_target, PROMPTS, out, SETTINGS, progress=False)
    whole = out.read_bytes()
    out.write_bytes(whole[:-30])
    report = answer_prompts(tiny_target, PROMPTS, out, SETTINGS, progress=False)
    assert (report.written, report.resumed) == (1, len(PROMPTS) - 1)
    assert out.read_bytes() == whole


def test_a_last_line_that_lost_only_its_newline_is_kept(tiny_target, tmp_path):
    out = tmp_path / "answers.jsonl"
    answer_prompts(tiny_target, PROMPTS, out, SETTINGS, progress=False)
    whole = out.read_bytes()
    out.write_bytes(whole[:-1])
    report = answer_prompts(tiny_target, PROMPTS, out, SETTINGS, progress=False)
    assert report.written == 0
    assert out.read_bytes() == whole


@pytest.mark.parametrize("content", ["a shopping list", '{"no": "identity"}\n', "[1, 2]\n", '"text"\n'])
def test_a_file_of_something_else_is_refused_and_left_as_it_was(tiny_target, tmp_path, content):
    out = tmp_path / "notes.txt"
    out.write_text(content)
    with pytest.raises(UserError, match="line 1"):
        answer_prompts(tiny_target, PROMPTS, out, SETTINGS, progress=False)
    assert out.read_text() == content


def test_prompts_that_are_too_long_are_counted_and_left_out(tiny_target, tmp_path):
    long = Prompt("long", ["x" * 200])
    report = answer_prompts(tiny_target, [long, PROMPTS[0]], tmp_path / "out.jsonl", SETTINGS, progress=False)
    assert (report.written, report.rejected) == (1, 1)


def test_two_prompts_of_one_id_are_refused_before_anything_is_written(tiny_target, tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="'p0'"):
        answer_prompts(tiny_target, [*PROMPTS, Prompt("p0", ["another text"])], out, SETTINGS, progress=False)
    assert not out.exists()


@pytest.mark.parametrize("start", [answer_prompts, self_instruct])
def test_lengths_beyond_the_targets_positions_are_refused_at_the_start(start, tiny_target, tmp_path):
    work = PROMPTS if start is answer_prompts else 1
    settings = SynthesisSettings(max_prompt_tokens=500, max_new_tokens=13)
    with pytest.raises(UserError, match="513, but target .* has 512 positions"):
        start(tiny_target, work, tmp_path / "out.jsonl", settings, progress=False)


def test_the_user_turn_starts_where_the_template_puts_the_users_words(tiny_target):
    assert user_turn_prefix(tiny_target) == "<|im_start|>user\n"


def test_self_instruction_reaches_its_count_and_continues_after_its_last_wave(instructed_target, tmp_path):
    out = tmp_path / "self.jsonl"
    settings = SynthesisSettings(max_new_tokens=4, max_prompt_tokens=160, batch_size=4, user_prefixes=("a b ", "c d "))
    first = self_instruct(instructed_target, 3, out, settings, progress=False)
    assert first.written >= 3
    second = self_instruct(instructed_target, first.written + 1, out, settings, progress=False)
    assert second.resumed == first.written
    conversations = read_conversations(out)
    assert len({c.id for c in conversations}) == first.written + second.written
    openings = {c.messages[0]["content"][:3] for c in conversations}
    assert openings == {"a b", "c d"}


def test_a_target_that_cannot_write_user_turns_is_told_so(tiny_target, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "dflash.data.synthesize.generate_batch", lambda target, prompts, **_: [([40], False) for _ in prompts]
    )
    with pytest.raises(UserError, match="cannot self-instruct"):
        self_instruct(tiny_target, 1, tmp_path / "out.jsonl", SETTINGS, progress=False)


@pytest.fixture
def instructed_target(tiny_target, monkeypatch):
    """The tiny target, made to end its sampled turns: space-separated words are what a user turn needs."""
    real = generate_batch

    def generate(target, prompts, *, temperature=0.0, **options):
        answers = real(target, prompts, temperature=temperature, **options)
        if temperature == 0:
            return answers
        word = target.tokenizer(" word", add_special_tokens=False).input_ids
        return [(tokens[:5] + word, True) for tokens, _ in answers]

    monkeypatch.setattr("dflash.data.synthesize.generate_batch", generate)
    return tiny_target


def test_reports_add_up():
    total = SynthesisReport(1, 10, 2, 3) + SynthesisReport(4, 40, 5, 6)
    assert total == SynthesisReport(5, 50, 7, 9)


@pytest.fixture
def dataset_folder(tmp_path) -> str:
    """A data set as a folder of JSONL, which `datasets` reads without a network."""
    folder = tmp_path / "my-data"
    folder.mkdir()
    rows = [
        {"prompt": f"question {i}", "chat": [{"role": "system", "content": "s"}, {"role": "user", "content": f"u{i}"}]}
        for i in range(4)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_a_data_set_gives_texts_and_first_user_turns(dataset_folder):
    texts = read_dataset_prompts(dataset_folder, split="train", column="prompt", limit=3)
    assert [p.turns for p in texts] == [["question 0"], ["question 1"], ["question 2"]]
    chats = read_dataset_prompts(dataset_folder, split="train", column="chat")
    assert [p.turns for p in chats] == [["u0"], ["u1"], ["u2"], ["u3"]]
    assert len({p.id for p in chats}) == 4


def test_a_wrong_column_split_or_data_set_is_named(dataset_folder):
    with pytest.raises(UserError, match="choose one of chat, prompt"):
        read_dataset_prompts(dataset_folder, split="train", column="text")
    with pytest.raises(UserError, match="nowhere"):
        read_dataset_prompts(dataset_folder, split="nowhere", column="prompt")
    with pytest.raises(UserError, match="no/such-dataset"):
        read_dataset_prompts("no/such-dataset", split="train", column="prompt")


def test_a_subset_picks_one_of_several_configurations(tmp_path):
    for name in ("easy", "hard"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(json.dumps({"prompt": f"an {name} question"}) + "\n")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: easy\n  data_files: easy/*.jsonl\n"
        "- config_name: hard\n  data_files: hard/*.jsonl\n---\n"
    )
    prompts = read_dataset_prompts(str(tmp_path), subset="hard", split="train", column="prompt")
    assert [p.turns for p in prompts] == [["an hard question"]]
    with pytest.raises(UserError, match="hard"):
        read_dataset_prompts(str(tmp_path), split="train", column="prompt")


def test_a_cell_without_a_user_turn_is_named_by_row(tmp_path):
    Dataset.from_list([{"prompt": "good"}, {"prompt": " "}]).to_json(tmp_path / "train.jsonl")
    with pytest.raises(UserError, match="row 1"):
        read_dataset_prompts(str(tmp_path), split="train", column="prompt")
