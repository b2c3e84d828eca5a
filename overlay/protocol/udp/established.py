"""A connection that has its keys: what was sealed goes in and out, under the right ids, at the right address.

    datagrams -> Protection.open_burst -> (number, payload) ... -> Transmission.receive -> events
    Transmission.payloads_to_send -> Protection.seal_burst -> Outgoing, one for each GSO send

What is opened is gathered, and handed over once for each batch that the socket had: acknowledging, joining pieces and
telling the controller cost the same for one packet as for fifty.

Packets from another address than the peer's are the exception. They are taken one by one, as each of them has to be
judged (see `path`): whether it is a replay, whether it has the highest number, how many bytes may be answered.
"""

from collections.abc import Callable, Hashable
from typing import Final

from overlay.protocol.udp.congestion import Congestion
from overlay.protocol.udp.connection_events import AddressChanged, EstablishedEvent, IdsChanged, Outgoing
from overlay.protocol.udp.connection_ids import LocalIds, RemoteIds
from overlay.protocol.udp.inbox import ControlData
from overlay.protocol.udp.keys import Protection
from overlay.protocol.udp.mtu import MtuSearch
from overlay.protocol.udp.pacing import Pacer
from overlay.protocol.udp.path import CHALLENGE_SIZE, Path
from overlay.protocol.udp.payload import (
    PING_FRAME,
    Buffer,
    Close,
    Datagram,
    Done,
    NewId,
    PathChallenge,
    PathResponse,
    StreamPiece,
    encode_new_id,
)
from overlay.protocol.udp.transmission import UNLIMITED, Burst, Transmission
from overlay.protocol.udp.wire import DATA_HEADER, DATA_OVERHEAD, MAXIMUM_DATAGRAM, MINIMUM_DATAGRAM

_PROBE_SIZE: Final = DATA_OVERHEAD + 1 + CHALLENGE_SIZE
"""Bytes of a packet with a challenge or its answer. It is not padded: three times the shortest packet that a peer can
send from a new address must be enough for it. What the new path carries is asked by the search for its MTU."""
_ID: Final = slice(1, DATA_HEADER.size - 4)


class Established:
    """One connection from the moment at which its keys are there.

    Args:
        protection: the keys.
        own: our connection id in the handshake.
        address: where the handshake was made with.
        congestion: makes a controller for a size of datagrams.
        random: as many unpredictable bytes as asked for.
        token: makes the reset token of one of our ids.
        initial_rtt: seconds, of the handshake.
        largest_datagram: bytes, as far as the search for the path's MTU may go.
        now: the clock, in seconds.
        emit: gets each event.

    Attributes:
        transmission: packets without their keys.
        path: where they go.
        congestion: the controller.
        is_confirmed: whether the peer has shown that it has keys as well and knows that we do.
        goodbye: the peer's CLOSE, once it has come.
        packets_sent: how many numbers were used.
        heard_at: when a packet arrived last that was newer than all before.
    """

    def __init__(
        self,
        protection: Protection,
        own: bytes,
        address: Hashable,
        *,
        congestion: Callable[[int], Congestion],
        random: Callable[[int], bytes],
        token: Callable[[bytes], bytes],
        initial_rtt: float,
        largest_datagram: int = MAXIMUM_DATAGRAM,
        now: float,
        emit: Callable[[EstablishedEvent], object],
    ) -> None:
        self.congestion = congestion(MINIMUM_DATAGRAM)
        self.transmission = Transmission(
            self.congestion,
            Pacer(MINIMUM_DATAGRAM),
            mtu=MtuSearch(largest=largest_datagram),
            initial_rtt=initial_rtt,
        )
        self.path = Path(address, random, now)
        self.is_confirmed = False
        self.goodbye: Close | None = None
        self.packets_sent = 0
        self._emit = emit
        self._protection = protection
        self._local = LocalIds(own, random, token)
        self._remote = RemoteIds(protection.destination)
        self._id = own
        """Ours, by which the peer has found us last."""
        self._opened: list[tuple[int, bytes]] = []
        # The handshake has just been answered: the peer is there, and hears us.
        self.heard_at = now
        self._acknowledged_at = now
        self._tell_probe_timeout()

    @property
    def ids(self) -> tuple[bytes, ...]:
        """By which packets for us are found."""
        return self._local.ids

    @property
    def destination(self) -> bytes:
        """The peer's id in use."""
        return self._remote.current

    def is_reset(self, connection_id: bytes, token: bytes) -> bool:
        """Whether a RESET comes from the peer, which has forgotten us."""
        return self._remote.is_reset(connection_id, token)

    @property
    def last_progress(self) -> float:
        """When the peer acknowledged last while something is in flight, otherwise when anything arrived."""
        return self._acknowledged_at if self.transmission.recovery.in_flight else self.heard_at

    def silent_at(self, idle_timeout: float) -> float:
        """When it has been silent for too long: never less than 3 probe timeouts (RFC 9000 section 10.1)."""
        return self.heard_at + max(idle_timeout, 3 * self.transmission.rtt.probe_timeout)

    # --- what arrives

    def receive(self, datagrams: Buffer, segment: int, address: Hashable, now: float) -> None:
        """DATA packets of `segment` bytes, the last may be shorter, all with one destination id; `digest` comes next.

        Raises:
            ProtocolViolation: the peer, who has proven its key, has broken a rule.
        """
        if address != self.path.address:
            self._receive_elsewhere(datagrams, segment, address, now)
            return
        opened = self._protection.open_burst(datagrams, segment, self.transmission.numbers.largest, now)
        if opened:
            self._opened += opened
            if datagrams[_ID] != self._id:
                self._receive_use(bytes(datagrams[_ID]))

    def digest(self, now: float) -> None:
        """The batch is complete.

        Raises:
            ProtocolViolation: as for `receive`.
        """
        if self._opened:
            opened, self._opened = self._opened, []
            self._take(opened, self.path.address, now)

    def local_address_changed(self, now: float) -> None:
        """We are elsewhere: the peer is told at once, under another of its ids (RFC 9000 section 9.5)."""
        self._move(now)
        self.transmission.send_frame(PING_FRAME, again=False)

    def handle_timeout(self, now: float) -> None:
        """A deadline named by `next_timeout` may have come."""
        self.transmission.handle_timeout(now)
        if self.path.handle_timeout(now):
            self._move(now)

    def next_timeout(self) -> float | None:
        """When `handle_timeout` and `bursts_to_send` are to be called if nothing happens before."""
        path, packets = self.path.next_timeout(), self.transmission.next_timeout()
        if path is None or packets is None:
            return packets if path is None else path
        return min(path, packets)

    # --- what is to be sent

    def announce_ids(self) -> None:
        """Give the peer ids to go on with, as many as it should have."""
        added: list[bytes] = []
        for new in self._local.issue():
            self.transmission.send_frame(encode_new_id(new.sequence, new.connection_id, new.token), again=True)
            if new.sequence:
                added.append(new.connection_id)
        if added:
            self._emit(IdsChanged(tuple(added), ()))

    def bursts_to_send(self, now: float) -> list[Outgoing]:
        """All that may leave now.

        Raises:
            AeadLimitReached: the connection is at its end.
        """
        transmission, path = self.transmission, self.path
        # Numbers are used in the order in which they are drawn, so each packet is sealed before the next one is made.
        bursts = [
            self._seal(transmission.frame_alone(probe.frame), probe.address)
            for probe in path.probes_to_send(now, _PROBE_SIZE)
        ]
        # As long as the peer may have no keys, it drops what we send: that would say nothing about the path's MTU.
        limit = None if self.is_confirmed else UNLIMITED
        bursts += [self._seal(burst, path.address) for burst in transmission.payloads_to_send(now, limit)]
        return bursts

    def close(self, code: int, reason: str) -> Outgoing:
        """A CLOSE; each one has a number of its own.

        Raises:
            AeadLimitReached: there is no number left.
        """
        return self._seal(self.transmission.close(code, reason), self.path.address)

    # --- inside

    def _seal(self, burst: Burst, address: Hashable) -> Outgoing:
        payloads = burst.payloads
        self.packets_sent += len(payloads)
        data = self._protection.seal_burst(burst.first_number, payloads)
        return Outgoing(data, burst.size + DATA_OVERHEAD, address, burst.is_mtu_probe)

    def _receive_elsewhere(self, datagrams: Buffer, segment: int, address: Hashable, now: float) -> None:
        numbers = self.transmission.numbers
        for start in range(0, len(datagrams), segment):
            self.digest(now)
            datagram = datagrams[start : start + segment]
            opened = self._protection.open(datagram, numbers.largest, now)
            if opened is None or opened[0] in numbers:
                continue
            newest = opened[0] > numbers.largest
            self._receive_use(bytes(datagram[_ID]))
            self._take([opened], address, now)
            if self.path.receive_packet(address, len(datagram), now, newest=newest):
                self._move(now)

    def _receive_use(self, connection_id: bytes) -> None:
        """A packet for this id of ours has opened."""
        self._id = connection_id
        removed = self._local.receive_use(connection_id)
        if removed:
            self._emit(IdsChanged((), tuple(removed)))
        self.announce_ids()

    def _take(self, opened: list[tuple[int, bytes]], address: Hashable, now: float) -> None:
        transmission = self.transmission
        numbers, recovery = transmission.numbers, transmission.recovery
        largest, acknowledged = numbers.largest, recovery.largest_acknowledged
        transmission.receive(opened, now)
        if numbers.largest > largest:
            self.heard_at = now
            if address == self.path.address:
                self.path.receive_packet(address, 0, now, newest=True)
        if recovery.largest_acknowledged > acknowledged:
            self._acknowledged_at = now
            self.is_confirmed = True
            self._protection.receive_acknowledgement(recovery.largest_acknowledged)
            self._tell_probe_timeout()
        for event in transmission.take_events():
            if isinstance(event, StreamPiece | ControlData | Datagram):
                self._emit(event)
            elif isinstance(event, PathChallenge):
                self.path.receive_challenge(address, event.data)
            elif isinstance(event, PathResponse):
                if self.path.receive_response(event.data, now):
                    self._move(now)
            elif isinstance(event, NewId):
                self._remote.receive_new_id(event)
                if self._remote.is_handshakes:
                    self._use_next_id()
            elif isinstance(event, Done):
                self.is_confirmed = True
            else:
                self.goodbye = event

    def _move(self, now: float) -> None:
        """One of the two is at another address."""
        self.transmission.path_changed(now)
        self._tell_probe_timeout()
        if not self._use_next_id():
            self._emit(AddressChanged(self.path.address))

    def _use_next_id(self) -> bool:
        """Packets go to the peer's next id from now on; False when it has given none."""
        if not self._remote.advance():
            return False
        self._protection.destination = self._remote.current
        self._emit(AddressChanged(self.path.address))
        return True

    def _tell_probe_timeout(self) -> None:
        self._protection.probe_timeout = self.path.probe_timeout = self.transmission.rtt.probe_timeout
