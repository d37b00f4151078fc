"""Prompts reach the target through its chat template, and unusable ones are refused."""

import pytest

from dflash.decoding.prompt import render_prompt
from dflash.errors import UserError


def text(target, prompt):
    return target.tokenizer.decode(render_prompt(target, prompt))


def test_a_prompt_ends_where_the_answer_begins(tiny_target):
    assert text(tiny_target, "Hi") == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_turns_alternate_between_user_and_assistant(tiny_target):
    messages = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    assert text(tiny_target, ["a", "b", "c"]) == text(tiny_target, messages)
    assert "<|im_start|>assistant\nb<|im_end|>" in text(tiny_target, messages)


@pytest.mark.parametrize("prompt", ["", "  \n", [], ["a", " ", "b"], [{"role": "user", "content": ""}]])
def test_empty_prompts_are_refused(tiny_target, prompt):
    with pytest.raises(UserError, match="empty"):
        render_prompt(tiny_target, prompt)


def test_a_prompt_that_leaves_no_room_is_refused_with_the_numbers(tiny_target):
    with pytest.raises(UserError, match="600 new ones exceed the 512 tokens"):
        render_prompt(tiny_target, "Hi", max_new_tokens=600)


def test_a_prompt_must_end_with_the_user(tiny_target):
    with pytest.raises(UserError, match="assistant's turn"):
        render_prompt(tiny_target, ["a", "b"])


def test_a_target_without_a_chat_template_is_refused(tiny_target, monkeypatch):
    monkeypatch.setattr(tiny_target.tokenizer, "chat_template", None)
    with pytest.raises(UserError, match="no chat template"):
        render_prompt(tiny_target, "Hi")
