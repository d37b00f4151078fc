"""Data sets with the target's own answers, made by SGLang servers: `dflash regenerate`, and before an online run.

DFlash trains on what the target itself says (arXiv 2602.06036). The answers are generated before anything is trained
on, into a file of conversations that the rest reads like any other: rows, held-out conversations, packing and the order
of a run then rest on a finished file, and an interrupted run goes on with the very same tokens, whatever the
temperature. The servers may be those that capture afterwards, so nothing is loaded twice; the price is that training
GPUs wait meanwhile, so that for a large data set all GPUs should serve first (`dflash regenerate`, then train).

At temperature 0 an answer depends on the conversation alone, up to ties that batches of different sizes round
differently. Above 0 every answer has a seed of its own, which SGLang obeys with --enable-deterministic-inference only;
what is in the journal is never asked for again, so a file is consistent in any case.
"""

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dflash.config import DataConfig
from dflash.data.conversations import Conversation, read_prompts
from dflash.data.kinds import kind_of
from dflash.data.load import Reject, read_sources
from dflash.data.sources import count_conversations, is_jsonl
from dflash.errors import UserError
from dflash.files import naming
from dflash.online.answer_file import AnswerJournal, read_provenance
from dflash.online.answering import Answerer, AnswerSettings, AskSettings
from dflash.online.capture_proof import server_info
from dflash.online.event_loops import run_to_end
from dflash.online.model_proof import model_name, require_same_model
from dflash.online.servers import ServerList
from dflash.online.tokenizer_proof import require_same_tokenizer

_SYNC_EVERY = 2.0  # seconds of answers that the machine's own end may cost
_SAY_EVERY = 60.0  # seconds between lines where there is no terminal for a bar


@dataclass(frozen=True)
class Served:
    """What servers serve, as they say themselves."""

    model: str  # path or id
    revision: str | None
    version: str | None  # of SGLang
    room: int | None  # most tokens of prompt and answer together, over all servers
    infos: dict[str, dict[str, Any]]  # what each server said, by its address


def describe_servers(addresses: Sequence[str]) -> Served:
    """Ask every server what it serves.

    Raises:
        UserError: one is no address, cannot be reached, is no SGLang server, or serves another model than the first.
    """
    infos = {server.address: server_info(server.address) for server in ServerList(addresses).servers}
    models = {address: str(info.get("model_path", "")).rstrip("/") for address, info in infos.items()}
    first, *others = infos
    for address in others:
        # Machines keep the same model in different places.
        if model_name(models[address]) != model_name(models[first]):
            raise UserError(
                f"Server {address} serves {models[address]!r}, but {first} serves {models[first]!r}: name servers of "
                "one model only."
            )
    rooms = [room for info in infos.values() if (room := info.get("max_req_input_len")) is not None]
    info = infos[first]
    return Served(models[first], info.get("revision"), info.get("version"), min(rooms, default=None), infos)


@dataclass(frozen=True)
class Order:
    """What is to be made: answers of which model, to which conversations. Of `data` only what names those counts."""

    data: DataConfig
    model: str | None  # path or id; None, for `completed` alone: whichever the servers serve
    revision: str | None
    answers: AnswerSettings
    keeps_to_data: bool = False  # a data file may change: a run goes on with the answers that it began with

    def settings(self) -> dict[str, Any]:
        """All that the file depends on, as it reads back from JSON."""
        which = {name: getattr(self.data, name) for name in ("train", "subset", "split", "limit")}
        model = {"model": self.model and model_name(self.model), "revision": self.revision}
        files = {} if self.keeps_to_data else {"data_files_sha256": [_digest(source) for source in self.data.train]}
        return json.loads(json.dumps({**which, **files, **model, **asdict(self.answers)}))


def regenerate(
    order: Order,
    out: Path,
    addresses: Sequence[str],
    tokenizer,
    asking: AskSettings,
    *,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> dict[str, Any]:
    """Fill `out`, or go on filling it; returns its provenance. Once complete it is left as it is, and nobody is asked.

    `say` takes lines about the progress where there is no terminal for a bar.

    Raises:
        UserError: a source cannot be read, a server is none or reads text otherwise, no server answers for long, `out`
            holds something else.
    """
    if (found := completed(order, out)) is not None:
        return found
    settings, served = order.settings(), describe_servers(addresses)
    for address, info in served.infos.items():
        if doubt := require_same_model(address, info, order.model, order.revision):
            say(doubt)
        require_same_tokenizer(address, tokenizer)
    answerer = Answerer(addresses, tokenizer, order.answers, asking, served.room)
    started, ids, unreadable = time.monotonic(), [], []
    with AnswerJournal(out, settings) as journal:
        before = journal.tokens
        with _Progress(count_conversations(order.data.train, order.data.limit), journal, progress, say) as shown:
            run_to_end(_fill(journal, answerer, _todo(order, journal, ids, unreadable), shown))
        if len(journal.rejects) == len(journal):
            raise UserError(_nothing(order, out, journal.rejects, unreadable))
        sitting = {"seconds": round(time.monotonic() - started, 1), "tokens": journal.tokens - before}
        return journal.finish(
            ids,
            {
                "unreadable": Counter(reject.reason for reject in unreadable).most_common(),
                "servers": list(addresses),
                "sglang": served.version,
                "retries": answerer.retries,
                "last_sitting": sitting,
                "finished_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            },
        )


def completed(order: Order, out: Path) -> dict[str, Any] | None:
    """The provenance of a finished file, None while there is work to do. No server is asked.

    Raises:
        UserError: the file was made with other settings, or is none of ours.
    """
    if not out.exists():
        return None
    found = read_provenance(out, order.settings(), whichever_model=order.model is None)
    if found is not None:
        out.with_name(f"{out.name}.journal").unlink(missing_ok=True)  # a kill may have come between the two
    return found


def _digest(source: str) -> str | None:
    """Of a single file; None of a folder or a data set of the hub, or of what is not there."""
    path = Path(source).expanduser()
    if not path.is_file():
        return None
    with naming(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _nothing(order: Order, out: Path, rejects: Mapping[str, str], unreadable: Sequence[Reject]) -> str:
    """Why there is no file."""
    counts = Counter([*rejects.values(), *(reject.reason for reject in unreadable)])
    reasons = "; ".join(f"{count} left out: {reason}" for reason, count in counts.most_common(3))
    what = ", ".join(order.data.train)
    return f"No conversation of {what} got an answer, so {out} is not written ({reasons}): give other data or limits."


def _todo(
    order: Order, journal: AnswerJournal, ids: list[str], unreadable: list[Reject]
) -> Iterator[Conversation]:
    """The conversations without an outcome; notes the ids of all, in order, and what cannot be read."""
    for conversation in _conversations(order.data, unreadable):
        ids.append(conversation.id)
        if conversation.id not in journal:
            yield conversation


def _conversations(data: DataConfig, unreadable: list[Reject]) -> Iterator[Conversation]:
    """Those of prompt files, their turns unanswered, then those of all other sources.

    Raises:
        UserError: a source cannot be read, or two of them share an id.
    """
    is_prompts = {source: is_jsonl(source) and kind_of(Path(source).expanduser()) == "prompts" for source in data.train}
    taken: set[str] = set()

    def claim(id_: str) -> str:
        if id_ in taken:
            raise UserError(f"Two conversations have the id {id_!r}: give every prompt an `id` of its own.")
        taken.add(id_)
        return id_

    for source in (source for source in data.train if is_prompts[source]):
        for prompt in read_prompts(Path(source).expanduser(), data.limit, id_prefix=f"{Path(source).stem}-"):
            messages = [{"role": "user", "content": turn} for turn in prompt.turns]
            yield Conversation(claim(prompt.id), messages, prompt.category)
    others = [source for source in data.train if not is_prompts[source]]
    if others:
        for conversation in read_sources(data.model_copy(update={"train": others}), unreadable):
            claim(conversation.id)
            yield conversation


async def _fill(
    journal: AnswerJournal, answerer: Answerer, todo: Iterator[Conversation], shown: "_Progress"
) -> None:
    synced = time.monotonic()
    async for outcome in answerer.answer_all(todo):
        journal.add(outcome)
        shown.update(answerer)
        if time.monotonic() - synced >= _SYNC_EVERY:
            journal.sync()
            synced = time.monotonic()


class _Progress:
    """A bar on a terminal, elsewhere a line a minute."""

    def __init__(
        self, total: int | None, journal: AnswerJournal, wanted: bool, say: Callable[[str], None]
    ) -> None:
        self._journal, self._say, self._total = journal, say if wanted else lambda text: None, total
        self._started, self._said, self._before = time.monotonic(), time.monotonic(), (len(journal), journal.tokens)
        self._bar = tqdm(
            total=total, initial=len(journal), unit=" conv", desc="regenerate",
            disable=not (wanted and sys.stderr.isatty()),
        )  # fmt: skip

    def update(self, answerer: Answerer) -> None:
        """One outcome more."""
        now, (done, tokens) = time.monotonic(), self._before
        seconds = max(now - self._started, 1e-9)
        rate = (self._journal.tokens - tokens) / seconds
        self._bar.set_postfix({"tokens/s": f"{rate:.0f}", "left out": len(self._journal.rejects)}, refresh=False)
        self._bar.update()
        if not self._bar.disable or now - self._said < _SAY_EVERY:
            return
        self._said = now
        left = ""
        if self._total is not None and len(self._journal) > done:
            each = seconds / (len(self._journal) - done)
            left = f", {timedelta(seconds=round(each * max(0, self._total - len(self._journal))))} left"
        trouble = f"; last trouble: {answerer.last_trouble}" if answerer.last_trouble else ""
        of = "" if self._total is None else f" of {self._total:,}"
        self._say(f"Regenerated {len(self._journal):,}{of} conversations, {rate:,.0f} tokens/s{left}{trouble}.")

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_exception) -> None:
        self._bar.close()
