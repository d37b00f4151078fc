"""Conversations for the checks that need some: built-in prompts, answered by the target itself."""

from collections.abc import Sequence

from dflash.data.conversations import Conversation
from dflash.data.generation import generate_batch
from dflash.decoding.prompt import render_prompt
from dflash.target import TargetModel

OVERFIT_PROMPT = "Explain in a short paragraph why the sky is blue."

PROMPTS = (
    "Explain to a child how rain is made.",
    "Write a short story about a lighthouse keeper and a whale.",
    "What are three good habits for a healthy life?",
    "How do I boil an egg? Give me the steps.",
    "Write a Python function that adds all numbers in a list.",
    "A train travels 60 miles in 1.5 hours. What is its average speed?",
    "Give me a packing list for a weekend in the mountains.",
    "What is the difference between a virus and a bacterium?",
    "Write a polite email that asks for a day off.",
    "Name five animals that live in the desert and say how they survive.",
    "If I have 12 apples and give away 5, how many are left? Explain your answer.",
    "Describe a busy market in the early morning.",
    "Why do leaves change their colour in autumn?",
    "Suggest a name and a slogan for a small bakery.",
    "How does a bicycle stay upright while it moves?",
    "Summarise the story of Romeo and Juliet in a few sentences.",
)


def answered_prompts(
    target: TargetModel, prompts: Sequence[str] = PROMPTS, *, max_new_tokens: int = 96
) -> list[Conversation]:
    """Conversations with the target's own greedy answers; prompts that it answers with nothing are left out."""
    ids = [render_prompt(target, prompt, max_new_tokens=max_new_tokens) for prompt in prompts]
    conversations = []
    answers = generate_batch(target, ids, max_new_tokens=max_new_tokens)
    for number, (prompt, (tokens, finished)) in enumerate(zip(prompts, answers, strict=True), 1):
        text = target.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        if text:
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
            conversations.append(Conversation(f"prompt {number}", messages, finished=finished))
    return conversations
