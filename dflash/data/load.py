"""From the config's data section to rendered conversations: one path for training, capture and `dflash data inspect`."""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from dflash.config import DataConfig
from dflash.data.conversations import Conversation, conversation_from, parse_record, read_lines
from dflash.data.hf_dataset import read_rows
from dflash.data.kinds import refuse_prompts
from dflash.data.messages import Rejected, without_thinking
from dflash.data.sources import count_conversations, is_jsonl
from dflash.data.template import Rendered, render_all
from dflash.errors import UserError

_COPY = "the same conversation with the same id came before"


@dataclass(frozen=True)
class Reject:
    """A conversation that was left out, and why. `line` counts a file's lines from 1, a data set's rows from 0."""

    source: str
    line: int
    reason: str
    id: str = ""  # empty where the line could not be read so far


@dataclass(frozen=True)
class Loaded:
    """What the sources gave, in their order. No two conversations share an id."""

    rendered: list[Rendered] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)

    @property
    def reasons(self) -> list[tuple[str, int]]:
        """Every reason for leaving out conversations with their number, the most frequent first."""
        return Counter(reject.reason for reject in self.rejects).most_common()


def load_conversations(config: DataConfig, tokenizer, *, progress: bool = False) -> Loaded:
    """Read, render and check the conversations of every source in `config.train`.

    A conversation that cannot be used is left out with its reason. One whose id is taken goes by the name of its
    source and the id, unless it is the same conversation once more. `progress` shows a bar on a terminal.

    Raises:
        UserError: a source cannot be read or holds no conversation at all, or the tokenizer has no chat template.
    """
    loaded, ids = Loaded(), _Ids()
    for source in config.train:
        part = _load(source, config, tokenizer, ids, progress)
        loaded.rendered.extend(part.rendered)
        loaded.rejects.extend(part.rejects)
    return loaded


def read_sources(config: DataConfig, rejects: list[Reject]) -> Iterator[Conversation]:
    """The conversations of every source as `load_conversations` names them, lazily and before they are rendered.

    What cannot be used is added to `rejects`.

    Raises:
        UserError: a source cannot be read or holds no conversation at all.
    """
    ids = _Ids()
    for source in config.train:
        for _, conversation in _named(source, config, ids, rejects, progress=False):
            yield conversation


def _load(source: str, config: DataConfig, tokenizer, ids: "_Ids", progress: bool) -> Loaded:
    rendered: list[Rendered] = []
    rejects: list[Reject] = []
    under_way: deque[tuple[int, str]] = deque()  # line and id of what went into the renderer and is not out yet

    def conversations() -> Iterator[Conversation]:
        for line, conversation in _named(source, config, ids, rejects, progress):
            under_way.append((line, conversation.id))
            yield conversation

    for outcome in render_all(conversations(), tokenizer, config.max_length, last_turn_only=config.last_turn_only):
        line, own_id = under_way.popleft()
        if reason := _reason_against(outcome, config):
            rejects.append(Reject(source, line, reason, own_id))
        else:
            rendered.append(outcome)
    return Loaded(rendered, sorted(rejects, key=lambda reject: reject.line))


def _named(
    source: str, config: DataConfig, ids: "_Ids", rejects: list[Reject], progress: bool
) -> Iterator[tuple[int, Conversation]]:
    """(line, conversation under an id of its own) of a source; copies and what is no conversation go to `rejects`."""
    for line, conversation in _parsed(source, config, rejects, progress):
        own_id = ids.claim(conversation, source, line)
        if own_id is None:
            rejects.append(Reject(source, line, _COPY, conversation.id))
        else:
            yield line, replace(conversation, id=own_id)


def _reason_against(outcome: Rendered | Rejected, config: DataConfig) -> str | None:
    if isinstance(outcome, Rejected):
        return outcome.reason
    if outcome.supervised >= config.min_supervised:
        return None
    among = f" among the first {config.max_length}" if outcome.truncated else ""
    return f"fewer than {config.min_supervised} supervised tokens{among}"


def _parsed(
    source: str, config: DataConfig, rejects: list[Reject], progress: bool
) -> Iterator[tuple[int, Conversation]]:
    """(line, conversation) of a source; what is no conversation goes to `rejects`.

    Raises:
        UserError: the source cannot be read, or nothing in it is a conversation.
    """
    records, total = _open(source, config)
    good, first_complaint = 0, None
    bar = tqdm(
        islice(records, config.limit), total=total, desc=Path(source).name, unit=" conv", leave=False,
        disable=None if progress else True,
    )
    for line, where, name, record in bar:
        try:
            record = parse_record(record, where) if isinstance(record, str) else record
            conversation = conversation_from(record, where, name)
        except Rejected as error:
            first_complaint = first_complaint or error
            rejects.append(Reject(source, line, error.reason))
            continue
        good += 1
        if config.thinking == "drop":
            conversation = replace(conversation, messages=without_thinking(conversation.messages))
        yield line, conversation
    if not good:
        why = first_complaint or f"{source} is empty."
        raise UserError(f"{source} holds no conversations, objects with a `messages` list: {why}") from first_complaint


def _open(source: str, config: DataConfig) -> tuple[Iterator[tuple[int, str, str, str | dict]], int | None]:
    """(line, its name in complaints, its fallback id, JSON text or record) for every line, and their number."""
    if is_jsonl(source):
        refuse_prompts(Path(source).expanduser())
        lines = read_lines(Path(source).expanduser())
        numbered = ((number, f"{source}, line {number}", str(number), line) for number, line in lines)
        return numbered, count_conversations([source], config.limit)
    rows, total = read_rows(source, subset=config.subset, split=config.split, streaming=config.streaming)
    return _rows(rows, source, config), min(filter(None, (total, config.limit)), default=None)


def _rows(rows: Iterator[dict], source: str, config: DataConfig) -> Iterator[tuple[int, str, str, dict]]:
    name = "-".join(part for part in (Path(source).stem, config.subset, config.split) if part)
    for number, row in enumerate(rows):
        if number == 0 and not {"messages", "conversations"} & row.keys():
            raise UserError(
                f"Data set {source!r} has no column `messages` or `conversations` but {', '.join(sorted(row))}: "
                "choose a data set of conversations."
            )
        yield number, f"{source}, row {number}", f"{name}-{number}", row


class _Ids:
    """Gives every conversation an id of its own: the held-out split and the feature cache go by ids."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, int]] = set()  # ids as they came, each with a hash of its messages
        self._taken: set[str] = set()

    def claim(self, conversation: Conversation, source: str, line: int) -> str | None:
        """The id to use; None for a conversation that came before under the same id."""
        key = conversation.id, hash(repr(conversation.messages))
        if key in self._seen:
            return None
        self._seen.add(key)
        stem = Path(source).stem
        candidates = (conversation.id, f"{stem}-{conversation.id}", f"{stem}-{conversation.id}-{line}")
        own_id = next((name for name in candidates if name not in self._taken), f"{source}-{line}-{conversation.id}")
        self._taken.add(own_id)
        return own_id
