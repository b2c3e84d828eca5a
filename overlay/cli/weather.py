"""The demo's weather: it blocks UDP in the middle of a transfer and lets it through again, and keeps the records.

    phase       from               UDP        wanted
    open        the start          works      -
    blocked     1/3 of the bytes   dropped    TCP carries on
    restored    2/3 of the bytes   works      QUIC takes over again

A change of path takes its second, whatever the machine, and a small file at a high rate would be over before. So
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from overlay.cli.send import Pace
from overlay.cli.transfer import Gap
from overlay.endpoint import Endpoint
from overlay.errors import OverlayError
from overlay.events import Event, PathChanged
from overlay.session import Session

PATH_TIMEOUT: Final = 30.0
"""Seconds in which the wanted path has to be there."""
TRICKLE_SECONDS: Final = 20.0
"""How long the trickle lasts: a twelfth of all bytes, the third quarter of a phase."""


class Phase(StrEnum):
    """What UDP is like."""

    OPEN = "open"
    BLOCKED = "blocked"
    RESTORED = "restored"


WANTED: Final = {Phase.OPEN: "quic", Phase.BLOCKED: "tcp", Phase.RESTORED: "quic"}
"""The transport that is to carry the bytes of each phase."""


class DemoFailed(OverlayError):
    """The demo did not show what it is to show."""


@dataclass(slots=True)
class Record:
    """What happened in one phase."""

    phase: Phase
    began: float
    """Seconds since the transfer's start."""
    ended: float
    traffic: dict[str, int]
    """Bytes that our session handed to each transport, frames included."""
    carried: bool
    """Whether bytes of the file went over the wanted transport, after it was chosen."""
    stall_ms: float = 0.0
    """The longest gap between deliveries at the receiver."""


def block_udp(endpoint: Endpoint, blocked: bool) -> None:
    """Drop all datagrams of an endpoint, both ways, or let them through again."""
    for udp in endpoint._udp:  # noqa: SLF001 - a filter inside our own sockets needs no root, unlike a firewall
        udp.drop = (lambda: True) if blocked else None


class Weather:
    """Paces a transfer (see `Pacer`) and changes the weather on its way.

    Args:
        endpoint: whose UDP is blocked.
        session: that carries the transfer.
        size: bytes of the transfer.
        rate: bytes per second.
    """

    def __init__(self, endpoint: Endpoint, session: Session, size: int, rate: float) -> None:
        self.records: list[Record] = []
        self._endpoint = endpoint
        self._session = session
        self._size = size
        self._loop = asyncio.get_running_loop()
        self._pace = Pace(rate)
        self.chunk = self._full_chunk = max(1, min(self._pace.chunk, size // 48))
        self._small_chunk = max(1, size // 2400)
        self._sent = 0
        self._phase = Phase.OPEN
        self._began = self._start = self._loop.time()
        self._before: dict[str, int] = {}
        self._chosen_at: int | None = 0
        self._changed = asyncio.Event()

    def path_changed(self, event: Event) -> None:
        """An event of the endpoint."""
        if isinstance(event, PathChanged):
            self._is_wanted()
            self._changed.set()

    async def wait(self, count: int) -> None:
        """See `Pacer`.

        Raises:
            DemoFailed: the wanted path does not come.
        """
        third = self._size / 3
        number = list(Phase).index(self._phase)
        if self._phase is not Phase.RESTORED and self._sent >= (number + 1) * third:
            self._turn(list(Phase)[number + 1])
            number += 1
        self.chunk = self._full_chunk
        if not self._is_wanted():
            if self._sent + count > (number + 0.75) * third:
                await self._until_wanted(PATH_TIMEOUT)
            elif self._sent > (number + 0.5) * third:
                self.chunk = self._small_chunk
                with suppress(DemoFailed):
                    await self._until_wanted(TRICKLE_SECONDS * count * 12 / self._size)
        await self._pace.wait(count)
        self._sent += count

    def finish(self, gaps: tuple[Gap, ...]) -> None:
        """The transfer is over: complete the records with what the receiver has measured.

        A gap belongs to the phase that it overlaps most.
        """
        self._close_record()
        for gap in gaps:
            ends = gap.at_ms + gap.ms
            record = max(self.records, key=lambda one: min(ends, 1000 * one.ended) - max(gap.at_ms, 1000 * one.began))
            record.stall_ms = max(record.stall_ms, gap.ms)

    def _turn(self, phase: Phase) -> None:
        self._close_record()
        self._phase = phase
        self._chosen_at = None
        block_udp(self._endpoint, phase is Phase.BLOCKED)

    def _close_record(self) -> None:
        now = self._loop.time()
        traffic = {name: sent for name, (sent, _) in self._session.traffic.items()}
        wanted = WANTED[self._phase]
        carried = self._is_wanted() and self._chosen_at is not None and traffic.get(wanted, 0) > self._chosen_at
        self.records.append(
            Record(
                phase=self._phase,
                began=self._began - self._start,
                ended=now - self._start,
                traffic={name: sent - self._before.get(name, 0) for name, sent in traffic.items()},
                carried=carried,
            )
        )
        self._before, self._began = traffic, now

    def _is_wanted(self) -> bool:
        paths = self._session.paths
        wanted = WANTED[self._phase]
        if not paths or paths[0].transport != wanted or paths[0].suspect:
            return False
        if self._chosen_at is None:
            self._chosen_at = self._session.traffic[wanted][0]
        return True

    async def _until_wanted(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not self._is_wanted():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            wanted = WANTED[self._phase]
            raise DemoFailed(f"{wanted} did not take over within {seconds:.0f} s") from None
