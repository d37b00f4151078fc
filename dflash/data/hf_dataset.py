"""Rows of anything the `datasets` library can read: a Hub id, a folder of data files, a parquet or arrow file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dflash.data.conversations import Prompt
from dflash.data.messages import ROLES
from dflash.data.sources import is_hub_id
from dflash.errors import UserError
from dflash.hub import hub_is_reachable

_FILE_KINDS = {".parquet": "parquet", ".arrow": "arrow"}
_SAVED_TO_DISK = ("state.json", "dataset_dict.json")  # one of them lies in a folder written by `save_to_disk`


def read_rows(
    dataset: str, *, subset: str | None = None, split: str = "train", streaming: bool = False
) -> tuple[Iterator[dict[str, Any]], int | None]:
    """The rows of a data set in order, and how many there are (None: not known before the end).

    `subset` names the configuration, for data sets that have several. A streamed data set is fetched as its rows are
    asked for; another one is downloaded whole and kept in the cache of `datasets`.

    Raises:
        UserError: one sentence that tells apart a network failure, missing access, a data set, subset or split that
            does not exist, and damaged data; also while the rows are read.
    """
    with _one_sentence(dataset, subset, split):
        opened = _open(dataset, subset, split, streaming)
    return _rows(opened, dataset, subset, split), None if streaming else len(opened)


def read_dataset_prompts(
    dataset: str, *, subset: str | None = None, split: str, column: str, limit: int | None = None
) -> list[Prompt]:
    """The first `limit` prompts of `column`: texts, or lists of messages of which the first user turn is taken.

    The data set is streamed, so a small limit downloads little. Ids are `<dataset>[-<subset>]-<split>-<row>`, stable
    across calls.

    Raises:
        UserError: as `read_rows`, or a cell holds neither text nor messages.
    """
    name = f"{dataset}-{subset}" if subset else dataset
    rows, _ = read_rows(dataset, subset=subset, split=split, streaming=True)
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
    if not prompts:
        raise UserError(f"Data set {dataset!r}, split {split!r}, holds no rows: choose another split.")
    return prompts


def _open(dataset: str, subset: str | None, split: str, streaming: bool):
    import datasets

    path = Path(dataset).expanduser()
    if path.is_file():
        kind = _FILE_KINDS[path.suffix]
        return datasets.load_dataset(kind, data_files={split: str(path)}, split=split, streaming=streaming)
    if any((path / name).is_file() for name in _SAVED_TO_DISK):
        return _open_saved(path, split, streaming)
    if path.is_dir():
        return datasets.load_dataset(str(path), subset, split=split, streaming=streaming)
    if not is_hub_id(dataset):
        raise UserError(f"Data set {dataset!r} does not exist: give a file, a folder of data files or a hub id.")
    if not hub_is_reachable():
        raise UserError(f"Data set {dataset!r} is no file or folder here, and the Hugging Face hub cannot be reached.")
    return datasets.load_dataset(dataset, subset, split=split, streaming=streaming)


def _open_saved(folder: Path, split: str, streaming: bool):
    import datasets

    saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise UserError(f"Data set '{folder}' has no split {split!r}: choose one of {', '.join(saved)}.")
        saved = saved[split]
    return saved.to_iterable_dataset() if streaming else saved


def _rows(opened, dataset: str, subset: str | None, split: str) -> Iterator[dict[str, Any]]:
    rows = iter(opened)
    while True:
        with _one_sentence(dataset, subset, split):
            row = next(rows, None)
        if row is None:
            return
        yield _without_nulls(row)


@contextmanager
def _one_sentence(dataset: str, subset: str | None, split: str) -> Iterator[None]:
    """Turn what `datasets` and the hub's client raise into one sentence about what is wrong."""
    import httpx
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    subject = f"Data set {dataset!r}"
    try:
        yield
    except (ConnectionError, TimeoutError, httpx.TransportError) as error:
        raise UserError(f"{subject} could not be fetched, the network failed: {_line(error)}") from error
    except (OSError, ValueError, DatasetsError) as error:
        response = error.response if isinstance(error, HfHubHTTPError) else None
        status = response.status_code if response is not None else None
        if isinstance(error, GatedRepoError) or "gated" in str(error) or status == 403:
            what = "is gated: ask for access on its page on the hub, then log in (`hf auth login` or HF_TOKEN)."
        elif isinstance(error, DatasetNotFoundError | RepositoryNotFoundError) or status in (401, 404):
            what = "does not exist on the hub, or is private: check its id, or log in (`hf auth login` or HF_TOKEN)."
        elif status is not None:
            what = f"could not be fetched, the hub answered with HTTP status {status}: try again later."
        else:
            part = f"subset {subset!r}, split {split!r}" if subset else f"split {split!r}"
            what = f"({part}) could not be read: {_line(error)}"
        raise UserError(f"{subject} {what}") from error


def _line(error: Exception) -> str:
    """An exception's message, often of several lines with the choices among them, as the end of a sentence."""
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".") + "."


def _without_nulls(value: Any) -> Any:
    """A row without the nulls that fill up the columns of a table; so a tool call has its own arguments only."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _user_text(cell: object) -> str | None:
    if isinstance(cell, str):
        return cell if cell.strip() else None
    for message in cell if isinstance(cell, list) else ():
        if isinstance(message, dict) and ROLES.get(message.get("role", message.get("from"))) == "user":
            content = message.get("content", message.get("value"))
            return content if isinstance(content, str) and content.strip() else None
    return None
