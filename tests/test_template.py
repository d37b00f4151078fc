"""The loss mask covers exactly what the assistant says."""

import copy

from dflash.data.conversations import Conversation
from dflash.data.template import render

TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello user, <b>"},
    {"role": "user", "content": "assistant"},
    {"role": "assistant", "content": "assistant\n"},
]


def supervised_text(rendered, tokenizer):
    return tokenizer.decode([t for t, m in zip(rendered.input_ids, rendered.loss_mask, strict=True) if m])


def test_mask_marks_answers_and_their_end_of_turn_only(tiny_target):
    rendered = render(Conversation("c", TURNS), tiny_target.tokenizer)
    assert supervised_text(rendered, tiny_target.tokenizer) == "Hello user, <b><|im_end|>assistant\n<|im_end|>"


def test_an_answer_cut_at_a_limit_has_no_supervised_end_of_turn(tiny_target):
    rendered = render(Conversation("c", TURNS[:2], finished=False), tiny_target.tokenizer)
    assert supervised_text(rendered, tiny_target.tokenizer) == "Hello user, <b>"


def test_tokens_equal_the_template_and_truncation_keeps_the_front(tiny_target):
    tokenizer = tiny_target.tokenizer
    text = tokenizer.apply_chat_template(TURNS, tokenize=False)
    full = render(Conversation("c", TURNS), tokenizer)
    assert full.input_ids == tokenizer(text, add_special_tokens=False).input_ids
    cut = render(Conversation("c", TURNS), tokenizer, max_length=20)
    assert cut.input_ids == full.input_ids[:20] and cut.loss_mask == full.loss_mask[:20]


def test_what_a_template_writes_before_the_answer_is_not_supervised(tiny_target):
    tokenizer = copy.deepcopy(tiny_target.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n"
        "{% endif %}{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    turns = [TURNS[0], {"role": "assistant", "content": " Hello my friend "}]
    assert supervised_text(render(Conversation("c", turns), tokenizer), tokenizer) == "Hello my friend<|im_end|>"
    cut = render(Conversation("c", turns, finished=False), tokenizer)
    assert supervised_text(cut, tokenizer) == "Hello my friend"
