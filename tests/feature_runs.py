"""A tiny run for tests of features: its config, its conversations and their rows."""

from dflash.config import TrainConfig, parse_config
from dflash.data.conversations import Conversation
from dflash.data.rows import Row, build_rows
from dflash.data.template import Rendered, render

LAYER_IDS = [1, 2, 4]  # what three features of six layers take by default are 1, 2 and 3
MAX_LENGTH = 96


def run_config(target: str, /, **sections) -> TrainConfig:
    tree = {
        "target": {"name": target, "dtype": "float32", **sections.pop("target", {})},
        "draft": {"num_features": 3, "target_layer_ids": LAYER_IDS},
        "data": {"train": ["talk.jsonl"], "max_length": MAX_LENGTH, **sections.pop("data", {})},
        "run": {"autocast": False},
        **sections,
    }
    return parse_config(tree, "test")


def conversations(tokenizer, count: int = 7) -> list[Rendered]:
    """Of different lengths, the last one cut at the length limit."""
    items = []
    for i in range(count):
        answer = "one two " * (i + 1 if i < count - 1 else 40)
        messages = [{"role": "user", "content": f"count {i}"}, {"role": "assistant", "content": answer}]
        items.append(render(Conversation(f"c{i}", messages), tokenizer, MAX_LENGTH))
    return items


def rows_of(items: list[Rendered], packing: bool = False) -> list[Row]:
    return build_rows(items, max_length=MAX_LENGTH, packing=packing)
