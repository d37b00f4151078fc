"""From what a user wrote to the ids that the target continues."""

from collections.abc import Sequence

from dflash.decoding.engine import check_length
from dflash.errors import UserError
from dflash.target import TargetModel


def render_prompt(
    target: TargetModel, prompt: str | Sequence[str] | Sequence[dict[str, str]], *, max_new_tokens: int = 1
) -> list[int]:
    """Ids of a prompt in the target's chat template, up to where the answer begins.

    Args:
        prompt: one user turn; or turns in order (user, assistant, user, ...); or messages with `role` and `content`.
        max_new_tokens: room the answer needs in the target's context.

    Raises:
        UserError: a turn is empty, the last one is not the user's, the target has no chat template, or it is too long.
    """
    messages = _messages([prompt] if isinstance(prompt, str) else list(prompt))
    if not target.tokenizer.chat_template:
        raise UserError(f"Target {target.name!r} has no chat template: choose an instruction-tuned target.")
    # Rendered and tokenised in two steps: the template writes its own special tokens.
    text = target.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = target.tokenizer(text, add_special_tokens=False).input_ids
    check_length(target, len(ids), max_new_tokens)
    return ids


def _messages(prompt: list) -> list[dict[str, str]]:
    if not prompt:
        raise UserError("The prompt is empty: write at least one word.")
    if isinstance(prompt[0], str):
        prompt = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(prompt)]
    for number, message in enumerate(prompt, 1):
        if not message["content"].strip():
            raise UserError(f"The prompt is empty: message {number} ({message['role']}) has no text.")
    if prompt[-1]["role"] == "assistant":
        raise UserError("The prompt ends with the assistant's turn: end it with the user's.")
    return prompt
