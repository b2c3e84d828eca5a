"""One established connection, but for the keys: payloads in, payloads out.

    send_stream, send_control, send_datagram -> outbox -> payloads_to_send -> (sealed, sent)
                                                  ^ lost       |
                                                flight <-------+ a record of each burst
                                                  ^ ACK
    (opened) -> receive -> inbox -> take_events

The order of one turn is: `receive` for the packets that are there, `take_events`, `handle_timeout` if it is time; then
the session fills the queues up to `sendable`; `payloads_to_send`; and a timer is set to `next_timeout`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from overlay.protocol.udp.congestion import Congestion
from overlay.protocol.udp.control import MAXIMUM_WAITING
from overlay.protocol.udp.flight import PROBES, Flight
from overlay.protocol.udp.inbox import Event, Inbox
from overlay.protocol.udp.mtu import FIRST_PATIENCE, MtuSearch
from overlay.protocol.udp.outbox import Outbox
from overlay.protocol.udp.pacing import Pacer
from overlay.protocol.udp.payload import PING_FRAME, Buffer, encode_close
from overlay.protocol.udp.rtt import INITIAL_RTT, RoundTripTime
from overlay.protocol.udp.sent import SentBurst
from overlay.protocol.udp.wire import DATA_OVERHEAD, MAXIMUM_DATAGRAM, MINIMUM_DATAGRAM

MAXIMUM_BURST: Final = MAXIMUM_DATAGRAM
"""Bytes of one GSO send: what one IPv4 datagram could carry."""
MAXIMUM_SEGMENTS: Final = 64
"""Datagrams of one GSO send (UDP_MAX_SEGMENTS of Linux)."""
UNLIMITED: Final = 1 << 62


@dataclass(slots=True, eq=False)
class Burst:
    """Payloads for successive packet numbers, to be sealed and sent at once."""

    first_number: int
    payloads: list[bytes]
    size: int
    """Bytes of each payload but the last, which may be shorter."""
    is_mtu_probe: bool = False
    """If the system refuses it (EMSGSIZE), tell `mtu_refused`."""


class Transmission:
    """Both directions of a connection.

    Args:
        congestion: the controller, made for datagrams of `mtu.size` bytes.
        pacer: likewise.
        mtu: the search for the path's MTU.
        initial_rtt: seconds; what the handshake took.
        control_limit: bytes of control data that may wait for the peer.

    Attributes:
        receive: takes packets; see `Inbox.receive`.
        take_events: see `Inbox.take_events`.
        rtt: the estimate.
        mtu: the search.
        recovery: what was sent, acknowledged and lost.
        numbers: which packet numbers have arrived.
    """

    receive: Callable[[Iterable[tuple[int, Buffer]], float], None]
    take_events: Callable[[], list[Event]]

    def __init__(
        self,
        congestion: Congestion,
        pacer: Pacer,
        *,
        mtu: MtuSearch | None = None,
        initial_rtt: float = INITIAL_RTT,
        control_limit: int = MAXIMUM_WAITING,
    ) -> None:
        self.rtt = RoundTripTime(initial_rtt)
        self.mtu = mtu or MtuSearch()
        self._outbox = Outbox(control_limit)
        self._flight = flight = Flight(congestion, pacer, self.mtu, self.rtt, self._outbox)
        self.recovery = recovery = flight.recovery
        self._inbox = Inbox(flight.acknowledge, lambda: recovery.floor)
        self.numbers = self._inbox.numbers
        self.receive = self._inbox.receive
        self.take_events = self._inbox.take_events
        self._now = 0.0
        """When `payloads_to_send` was called last."""
        self._limit: int | None = None
        """What `payloads_to_send` was told last, less what it has sent."""

    # --- what the session says

    def send_control(self, data: Buffer) -> None:
        """Queue bytes of the control stream, before everything else.

        Raises:
            ControlOverflow: the peer does not listen; end the connection.
        """
        self._outbox.control.write(data)

    def send_stream(self, stream: int, offset: int, data: Buffer) -> None:
        """Queue bytes of a stream, about as many as `sendable` said; they must not change any more."""
        self._outbox.add_stream(stream, offset, data)

    def send_datagram(self, data: bytes) -> bool:
        """Queue a datagram; False when it is dropped: longer than `max_datagram_size`, or too many wait.

        It is dropped later, too, if the path carries less by the time when it is its turn.
        """
        return self._outbox.add_datagram(data)

    def send_frame(self, frame: bytes, *, again: bool) -> bool:
        """Queue another frame, such as DONE, NEW_ID or PING; False when too many wait.

        Args:
            frame: encoded, of less than 100 bytes.
            again: whether it is to be sent again if it is lost.
        """
        return self._outbox.add_frame(frame, again=again)

    def sendable(self, now: float) -> int:
        """How many stream bytes it takes now: what may leave at once and a reserve, and nothing less than a packet.

        Whoever is asked for the few bytes that each millisecond allows answers with pieces of a few bytes, and a packet
        full of such pieces is half headers.
        """
        flight = self._flight
        room = max(0, flight.allowed(now)) + flight.reserve() - self._outbox.stream_bytes
        return room if room >= self.mtu.size else 0

    def datagram_room(self, now: float) -> int:
        """How many bytes of datagrams may be queued now, without one being dropped or waiting for long."""
        return self._outbox.datagram_room(self._flight.allowed(now))

    @property
    def max_datagram_size(self) -> int:
        """Bytes of the longest datagram that fits now."""
        return self.mtu.size - DATA_OVERHEAD - 1

    @property
    def control_waiting(self) -> int:
        """Bytes of control data that the peer has not acknowledged."""
        return len(self._outbox.control)

    # --- what the network says

    def handle_timeout(self, now: float) -> None:
        """A deadline named by `next_timeout` may have come; `payloads_to_send` comes next."""
        self._flight.handle_timeout(now)

    def mtu_refused(self, size: int) -> None:
        """The system would not send a burst of datagrams of `size` bytes; its packets count as lost by and by."""
        if self.mtu.refused(size):
            self._flight.resize()

    def path_changed(self, now: float) -> None:
        """Everything from now on goes another way (RFC 9000 section 9.4)."""
        self._flight.path_changed(now)

    # --- what is to be done

    def payloads_to_send(self, now: float, limit: int | None = None) -> list[Burst]:
        """All that may leave now; to be asked again after more was queued.

        Args:
            now: the time, in seconds.
            limit: bytes of datagrams, where the peer's address is not proven.
        """
        self._now = now
        flight, outbox, inbox = self._flight, self._outbox, self._inbox
        left = UNLIMITED if limit is None else limit
        bursts: list[Burst] = []
        while flight.probes and left >= MINIMUM_DATAGRAM:
            # After two timeouts it may be the size that does not pass: one of two probes is small.
            small = flight.probes == PROBES and self.recovery.probe_count >= 2
            size = min(self.mtu.base if small else self.mtu.size, left)
            flight.probes -= 1
            bursts.append(self._build(now, size, 1))
            left -= size
        if self._searches(limit):
            self._probe_mtu(now, bursts)
        size = self.mtu.size
        while outbox:
            allowed = min(flight.allowed(now), MAXIMUM_BURST, left)
            if allowed < size:
                break
            burst = self._build(now, size, min(allowed // size, MAXIMUM_SEGMENTS))
            bursts.append(burst)
            left -= len(burst.payloads) * size
        else:
            if flight.allowed(now) >= size:
                flight.application_limited()
        due = inbox.ack_due()
        if due is not None and due <= now and left >= MINIMUM_DATAGRAM:
            bursts.append(self._alone(inbox.take_ack(now, MINIMUM_DATAGRAM - DATA_OVERHEAD)))
            left -= MINIMUM_DATAGRAM
        self._limit = None if limit is None else left
        return bursts

    def frame_alone(self, frame: bytes) -> Burst:
        """A packet with this frame and nothing else, for another path than the usual; nothing is remembered of it."""
        return self._alone(frame)

    def close(self, code: int, reason: str) -> Burst:
        """The last packet; it may be made again as often as the peer is still heard."""
        return self._alone(encode_close(code, reason))

    def next_timeout(self) -> float | None:
        """When `handle_timeout` and `payloads_to_send` are to be called if nothing happens before."""
        times = [self.recovery.next_timeout()]
        limit = self._limit
        if self._searches(limit):
            times.append(self.mtu.next_timeout())
        if limit is None or limit >= MINIMUM_DATAGRAM:
            times.append(self._inbox.ack_due())
        if self._outbox and (limit is None or limit >= self.mtu.size):
            times.append(self._flight.next_send_time(self._now))
        return min((time for time in times if time is not None), default=None)

    # --- inside

    def _build(self, now: float, size: int, packets: int) -> Burst:
        """Cut up to `packets` datagrams of `size` bytes out of the outbox, or a PING; they count as in flight."""
        first = number = self._flight.next_number
        record = SentBurst(first, now)
        outbox = self._outbox
        room = size - DATA_OVERHEAD
        # One byte less, for a PING behind it.
        head = self._inbox.take_ack(now, room - 1)
        payloads: list[bytes] = []
        while len(payloads) < packets:
            run = [] if head else outbox.take_run(number, room, packets - len(payloads), record)
            if not run:
                payload = outbox.fill(number, room, head, record)
                if payload == head:
                    if payloads:
                        break
                    payload += PING_FRAME
                head = b""
                run = [payload]
            payloads += run
            number += len(run)
            if len(payloads[-1]) < room:
                # Only the last one of a GSO send may be shorter.
                break
            record.size = size
        self._flight.next_number = number
        record.last = number - 1
        record.size = len(payloads[0]) + DATA_OVERHEAD
        record.last_size = len(payloads[-1]) + DATA_OVERHEAD
        self._flight.sent(record, now)
        return Burst(first, payloads, len(payloads[0]))

    def _alone(self, payload: bytes) -> Burst:
        number = self._flight.next_number
        self._flight.next_number = number + 1
        return Burst(number, [payload], len(payload))

    def _searches(self, limit: int | None) -> bool:
        """Whether the MTU may be probed: where nothing arrives, what is lost says nothing about its size."""
        return limit is None and not self.recovery.probe_count

    def _probe_mtu(self, now: float, bursts: list[Burst]) -> None:
        size = self.mtu.probe_to_send(now)
        if size is None:
            return
        burst = self._alone(PING_FRAME.ljust(size - DATA_OVERHEAD, b"\0"))
        burst.is_mtu_probe = True
        number = burst.first_number
        self.mtu.probe_sent(size, now, 2 * self.rtt.probe_timeout if self.rtt.measured else FIRST_PATIENCE)
        self._flight.sent(SentBurst(number, now, number, size, size, counted=False), now)
        bursts.append(burst)
