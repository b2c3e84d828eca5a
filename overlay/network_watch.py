"""When to look at the network again: at once when the kernel says that something has changed, else every 5 seconds.

On Linux a netlink socket (rtnetlink(7)) is told of every change of links, addresses, routes and routing rules. It only
*wakes* us: what the messages say is not read, because a look at what is there now is right also after some were lost,
and needs no second idea of how the kernel picks routes. Where there is no netlink, the look itself is repeated.

The clocks are compared every 5 seconds on all systems. While the machine sleeps, timers stand still as well, so that it
may take so long after a resume until it is noticed; mostly the network changes then too, and wakes us earlier.
"""

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from overlay.network_state import NetworkChange, NetworkState
from overlay.protocol.clock_watch import ClockWatch

logger = logging.getLogger("overlay")

INTERVAL: Final = 5.0
"""Seconds between two looks at the clocks, and at the network where nothing wakes us."""
DEBOUNCE: Final = 0.1
"""Seconds from the first message to the look: one change of network is dozens of messages, and comes as one. It is also
the least time between two looks, however busy the routes of a router are."""
_GROUPS: Final = sum(1 << (group - 1) for group in (1, 5, 7, 8, 9, 11, 19))
"""Of linux/rtnetlink.h: RTNLGRP_LINK, then _IFADDR, _ROUTE and _RULE of IPv4, then the same of IPv6."""
_RECEIVE_BUFFER: Final = 4096
"""Bytes. One message is as good as a thousand, and those that do not fit need not be read."""
_MOST_MESSAGES: Final = 256
"""Read at once; the buffer holds fewer, and those that come meanwhile wake us again."""


class NetworkWatch:
    """Tells of changes of this machine's network, and of its sleep, while it is open: `async with NetworkWatch(...):`.

    Entering and leaving wait for nothing. After leaving, nothing is told any more. What `changed` raises goes to the
    event loop's exception handler, and the watch goes on.

    Args:
        changed: called on the event loop with each change. A change that is over within `DEBOUNCE` is none.
        interfaces: only these count, as in `Config.interfaces`; empty: all.
        fwmark: as in `Config.fwmark`: the default source addresses are those of packets with this mark.
    """

    def __init__(
        self, changed: Callable[[NetworkChange], None], *, interfaces: tuple[str, ...] = (), fwmark: int | None = None
    ) -> None:
        self._changed = changed
        self._interfaces = interfaces
        self._fwmark = fwmark
        self._state = NetworkState()
        self._blind = False
        """The last look has failed."""
        self._clock = ClockWatch(0.0, 0.0)
        self._netlink: socket.socket | None = None
        self._tick_timer: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        # Before the first look: a change between the two would be missed.
        self._netlink = _subscribe()
        if self._netlink is not None:
            loop.add_reader(self._netlink, self._woken, self._netlink)
        self._clock = ClockWatch(*_clocks())
        self._state = self._look() or NetworkState()
        self._tick_timer = loop.call_later(INTERVAL, self._tick)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for timer in (self._tick_timer, self._look_timer):
            if timer is not None:
                timer.cancel()
        if self._netlink is not None:
            asyncio.get_running_loop().remove_reader(self._netlink)
            self._netlink.close()
            self._netlink = None

    def fingerprint(self) -> str:
        """A name of the network in which we are, see `NetworkState.fingerprint`; empty if that is not known."""
        return self._state.fingerprint

    def _woken(self, netlink: socket.socket) -> None:
        """Something has changed: look soon, and listen no more until then."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(netlink)
        self._look_timer = loop.call_later(DEBOUNCE, self._look_again, netlink)

    def _look_again(self, netlink: socket.socket) -> None:
        # First emptied, then looked: what comes after the look wakes us again.
        _drain(netlink)
        asyncio.get_running_loop().add_reader(netlink, self._woken, netlink)
        self._compare(self._clock.observe(*_clocks()))

    def _tick(self) -> None:
        self._tick_timer = asyncio.get_running_loop().call_later(INTERVAL, self._tick)
        slept = self._clock.observe(*_clocks())
        if slept or self._netlink is None or self._blind:
            self._compare(slept)

    def _compare(self, slept: float) -> None:
        """Look, and tell what is different."""
        before = self._state
        self._state = self._look() or before
        change = self._state.change_since(before, slept)
        if change is not None:
            logger.info(
                "network: gained %s, lost %s, packets leave from %s%s",
                ", ".join(sorted(change.gained)) or "nothing",
                ", ".join(sorted(change.lost)) or "nothing",
                " and ".join(filter(None, change.default.values())) or "nowhere",
                f", after {slept:.0f} s of sleep" if slept else "",
            )
            self._changed(change)

    def _look(self) -> NetworkState | None:
        try:
            state = NetworkState.look(self._interfaces, self._fwmark)
        except OSError as error:
            # Once: where it is forbidden, it stays so.
            logger.log(logging.DEBUG if self._blind else logging.WARNING, "cannot look at the network: %s", error)
            self._blind = True
            return None
        self._blind = False
        return state


def _clocks() -> tuple[float, float]:
    """For `ClockWatch`. Windows counts sleep on its monotonic clock too: there it is noticed by what it breaks."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic()
    return time.time(), time.monotonic()


def _subscribe() -> socket.socket | None:
    """A socket that becomes readable when anything changes; None where there is none, and polling has to do."""
    if sys.platform != "linux":
        return None
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    except OSError as error:
        # Sandboxes, such as gVisor's, and the containers of some kernels.
        logger.info("no netlink (%s): looking at the network every %g s", error, INTERVAL)
        return None
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        sock.bind((0, _GROUPS))
    except OSError as error:
        # Android lets nobody but the system subscribe.
        sock.close()
        logger.info("no netlink messages (%s): looking at the network every %g s", error, INTERVAL)
        return None
    return sock


def _drain(sock: socket.socket) -> None:
    """Read all messages, of each one byte: the kernel drops the rest of it."""
    for _ in range(_MOST_MESSAGES):
        try:
            sock.recv(1)
        except BlockingIOError:
            return
        except OSError:
            # ENOBUFS: some were lost. The kernel sends none before the others are read.
            continue
