"""Conversations to conversations with the target's own answers, over several SGLang servers.

As many conversations are under way as the servers may work on; each goes through its answers one after the other, every
one of which may come from another server. Whatever fails is asked for again, elsewhere and later. Outcomes come in the
order in which they are finished.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from dflash.data.conversations import Conversation
from dflash.data.messages import Rejected
from dflash.errors import UserError
from dflash.online.client import Answer, EngineClient, Refused, ServerFault
from dflash.online.retries import Retries
from dflash.online.servers import Server, ServerList
from dflash.online.turns import questions

_LOOK_EVERY = 1.0  # seconds after which somebody looks for a server that rested while others were full
_OPENED = "<think>"  # some templates begin the answer; what the target goes on with lacks the tag


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are generated. Lengths in tokens."""

    temperature: float = 0.0  # 0 is greedy
    max_new_tokens: int | None = None  # of an answer; None: what `max_length` leaves
    max_length: int | None = None  # of prompt and answer together; None: what `max_new_tokens` adds
    last_turn_only: bool = False
    seed: int = 0  # for a temperature above 0, and servers with --enable-deterministic-inference


@dataclass(frozen=True)
class AskSettings:
    """How servers are asked; none of it changes an answer."""

    in_flight: int = 32  # answers that each server works on at a time
    answer_seconds: float = 600.0  # longest wait for one answer, the server's queue included
    patience: float = 600.0  # seconds for which an answer may fail again and again


@dataclass(frozen=True)
class Answered:
    """A conversation with the target's answers, or (`reason`) as it came and why it has none."""

    conversation: Conversation
    tokens: int = 0  # generated
    reason: str | None = None


class Answerer:
    """Has conversations answered; `servers` tell what each of them did."""

    def __init__(
        self, addresses: Sequence[str], tokenizer, answers: AnswerSettings, asking: AskSettings, room: int | None = None
    ) -> None:
        """`room`: the most tokens that the servers take for prompt and answer together, None where they do not say.

        Raises:
            UserError: a server's address is no address, or nothing limits an answer.
        """
        if answers.max_new_tokens is None and answers.max_length is None and room is None:
            raise UserError("Nothing limits an answer, since the servers do not say what they take: limit its tokens.")
        self.servers = ServerList(addresses)
        self.retries = 0
        self.last_trouble: str | None = None
        self._tokenizer, self._answers, self._asking = tokenizer, answers, asking
        limits = [limit for limit in (answers.max_length, room) if limit is not None]
        self._room = min(limits) if limits else None
        self._freed: asyncio.Event | None = None  # of the loop that runs `answer_all`

    async def answer_all(self, conversations: Iterable[Conversation]) -> AsyncIterator[Answered]:
        """Outcomes as they come, each conversation's exactly once.

        Raises:
            UserError: a server is none, or no server answers for too long; what was not yielded is lost.
        """
        workers = self._asking.in_flight * len(self.servers.servers)
        client = EngineClient(workers, self._asking.answer_seconds)
        self._freed, remaining = asyncio.Event(), iter(conversations)
        outcomes: asyncio.Queue[Answered | BaseException | None] = asyncio.Queue()
        tasks = [asyncio.create_task(self._work(client, remaining, outcomes)) for _ in range(workers)]
        try:
            ended = 0
            while ended < workers:
                outcome = await outcomes.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                if outcome is None:
                    ended += 1
                else:
                    yield outcome
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await client.close()

    async def _work(self, client: EngineClient, remaining: Iterator[Conversation], outcomes: asyncio.Queue) -> None:
        try:
            for conversation in remaining:  # shared by all workers: each takes the next one
                try:
                    outcomes.put_nowait(await self._answer(client, conversation))
                except Rejected as error:
                    outcomes.put_nowait(Answered(conversation, reason=error.reason))
            outcomes.put_nowait(None)
        except Exception as error:  # ends the whole work, in the consumer
            outcomes.put_nowait(error)

    async def _answer(self, client: EngineClient, conversation: Conversation) -> Answered:
        """
        Raises:
            Rejected: it cannot be answered.
        """
        messages: list[dict[str, Any]] = []
        tokens, finished = 0, True
        for turn, asked in enumerate(questions(conversation, last_only=self._answers.last_turn_only)):
            prompt, opening = self._prompt([*messages, *asked], conversation)
            limit = self._limit(len(prompt))
            if limit < 1:
                if messages:
                    break  # it ends with the answers that fitted
                raise Rejected(f"a prompt that leaves no room for an answer in {self._room} tokens", conversation.id)
            answer = await self._ask(client, prompt, limit, f"{conversation.id}\n{turn}")
            if not answer.text.strip():
                raise Rejected("an empty answer", conversation.id)
            messages += [*asked, {"role": "assistant", "content": opening + answer.text}]
            tokens, finished = tokens + answer.tokens, answer.finished
            if not finished:
                break  # nobody goes on behind half an answer
        return Answered(replace(conversation, messages=messages, finished=finished), tokens)

    def _prompt(self, messages: list[dict[str, Any]], conversation: Conversation) -> tuple[list[int], str]:
        """Tokens of the prompt for the next answer, and what of the answer they hold already."""
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tools=conversation.tools, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates raise what they like
            reason = " ".join(str(error).split()) or type(error).__name__
            raise Rejected(f"the chat template refuses it ({reason})", conversation.id) from error
        opened = text.rstrip().endswith(_OPENED)
        opening = text[text.rindex(_OPENED) :] if opened else ""
        return self._tokenizer(text, add_special_tokens=False).input_ids, opening

    def _limit(self, prompt: int) -> int:
        """Tokens that an answer may have behind a prompt of so many; below 1 if none."""
        limits = [self._answers.max_new_tokens] if self._answers.max_new_tokens is not None else []
        limits += [self._room - prompt] if self._room is not None else []
        return min(limits)

    async def _ask(self, client: EngineClient, prompt: list[int], limit: int, name: str) -> Answer:
        """Try until it works, or until patience is at its end."""
        sampling = {"max_new_tokens": limit, "temperature": self._answers.temperature}
        if self._answers.temperature > 0:
            sampling["sampling_seed"] = _seed(self._answers.seed, name)
        what = f"The answer to conversation {name.partition(chr(10))[0]!r}"
        retries, avoid = Retries(self._asking.patience), None
        while True:
            server = await self._free_server(avoid)
            try:
                with self.servers.asking(server):
                    answer = await client.answer(server.address, prompt, sampling)
                self.servers.succeeded(server, answer.tokens)
                return answer
            except Refused as error:
                raise Rejected(f"refused by the server: {_reason(error)}", name) from error
            except ServerFault as error:
                self.last_trouble = str(error)
                self.servers.failed(server, rest=True)
                if retries.failed():
                    raise UserError(
                        f"{what} could not be had in {self._asking.patience:g} s; at last {error}: see the servers' "
                        "logs, then go on with the same command."
                    ) from error
            finally:
                self._freed.set()
            self.retries += 1
            avoid = server
            await retries.pause()

    async def _free_server(self, avoid: Server | None) -> Server:
        """The next one to ask; waits while all of them rest or have all that they may work on."""
        while (server := self.servers.choose(avoid, most=self._asking.in_flight)) is None:
            self._freed.clear()
            rest = self.servers.seconds_until_awake()
            with suppress(TimeoutError):  # a server that has rested is as good as one that has got room
                await asyncio.wait_for(self._freed.wait(), rest + 0.01 if rest else _LOOK_EVERY)
        return server


def _seed(seed: int, name: str) -> int:
    """The same for the same conversation and turn, whenever it is asked for."""
    digest = hashlib.blake2b(f"{seed}\n{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 33  # 31 bits


def _reason(error: Refused) -> str:
    """Without the address, and the numbers that differ from prompt to prompt: equal reasons count together."""
    return re.sub(r"\d+", "N", str(error).partition(": ")[2] or str(error))
