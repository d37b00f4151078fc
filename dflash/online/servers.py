"""The servers that capture features: which one is asked next, and which one is left alone for a while."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from dflash.errors import UserError

_FIRST_REST, _LONGEST_REST = 0.5, 15.0  # seconds a server is left alone after its first failure, and at most
_JITTER = random.Random()  # its own, so that seeded runs stay as they are


@dataclass(eq=False)
class Server:
    """One server as this rank sees it."""

    address: str  # "http://host:port"
    in_flight: int = 0  # requests of this rank
    answered: int = 0  # documents captured
    tokens: int = 0  # of those documents
    failures: int = 0  # in all
    failures_in_a_row: int = 0
    rests_until: float = 0.0  # by the clock of the list
    busy_seconds: float = 0.0  # with at least one request of this rank, up to `changed_at`
    request_seconds: float = 0.0  # of all its requests together, up to `changed_at`
    changed_at: float = 0.0  # when `in_flight` changed the last time

    def load(self, now: float) -> tuple[float, float]:
        """`busy_seconds` and `request_seconds` up to now."""
        passed = now - self.changed_at if self.in_flight else 0.0
        return self.busy_seconds + passed, self.request_seconds + self.in_flight * passed

    def change(self, now: float, by: int) -> None:
        """So many requests more, or fewer, from now on."""
        self.busy_seconds, self.request_seconds = self.load(now)
        self.in_flight, self.changed_at = self.in_flight + by, now


class ServerList:
    """Balances by requests in flight and keeps away from servers that failed. Used by one thread."""

    def __init__(self, addresses: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        """
        Raises:
            UserError: there is no address, one is no http:// address, or one is given twice.
        """
        if not addresses:
            raise UserError("Online features need at least one server: name it, e.g. http://127.0.0.1:30000.")
        for address in addresses:
            if not address.startswith(("http://", "https://")):
                raise UserError(f"Server {address!r} is no http address: write it like http://127.0.0.1:30000.")
        self.servers = [Server(address.rstrip("/")) for address in addresses]
        if len({server.address for server in self.servers}) < len(self.servers):
            raise UserError(f"A server is listed twice in {list(addresses)}: name each once.")
        self._clock = clock

    def choose(self, avoid: Server | None = None, most: int | None = None) -> Server | None:
        """The awake server with the fewest requests, fewer than `most`; `avoid` only where it is the only one.

        None while all rest or have as many requests as they may.
        """
        now = self._clock()
        awake = [s for s in self.servers if s.rests_until <= now and (most is None or s.in_flight < most)]
        others = [server for server in awake if server is not avoid]
        # Among equals the one that did least so far: otherwise a slow trainer would always ask the first.
        return min(others or awake, key=lambda server: (server.in_flight, server.answered), default=None)

    def seconds_until_awake(self) -> float:
        """Time until some server may be asked again."""
        return max(0.0, min(server.rests_until for server in self.servers) - self._clock())

    @contextmanager
    def asking(self, server: Server) -> Iterator[None]:
        """Counts a request while it is under way."""
        server.change(self._clock(), 1)
        try:
            yield
        finally:
            server.change(self._clock(), -1)

    def succeeded(self, server: Server, tokens: int) -> None:
        """It captured a document."""
        server.answered += 1
        server.tokens += tokens
        server.failures_in_a_row = 0

    def failed(self, server: Server, *, rest: bool) -> None:
        """A request failed; `rest` where others would fail, too: it does not answer, or not as a server should."""
        server.failures += 1
        now = self._clock()
        if rest and server.rests_until <= now:  # requests that fail together count as one failure
            pause = min(_LONGEST_REST, _FIRST_REST * 2**server.failures_in_a_row)
            server.rests_until = now + pause * _JITTER.uniform(0.75, 1.25)  # so that ranks do not come back together
            server.failures_in_a_row += 1
