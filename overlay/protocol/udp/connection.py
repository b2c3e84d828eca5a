"""The life of one raw UDP connection, from its first packet to the last: everything but the sockets and the clock.

                 both know
    OPENING -- that both know --> OPEN
       |                            |
       +-------------+--------------+--------- silence, or the peer has forgotten us ----+
                     |                                                                   |
                     +-- we say goodbye ---> CLOSING ---+                                v
                     +-- the peer does ----> DRAINING --+-- 3 probe timeouts later --> OVER

OPENING has two halves: first packets go to the handshake only; then there are keys, `Proven` tells whose, and the
session may send. CLOSING answers what still comes with another CLOSE, ever more rarely, and DRAINING with nothing; both
last three probe timeouts, for which the ids are not given up: else what is still under way would look like packets of a
connection that we know nothing of (RFC 9000 section 10.2).

One turn of whoever has the socket and the clock:

1. `receive_datagram` or `receive_burst` for all that the socket has, then `batch_ended`;
2. `handle_timeout`, if `next_timeout` has come;
3. `take_events`, which say what to tell the session; it answers with `send_*` and `close`;
4. `bursts_to_send`, and a timer for `next_timeout`.

Nothing from the network raises.
"""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Final

from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import ProtocolViolation
from overlay.protocol.udp.bbr import Bbr
from overlay.protocol.udp.congestion import Congestion
from overlay.protocol.udp.connection_events import (
    AddressChanged,
    Closed,
    Confirmed,
    Event,
    IdsChanged,
    Outgoing,
    Phase,
    Proven,
)
from overlay.protocol.udp.cookie import read_reset
from overlay.protocol.udp.established import Established
from overlay.protocol.udp.handshake import AcceptorHandshake, DiallerHandshake
from overlay.protocol.udp.handshake_states import HandshakeClosed, Peer
from overlay.protocol.udp.inbox import ControlData
from overlay.protocol.udp.keys import AeadLimitReached
from overlay.protocol.udp.opening import Opening
from overlay.protocol.udp.payload import DONE_FRAME, PING_FRAME, Buffer, Datagram, StreamPiece
from overlay.protocol.udp.session_side import ALIVE, SessionSide
from overlay.protocol.udp.wire import DATA, KEY_PHASE, MAXIMUM_DATAGRAM, RESET

__all__ = [
    "AddressChanged",
    "Closed",
    "Confirmed",
    "ControlData",
    "Datagram",
    "Event",
    "IdsChanged",
    "Outgoing",
    "Phase",
    "Proven",
    "StreamPiece",
    "UdpCore",
]

IDLE_TIMEOUT: Final = 60.0
"""Seconds without a new packet after which nobody is believed to be there. The session asks long before."""
HANDSHAKE_TIMEOUT: Final = 30.0
"""Seconds: a dial gives up after as long."""

_KIND = 0xFF & ~KEY_PHASE
_SILENT = (Phase.DRAINING, Phase.OVER)


class UdpCore(SessionSide[Peer]):
    """One connection.

    Args:
        handshake: new, or with the packet handed over that it was made for.
        address: where its packets go, and come from.
        random: as many unpredictable bytes as asked for (`os.urandom`).
        token: makes the reset token of one of our ids; see `ResetTokens`.
        now: the clock, in seconds, as everywhere.
        congestion: makes a controller for datagrams of so many bytes; BBR.
        handshake_timeout: seconds until both must have accepted.
        idle_timeout: seconds of silence after which it ends; never less than 3 probe timeouts (RFC 9000 section 10.1).
        largest_datagram: bytes, as far as the search for the path's MTU may go.
    """

    def __init__(
        self,
        handshake: DiallerHandshake[Peer] | AcceptorHandshake[Peer],
        address: Hashable,
        *,
        random: Callable[[int], bytes],
        token: Callable[[bytes], bytes],
        now: float,
        congestion: Callable[[int], Congestion] | None = None,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
        idle_timeout: float = IDLE_TIMEOUT,
        largest_datagram: int = MAXIMUM_DATAGRAM,
    ) -> None:
        super().__init__(handshake)
        self._address = address
        self._establish = partial(
            Established,
            congestion=congestion or (lambda size: Bbr(size, lambda: int.from_bytes(random(4), "big") / 2**32)),
            random=random,
            token=token,
            largest_datagram=largest_datagram,
            emit=self._events.append,
        )
        self._deadline = now + handshake_timeout
        self._idle_timeout = idle_timeout
        self._opening = Opening()
        # An acceptor has been handed its first packet, which at a large MTU may be all that it needs.
        self._follow_handshake(now)

    # --- what the socket says

    def receive_datagram(self, data: Buffer, address: Hashable, now: float) -> None:
        """One packet, found by its destination id, or a RESET found by `destination`; `batch_ended` comes next."""
        self.receive_burst(data, len(data), address, now)

    def receive_burst(self, data: Buffer, segment: int, address: Hashable, now: float) -> None:
        """What one GRO read returned, if all of it is of one kind and for one id: the cheap way for bulk.

        Args:
            data: packets of `segment` bytes, the last may be shorter. Free to be overwritten afterwards.
            segment: bytes.
            address: where from.
            now: the clock, in seconds.
        """
        if not data:
            return
        kind = data[0]
        if kind & _KIND == DATA:
            self._receive_data(data, segment, address, now)
            return
        for start in range(0, len(data), segment):
            datagram = data[start : start + segment]
            if kind == RESET:
                self._receive_reset(datagram)
            else:
                self._receive_handshake(datagram, address, now)

    def batch_ended(self, now: float) -> None:
        """All that the socket had is here: opened packets are taken in at once; `take_events` comes next."""
        established = self._established
        if established is None or self.phase not in ALIVE:
            return
        try:
            established.digest(now)
        except ProtocolViolation as violation:
            self._end(violation.code, violation.reason, "us")
            return
        if self.phase is Phase.OPENING and established.is_confirmed:
            self.phase = Phase.OPEN
            self._handshake.confirm()
            self._events.append(Confirmed())
            established.announce_ids()
        if established.goodbye is not None:
            self._drain(established.goodbye.code, established.goodbye.reason)

    # --- what the clock says

    def handle_timeout(self, now: float) -> None:
        """`next_timeout` may have come; `take_events` and `bursts_to_send` come next."""
        self.batch_ended(now)
        if self.phase in ALIVE:
            self._handle_life(now)
        else:
            self._goodbye.begin(now, self._rtt.probe_timeout)
            if self._goodbye.over_at is not None and now >= self._goodbye.over_at:
                self.phase = Phase.OVER

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout` if nothing happens before; in the past means at once, None never."""
        if self.phase is Phase.OVER:
            return None
        if self.phase not in ALIVE:
            return 0.0 if self._goodbye.over_at is None else self._goodbye.over_at
        times: list[float | None] = [self._deadline, self._handshake.next_timeout(), self._opening.next_timeout()]
        if self.phase is Phase.OPEN:
            times = [self._sending.silent_at(self._idle_timeout)]
        if self._established:
            times.append(self._established.next_timeout())
        return min(time for time in times if time is not None)

    # --- what is to be sent

    def bursts_to_send(self, now: float) -> list[Outgoing]:
        """All that may leave now; to be asked again after more was queued."""
        self.batch_ended(now)
        if self.phase not in ALIVE:
            self._goodbye.begin(now, self._rtt.probe_timeout)
        if self.phase in _SILENT:
            return []
        # A handshake that has failed tells so by itself; one that is confirmed is silent.
        outgoing = [Outgoing(one, len(one), self._address) for one in self._handshake.datagrams_to_send(now)]
        established = self._established
        if established is None:
            return outgoing
        try:
            if self.phase in ALIVE or self._flush:
                outgoing += established.bursts_to_send(now)
            self._flush = False
            if self._goodbye.is_due:
                self._goodbye.is_due = False
                outgoing.append(established.close(*self._goodbye.words))
        except AeadLimitReached:
            # Not even a goodbye may be sealed any more.
            if self.phase in ALIVE:
                self._end(CloseCode.AEAD_LIMIT_REACHED, "the keys are worn out", "us")
            self.phase = Phase.OVER
        return outgoing

    def send_refused(self, outgoing: Outgoing, now: float) -> None:  # noqa: ARG002 - as every input that has a time
        """The system would not send it, as it is too large for the link (EMSGSIZE); what it carried is sent again."""
        if self._established and self.phase in ALIVE:
            self._established.transmission.mtu_refused(outgoing.segment)

    def local_address_changed(self, now: float) -> None:
        """We send from another address of our own from now on; `bursts_to_send` comes next.

        Before both have accepted each other there is nothing to be done: the cookie was for the old address.
        """
        if self._established and self.phase is Phase.OPEN:
            self._established.local_address_changed(now)

    # --- inside

    def _receive_data(self, data: Buffer, segment: int, address: Hashable, now: float) -> None:
        established = self._established
        if self.phase is Phase.OPENING and address != self._address:
            return
        if self.phase is Phase.CLOSING:
            self._repeat_goodbye(address)
        elif self.phase not in ALIVE:
            return
        elif established is None:
            self._opening.keep(data, segment)
        else:
            try:
                established.receive(data, segment, address, now)
            except ProtocolViolation as violation:
                self._end(violation.code, violation.reason, "us")

    def _receive_handshake(self, data: Buffer, address: Hashable, now: float) -> None:
        if address != self._address or self.phase in _SILENT:
            return
        self._handshake.receive_datagram(data, now)
        self._follow_handshake(now)
        if self.phase is Phase.CLOSING:
            self._repeat_goodbye(address)

    def _receive_reset(self, data: Buffer) -> None:
        found = read_reset(data)
        if found and self._established and self.phase in ALIVE and self._established.is_reset(*found):
            self._vanish(CloseCode.NO_ERROR, "the peer has forgotten the connection", "network")

    def _follow_handshake(self, now: float) -> None:
        """The handshake may have come to its end."""
        handshake = self._handshake
        if self.phase is not Phase.OPENING:
            return
        error, protection = handshake.error, handshake.protection
        if isinstance(error, HandshakeClosed) and error.by_peer:
            self._drain(error.code, error.reason, error)
        elif error is not None:
            self._end(getattr(error, "code", CloseCode.UNAUTHENTICATED), str(error), "us", error)
        elif protection is not None and handshake.peer is not None and self._established is None:
            self._established = self._establish(
                protection, handshake.own, self._address, initial_rtt=handshake.rtt.smoothed, now=now
            )
            if isinstance(handshake, AcceptorHandshake):
                self._established.transmission.send_frame(DONE_FRAME, again=True)
            self._events.append(Proven(handshake.peer))
            for early in self._opening.proven(now):
                self._receive_data(early, len(early), self._address, now)

    def _handle_life(self, now: float) -> None:
        if self.phase is Phase.OPENING:
            if now >= self._deadline:
                self._end(CloseCode.HANDSHAKE_TIMEOUT, "the handshake took too long", "network")
                return
            self._handshake.handle_timeout(now)
            if self._established and self._opening.reminds(now):
                accepting = isinstance(self._handshake, AcceptorHandshake)
                self._established.transmission.send_frame(DONE_FRAME if accepting else PING_FRAME, again=False)
        elif now >= self._sending.silent_at(self._idle_timeout):
            self._vanish(CloseCode.SILENT, "nothing was heard for the idle time", "network")
            return
        if self._established:
            self._established.handle_timeout(now)
