"""The loss mask covers exactly what the assistant says, with every shape of chat template."""

import copy

import chat_templates
import pytest
import torch
from byte_tokenizer import CHAT_TEMPLATE, byte_tokenizer

from dflash.data.conversations import Conversation
from dflash.data.messages import Rejected
from dflash.data.template import inside_spans, render, render_all
from dflash.embedded import converted_folder
from dflash.errors import UserError

TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello user, <b>"},
    {"role": "user", "content": "assistant"},
    {"role": "assistant", "content": "assistant\n"},
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "two"}}}
CALLING = [
    {"role": "user", "content": "Add."},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "Three."},
]


@pytest.fixture
def tokenizer():
    """A byte-level tokenizer whose template a test may replace."""
    return copy.deepcopy(byte_tokenizer())


def with_template(template: str):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|bos|>", "<|head|>", "<|/head|>", "<|eot|>", "<|eom|>"]})
    if "<|eot|>" in template:
        tokenizer.eos_token = "<|eot|>"
    tokenizer.chat_template = template
    return tokenizer


def supervised_text(rendered, tokenizer):
    """Every supervised stretch, between brackets."""
    pieces, inside = [], False
    for token, supervised in zip(rendered.input_ids, rendered.loss_mask, strict=True):
        pieces += ["["] * (supervised and not inside) + ["]"] * (inside and not supervised)
        pieces += [tokenizer.decode([token])] * supervised
        inside = supervised
    return "".join(pieces) + "]" * inside


def said(messages, template, finished=True, tools=None, **options):
    tokenizer = with_template(template)
    return supervised_text(render(Conversation("c", messages, "", finished, tools), tokenizer, **options), tokenizer)


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **fields):
    return {"role": "assistant", "content": text, **fields}


def test_mask_marks_answers_and_their_end_of_turn_only():
    assert said(TURNS, CHAT_TEMPLATE) == "[Hello user, <b><|im_end|>][assistant\n<|im_end|>]"


def test_an_answer_cut_at_a_limit_has_no_supervised_end_of_turn():
    assert said(TURNS[:2], CHAT_TEMPLATE, finished=False) == "[Hello user, <b>]"
    assert said(TURNS, CHAT_TEMPLATE, finished=False) == "[Hello user, <b><|im_end|>][assistant]"


def test_tokens_equal_the_template_and_truncation_keeps_the_front(tiny_target):
    tokenizer = tiny_target.tokenizer
    text = tokenizer.apply_chat_template(TURNS, tokenize=False)
    full = render(Conversation("c", TURNS), tokenizer)
    assert full.input_ids == tokenizer(text, add_special_tokens=False).input_ids and not full.truncated
    cut = render(Conversation("c", TURNS), tokenizer, max_length=20)
    assert cut.input_ids == full.input_ids[:20] and cut.loss_mask == full.loss_mask[:20] and cut.truncated


def test_what_a_template_writes_before_the_answer_is_not_supervised():
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n"
        "{% endif %}{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    turns = [TURNS[0], assistant(" Hello my friend ")]
    assert said(turns, template) == "[Hello my friend<|im_end|>]"
    assert said(turns, template, finished=False) == "[Hello my friend]"


def test_an_answer_that_repeats_what_surrounds_it_is_still_found_in_its_own_place():
    echo = "assistant\nHi<|im_start|>user"
    assert said([user(echo), assistant(echo), user("Hi"), assistant("Hi")], CHAT_TEMPLATE) == (
        f"[{echo}<|im_end|>][Hi<|im_end|>]"
    )
    blank = "<think>\n\n</think>\n\n"
    assert said([user("Hi"), assistant(blank)], CHAT_TEMPLATE) == ""
    assert said([user("Hi"), assistant(f"{blank}Hi {blank}")], CHAT_TEMPLATE) == f"[{blank}Hi {blank}<|im_end|>]"


def test_only_the_last_answer_is_supervised_if_asked():
    assert said(TURNS, CHAT_TEMPLATE, last_turn_only=True) == "[assistant\n<|im_end|>]"
    assert said([*TURNS, user("And?")], CHAT_TEMPLATE, last_turn_only=True) == "[assistant\n<|im_end|>]"


def test_an_answer_before_any_question_is_supervised_from_its_words_on():
    assert said([assistant("Hello"), *TURNS[:2]], CHAT_TEMPLATE) == "[Hello<|im_end|>][Hello user, <b><|im_end|>]"


THOUGHT = "<think>\nHmm.\n</think>\n\nFour."


def test_thinking_of_the_last_turn_is_the_assistants_own_and_an_empty_block_is_the_templates():
    assert said([user("2 + 2?"), assistant(THOUGHT)], chat_templates.THINKING) == f"[{THOUGHT}<|im_end|>]"
    assert said([user("2 + 2?"), assistant("Four.", reasoning_content="Hmm.")], chat_templates.THINKING) == (
        f"[{THOUGHT}<|im_end|>]"
    )
    assert said([user("2 + 2?"), assistant("Four.")], chat_templates.THINKING) == "[Four.<|im_end|>]"
    assert said([user("2 + 2?"), assistant("\n\nFour.")], chat_templates.THINKING) == "[Four.<|im_end|>]"


def test_a_template_that_rewrites_earlier_turns_has_each_answer_masked_in_the_final_rendering():
    messages = [user("2 + 2?"), assistant(THOUGHT), user("3 + 3?"), assistant("Six."), user("4?"), assistant(THOUGHT)]
    assert said(messages, chat_templates.THINKING) == f"[Four.<|im_end|>][Six.<|im_end|>][{THOUGHT}<|im_end|>]"
    assert said(messages[:4], chat_templates.THINKING) == "[Four.<|im_end|>][Six.<|im_end|>]"
    assert said(messages, chat_templates.THINKING, last_turn_only=True) == f"[{THOUGHT}<|im_end|>]"


def test_a_thinking_block_that_the_prompt_opened_is_supervised_from_inside():
    messages = [user("2 + 2?"), assistant(THOUGHT), user("3 + 3?"), assistant(THOUGHT)]
    assert said(messages, chat_templates.ALWAYS_THINKING) == (
        "[Four.<|im_end|>][Hmm.\n</think>\n\nFour.<|im_end|>]"
    )
    assert said([user("2 + 2?"), assistant("Four.")], chat_templates.ALWAYS_THINKING) == "[Four.<|im_end|>]"


def test_a_plain_template_supervises_thinking_as_it_was_written():
    assert said([user("2 + 2?"), assistant(THOUGHT)], CHAT_TEMPLATE) == f"[{THOUGHT}<|im_end|>]"


CALLED = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "two"}}\n</tool_call>'


def test_tool_calls_are_supervised_with_the_tags_that_the_assistant_has_to_write():
    assert said(CALLING, chat_templates.THINKING) == f"[{CALLED}<|im_end|>][Three.<|im_end|>]"
    assert said(CALLING[:2], chat_templates.THINKING) == f"[{CALLED}<|im_end|>]"
    spoken = [CALLING[0], assistant("Let me see.", tool_calls=[CALL, CALL])]
    assert said(spoken, chat_templates.THINKING) == f"[Let me see.\n{CALLED}\n{CALLED}<|im_end|>]"


def test_thinking_before_a_tool_call_is_found_when_later_turns_take_it_away():
    """Then no beginning of the conversation is rendered as it is within the whole."""
    thinking = [CALLING[0], CALLING[1] | {"reasoning_content": "Hmm."}, CALLING[2], assistant(THOUGHT)]
    kept = f"[<think>\nHmm.\n</think>\n\n{CALLED}<|im_end|>][{THOUGHT}<|im_end|>]"
    assert said(thinking, chat_templates.THINKING) == kept
    assert said([*thinking, user("Thanks."), assistant("Welcome.")], chat_templates.THINKING) == (
        f"[{CALLED}<|im_end|>][Four.<|im_end|>][Welcome.<|im_end|>]"
    )


def test_tools_reach_the_template_and_are_not_supervised():
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    tokenizer = with_template(chat_templates.THINKING)
    rendered = render(Conversation("c", CALLING, tools=tools), tokenizer)
    assert '"parameters"' in tokenizer.decode(rendered.input_ids)
    assert said(CALLING, chat_templates.THINKING, tools=tools) == f"[{CALLED}<|im_end|>][Three.<|im_end|>]"


def test_a_template_with_headers_trims_and_closes_tool_calls_with_a_token_of_their_own():
    assert said([{"role": "system", "content": " Be kind. "}, *TURNS], chat_templates.HEADERS) == (
        "[Hello user, <b><|eot|>][assistant<|eot|>]"
    )
    called = '{"name": "add", "parameters": {"a": 1, "b": "two"}}<|eom|>'
    assert said(CALLING, chat_templates.HEADERS) == f"[{called}][Three.<|eot|>]"


def test_special_tokens_that_close_a_tool_call_do_not_end_the_turn():
    template = chat_templates.HEADERS.replace("<|eom|>", "<|eom|><|eot|>")
    called = '{"name": "add", "parameters": {"a": 1, "b": "two"}}<|eom|><|eot|>'
    assert said(CALLING, template).startswith(f"[{called}]")


def test_an_end_that_only_the_last_answer_gets_is_not_looked_for_behind_the_others():
    template = CHAT_TEMPLATE.replace("<|im_end|>", "{% if loop.last or m['role'] == 'user' %}<|im_end|>{% endif %}", 1)
    assert said(TURNS, template) == "[Hello user, <b>][assistant\n<|im_end|>]"


def test_where_history_begins_answers_otherwise_than_the_prompt_does_only_their_words_are_supervised():
    opening = "{% if m['role'] == 'assistant' %}<|mask|>\n{% endif %}"
    template = CHAT_TEMPLATE.replace("{{ m['content'] }}", opening + "{{ m['content'] }}")
    template = template.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n!{% endif %}")
    assert said(TURNS[:2], template) == "[Hello user, <b><|im_end|>]"


def test_a_template_without_special_tokens_supervises_to_the_end_of_what_it_writes():
    assert said(TURNS[:2], chat_templates.BARE) == "[Hello user, <b>\n\n]"


def test_generation_tags_are_taken_at_their_word_and_agree_with_transformers():
    assert said(TURNS, chat_templates.TAGGED) == "[Hello user, <b><|im_end|>][assistant\n<|im_end|>]"
    tokenizer = with_template(chat_templates.TAGGED)
    rendered = render(Conversation("c", TURNS), tokenizer)
    theirs = tokenizer.apply_chat_template(TURNS, return_dict=True, return_assistant_tokens_mask=True)
    assert rendered.input_ids == theirs["input_ids"]
    assert rendered.loss_mask == [bool(flag) for flag in theirs["assistant_masks"]]


def test_generation_tags_go_together_with_the_last_turn_and_with_a_cut_answer():
    assert said(TURNS, chat_templates.TAGGED, last_turn_only=True) == "[assistant\n<|im_end|>]"
    assert said(TURNS, chat_templates.TAGGED, finished=False) == "[Hello user, <b><|im_end|>][assistant]"
    assert said(TURNS, chat_templates.TAGGED, finished=False, last_turn_only=True) == "[assistant]"


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        (CHAT_TEMPLATE, CALLING, "does not render tool calls"),
        (chat_templates.HEADERS, [CALLING[0], assistant("", tool_calls=[CALL, CALL])], "refuses it: Only single tool"),
        (CHAT_TEMPLATE.replace("m['content']", "m['content'] | length"), TURNS, "changes what is said"),
        (CHAT_TEMPLATE.replace("m['content']", "m['content'] + m['x']"), TURNS, "refuses it: .*has no attribute 'x'"),
        (CHAT_TEMPLATE, [user("\U000f0000"), assistant("Hi")], "private-use characters"),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}{{ messages[1].content }}", TURNS, "mixes"),
    ],
)
def test_a_conversation_that_cannot_be_located_is_rejected_with_its_reason(template, messages, reason):
    tokenizer = with_template(template)
    with pytest.raises(Rejected, match=f"Conversation 'c': .*{reason}") as caught:
        render(Conversation("c", messages), tokenizer)
    good = Conversation("good", [user("Hi")])
    outcomes = list(render_all([Conversation("c", messages), good], with_template(template)))
    assert isinstance(outcomes[0], Rejected) and outcomes[0].reason == caught.value.reason


def test_a_rejected_conversation_does_not_shift_the_others(tokenizer):
    conversations = [Conversation(str(i), [user("Hi"), assistant(f"Answer {i}")]) for i in range(600)]
    conversations[300] = Conversation("300", CALLING)
    outcomes = list(render_all(conversations, tokenizer))
    assert [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Rejected)] == [300]
    for i in (0, 255, 256, 299, 301, 599):
        assert outcomes[i].id == str(i) and outcomes[i] == render(conversations[i], tokenizer)


def test_a_tokenizer_without_a_chat_template_is_refused(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        render(Conversation("c", TURNS), tokenizer)


def test_a_token_counts_only_if_it_lies_wholly_inside_a_span():
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(0, 4, (60,), generator=generator).cumsum(0).tolist()  # some tokens are empty
    offsets = list(zip(edges, edges[1:], strict=False))
    spans = [(3, 11), (11, 12), (30, 31), (40, 77)]
    expected = [any(s <= left and right <= e for s, e in spans) for left, right in offsets]
    assert inside_spans(offsets, spans) == expected


@pytest.mark.skipif(not converted_folder().is_dir(), reason="the embedded target has not been converted here")
def test_the_embedded_targets_own_tokenizer_and_template():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted_folder())
    messages = [user("Wie geht's? 👋🏽"), assistant("Gut! 👍🏽 12345\n\n  Danke."), *TURNS[:1], assistant("\n\nHi")]
    rendered = render(Conversation("c", messages), tokenizer)
    kept = [t for t, m in zip(rendered.input_ids, rendered.loss_mask, strict=True) if m]
    assert tokenizer.decode(kept).startswith("Gut! 👍🏽 12345\n\n  Danke.<|im_end|>")
    assert tokenizer.decode(kept).endswith("Hi<|im_end|>")
    assert tokenizer.decode(rendered.input_ids) == tokenizer.apply_chat_template(messages, tokenize=False)
