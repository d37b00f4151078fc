"""Prompts out of a data set that the `datasets` library can read: a Hub id or a local folder of data files."""

from pathlib import Path

from dflash.data.conversations import Prompt
from dflash.errors import UserError
from dflash.hub import hub_is_reachable


def read_dataset_prompts(
    dataset: str, *, subset: str | None = None, split: str, column: str, limit: int | None = None
) -> list[Prompt]:
    """The first `limit` prompts of `column`: texts, or lists of messages of which the first user turn is taken.

    `subset` names the configuration, for data sets that have several. The data set is streamed, so a small limit
    downloads little. Ids are `<dataset>[-<subset>]-<split>-<row>`, stable across calls.

    Raises:
        UserError: the data set, split or column does not exist, or a cell holds neither text nor messages.
    """
    import datasets

    if not Path(dataset).is_dir() and not hub_is_reachable():
        raise UserError(f"Data set {dataset!r} is no folder here, and the Hugging Face hub cannot be reached.")
    name = f"{dataset}-{subset}" if subset else dataset
    try:
        rows = datasets.load_dataset(dataset, subset, split=split, streaming=True)
        prompts: list[Prompt] = []
        for number, row in enumerate(rows):
            if limit is not None and len(prompts) >= limit:
                break
            where = f"Data set {dataset!r}, row {number}"
            if column not in row:
                raise UserError(f"{where} has no column {column!r}: choose one of {', '.join(sorted(row))}.")
            text = _user_text(row[column])
            if text is None:
                raise UserError(f"{where}: column {column!r} holds neither text nor messages with a user turn.")
            prompts.append(Prompt(f"{name}-{split}-{number}", [text], category=dataset))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())  # several lines, the choices among them
        raise UserError(f"Data set {dataset!r}, split {split!r}, could not be read: {reason}") from error
    if not prompts:
        raise UserError(f"Data set {dataset!r}, split {split!r}, holds no rows: choose another split.")
    return prompts


def _user_text(cell: object) -> str | None:
    if isinstance(cell, str):
        return cell if cell.strip() else None
    for message in cell if isinstance(cell, list) else ():
        if isinstance(message, dict) and message.get("role", message.get("from")) in ("user", "human"):
            content = message.get("content", message.get("value"))
            return content if isinstance(content, str) and content.strip() else None
    return None
