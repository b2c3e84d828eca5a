"""`Keeper`: the life of all peers of an endpoint. Carries out what the table of peers asks for, at its times.

Every dial begins here: because a user waits in `connect`, because a peer is kept, or because a session has lost its
last connection. What happens to a peer is told here, and `PeerConnected` and `PeerDisconnected` come from here, each
once and in order. The decisions are in `overlay.protocol.peer_table`.
"""

import asyncio
import logging
import random
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING

from overlay.errors import SessionClosed, SessionError
from overlay.events import PeerConnected, PeerDisconnected
from overlay.identity import PeerId
from overlay.network_watch import NetworkWatch
from overlay.protocol.peer_states import Action, PeerState
from overlay.protocol.peer_table import PeerTable

if TYPE_CHECKING:
    from overlay.endpoint import Endpoint
    from overlay.network_state import NetworkChange

logger = logging.getLogger("overlay")

clock = time.monotonic


class Keeper:
    """The table of peers, its timer, and the watch on our own network.

    Args:
        endpoint: has the peers, and the book.
    """

    def __init__(self, endpoint: "Endpoint") -> None:
        self._endpoint = endpoint
        config = endpoint.config
        self._table = PeerTable(
            random.random,
            cap=config.backoff_cap,
            first=min(1.0, config.backoff_cap),
            rate=config.dials_per_second,
            capacity=config.limits.known_peers,
            dialable=lambda key: endpoint.book.is_dialable(PeerId(key)),
        )
        self._reasons: dict[PeerId, SessionError] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._watch = NetworkWatch(self._network_changed, interfaces=config.interfaces, fwmark=config.fwmark)
        self._closed = False

    async def open(self) -> None:
        """Begin to watch the network, and to dial those that are kept."""
        await self._watch.__aenter__()
        self._endpoint.book.network_changed(self._watch.fingerprint())
        for peer_id in self._endpoint.book.kept:
            self.keep(peer_id)

    async def aclose(self) -> None:
        """Nobody is dialled any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # It may never have been entered: then nothing is there to be undone.
        await self._watch.__aexit__(None, None, None)

    # ---------------------------------------------------------------- what users want

    def keep(self, peer_id: PeerId) -> None:
        """Stay connected with it."""
        self._table.keep(peer_id.raw, clock())
        self._act()

    def release(self, peer_id: PeerId) -> None:
        """It is no longer kept."""
        self._table.release(peer_id.raw, clock())
        self._act()

    def want(self, peer_id: PeerId) -> None:
        """A user waits for it."""
        self._table.want(peer_id.raw, clock())
        self._act()

    def unwant(self, peer_id: PeerId) -> None:
        """No user waits for it any more."""
        self._table.unwant(peer_id.raw, clock())
        self._act()

    def kick(self, peer_id: PeerId | None = None) -> None:
        """Try now what waits for its time; None: all of them."""
        if peer_id is None:
            self._table.network_changed(clock())
        else:
            self._table.kick(peer_id.raw, clock())
        self._act()

    def remove(self, peer_id: PeerId) -> None:
        """Forget it; no dial and no timer of it is left."""
        self._reasons.pop(peer_id, None)
        self._table.remove(peer_id.raw, clock())
        self._act()

    # ---------------------------------------------------------------- what happens

    def attached(self, peer_id: PeerId, *, dialled: bool) -> None:
        """A connection carries its session; `dialled` by the dial that was asked for."""
        self._table.attached(peer_id.raw, clock(), dialled=dialled)
        self._act()

    def lost(self, peer_id: PeerId) -> None:
        """Its session has no connection any more."""
        self._table.lost(peer_id.raw, clock())
        self._act()

    def ended(self, peer_id: PeerId, reason: SessionError) -> None:
        """Its session is over."""
        self._reasons[peer_id] = reason
        self._table.ended(peer_id.raw, clock())
        self._act()
        self._reasons.pop(peer_id, None)

    def dial_failed(self, peer_id: PeerId) -> None:
        """The dial that was asked for has failed."""
        self._table.dial_failed(peer_id.raw, clock())
        self._act()

    # ---------------------------------------------------------------- what is the case

    def state(self, peer_id: PeerId) -> PeerState:
        """What it is to us now; KNOWN for one that only the book knows."""
        state = self._table.state(peer_id.raw)
        return PeerState.KNOWN if state is PeerState.FORGOTTEN else state

    def since(self, peer_id: PeerId) -> float | None:
        """For how many seconds; None for one that only the book knows."""
        since = self._table.since(peer_id.raw)
        return None if since is None else max(0.0, clock() - since)

    def next_dial(self, peer_id: PeerId) -> float | None:
        """In how many seconds it is dialled next; None: that is not planned."""
        at = self._table.due(peer_id.raw)
        return None if at is None else max(0.0, at - clock())

    # ---------------------------------------------------------------- helpers

    def _network_changed(self, change: "NetworkChange") -> None:
        book, fingerprint = self._endpoint.book, self._watch.fingerprint()
        gained = {one for one in change.gained if not ip_address(one.partition("%")[0]).is_link_local}
        if not (gained or change.lost or change.slept) and fingerprint == book.network:
            # A container was started, say: nobody whom we know can be reached by a link that is new.
            return
        book.network_changed(fingerprint)
        self._endpoint.network_changed(change.lost)
        self.kick()

    def _act(self) -> None:
        for key, action in self._table.take_actions():
            peer_id = PeerId(key)
            match action:
                case Action.DIAL | Action.CANCEL_DIAL if self._closed:
                    # The endpoint ends all dials; whom it has closed already would be made anew.
                    pass
                case Action.DIAL:
                    self._endpoint.dialler(peer_id).dial()
                case Action.CANCEL_DIAL:
                    self._endpoint.dialler(peer_id).cancel()
                case Action.TELL_CONNECTED:
                    self._endpoint.publish(PeerConnected(peer_id))
                case Action.TELL_DISCONNECTED:
                    reason = self._reasons.pop(peer_id, None) or SessionClosed(by_peer=False, reason="removed")
                    self._endpoint.publish(PeerDisconnected(peer_id, reason))
        self._set_timer()

    def _set_timer(self) -> None:
        at = None if self._closed else self._table.next_timeout()
        if self._timer is not None:
            if at is not None and self._timer_at <= at:
                # Firing early and looking again is cheaper than a new timer for each event.
                return
            self._timer.cancel()
            self._timer = None
        if at is not None:
            self._timer_at = at
            self._timer = asyncio.get_running_loop().call_later(max(0.0, at - clock()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        # The loop may count whole milliseconds, and wake us a little before the time.
        self._table.handle_timeout(max(clock(), self._timer_at))
        self._act()
