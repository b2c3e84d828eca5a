"""The side of a connection that the session sees: what it may say, what it is told, and how it ends.

However a connection ends, there is one `Closed`, and it is the last event.
"""

from collections.abc import Hashable
from typing import Final, Generic

from overlay.protocol.codes import CloseCode
from overlay.protocol.udp.connection_events import By, Closed, Event, Phase
from overlay.protocol.udp.control import ControlOverflow
from overlay.protocol.udp.established import Established
from overlay.protocol.udp.goodbye import Goodbye
from overlay.protocol.udp.handshake import AcceptorHandshake, DiallerHandshake
from overlay.protocol.udp.handshake_states import Peer, State
from overlay.protocol.udp.payload import Buffer
from overlay.protocol.udp.rtt import RoundTripTime

ALIVE: Final = (Phase.OPENING, Phase.OPEN)


class SessionSide(Generic[Peer]):
    """The upper half of `UdpCore`.

    Args:
        handshake: by which it begins.

    Attributes:
        phase: how far it is.
    """

    def __init__(self, handshake: DiallerHandshake[Peer] | AcceptorHandshake[Peer]) -> None:
        self.phase = Phase.OPENING
        self._handshake = handshake
        self._established: Established | None = None
        self._events: list[Event[Peer]] = []
        self._goodbye = Goodbye()
        self._flush = False
        """Whether what is queued may leave before the goodbye."""

    def take_events(self) -> list[Event[Peer]]:
        """What has happened since the last call, in its order."""
        events = self._events[:]
        self._events.clear()
        return events

    def close(self, code: CloseCode, reason: str = "") -> None:
        """End it, behind what is queued as far as that may leave at once; `bursts_to_send` comes next."""
        if self.phase in ALIVE:
            self._end(code, reason, "us")
            self._flush = True

    # --- what the session says, from `Proven` on; on a closed connection it does nothing

    def sendable(self, now: float) -> int:
        """How many stream bytes it takes now."""
        return self._established.transmission.sendable(now) if self._established and self.phase in ALIVE else 0

    def datagram_room(self, now: float) -> int:
        """How many bytes of datagrams may be queued now, without one being dropped or waiting for long."""
        return self._established.transmission.datagram_room(now) if self._established and self.phase in ALIVE else 0

    def send_control(self, data: Buffer) -> None:
        """Queue bytes of the control stream; a peer that lets too many wait is cut off."""
        if self.phase not in ALIVE:
            return
        try:
            self._sending.transmission.send_control(data)
        except ControlOverflow:
            self._end(CloseCode.FLOW_CONTROL_ERROR, "control frames are not read", "us")

    def send_stream(self, stream: int, offset: int, data: Buffer) -> None:
        """Queue bytes of a stream, about as many as `sendable` said; they must not change any more."""
        if self.phase in ALIVE:
            self._sending.transmission.send_stream(stream, offset, data)

    def send_datagram(self, data: bytes) -> bool:
        """Queue a datagram; False when it is dropped: longer than `max_datagram_size`, or too many wait."""
        return self.phase in ALIVE and self._sending.transmission.send_datagram(data)

    # --- what there is to know

    @property
    def ids(self) -> tuple[bytes, ...]:
        """By which packets for us are found now; `IdsChanged` tells when they change."""
        established = self._established
        return established.ids if established else (self._handshake.own,)

    @property
    def destination(self) -> bytes:
        """The peer's id in use, by which a RESET is found; b"" before `Proven`, another one after `AddressChanged`."""
        return self._established.destination if self._established else b""

    @property
    def is_closing(self) -> bool:
        """Whether it has ended, and `Closed` was among the events or will be."""
        return self.phase not in ALIVE

    @property
    def is_over(self) -> bool:
        """Whether it can be forgotten, and its ids with it."""
        return self.phase is Phase.OVER

    @property
    def rtt(self) -> float | None:
        """Smoothed round-trip time in seconds; None before the first sample of this path."""
        found = self._rtt
        return found.smoothed if found.measured else None

    @property
    def rtt_min(self) -> float | None:
        """The least round-trip time of this path in seconds; None before the first sample."""
        found = self._rtt
        return found.minimum if found.measured else None

    @property
    def probe_timeout(self) -> float | None:
        """Seconds of silence after which the peer is probed; None before the first sample."""
        found = self._rtt
        return found.probe_timeout if found.measured else None

    @property
    def mtu(self) -> int:
        """Bytes of the largest datagram that may be sent."""
        return self._established.transmission.mtu.size if self._established else self._handshake.datagram_size

    @property
    def max_datagram_size(self) -> int:
        """Bytes of the longest message that `send_datagram` takes."""
        return self._established.transmission.max_datagram_size if self._established else 0

    @property
    def congestion_window(self) -> int:
        """Bytes that may be under way."""
        return self._established.congestion.window if self._established else 0

    @property
    def loss(self) -> float:
        """The share of packets that were lost on their way to the peer, so far."""
        established = self._established
        if not established or not established.packets_sent:
            return 0.0
        return established.transmission.recovery.lost_packets / established.packets_sent

    def last_progress(self, now: float) -> float:
        """When the peer last showed that it is there and hears us: see `Connection.last_progress` of the transports.

        While something is in flight: when the last acknowledgement came, otherwise when anything came. During the
        handshake, which has a deadline of its own, it is `now`.
        """
        return self._established.last_progress if self._established else now

    # --- for the lower half

    @property
    def _sending(self) -> Established:
        if self._established is None:
            raise RuntimeError("nothing can be sent before the peer's key is proven")
        return self._established

    @property
    def _rtt(self) -> RoundTripTime:
        established = self._established
        if established is None or established.transmission.recovery.largest_acknowledged < 0:
            return self._handshake.rtt
        return established.transmission.rtt

    def _end(self, code: CloseCode, reason: str, by: By, cause: Exception | None = None) -> None:
        """From now on there is nothing but goodbyes."""
        handshake, accepting = self._handshake, isinstance(self._handshake, AcceptorHandshake)
        self._events.append(Closed(code, reason, by, cause))
        self.phase = Phase.OVER if handshake.state is State.KNOCKING else Phase.CLOSING
        self._goodbye.words = code, reason
        self._goodbye.is_due = self._established is not None
        if not (self._established and accepting):
            # An acceptor that has no keys yet could not read a goodbye in DATA; a dialler has had its keys for longer.
            handshake.close(code)

    def _drain(self, code: int, reason: str, cause: Exception | None = None) -> None:
        """The peer has said goodbye."""
        self._events.append(Closed(code, reason, "peer", cause))
        self.phase = Phase.DRAINING

    def _vanish(self, code: CloseCode, reason: str, by: By) -> None:
        """It has ended, and there is nobody to tell."""
        self._events.append(Closed(code, reason, by))
        self.phase = Phase.OVER

    def _repeat_goodbye(self, address: Hashable) -> None:
        """A packet came all the same; only to where the peer is proven to be it is told again."""
        if self._established and address == self._established.path.address:
            self._goodbye.receive_packet()
