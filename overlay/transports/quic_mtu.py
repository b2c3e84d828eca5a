"""QUIC in packets as large as the path carries: raw UDP's search for that (`protocol/udp/mtu.py`), by aioquic.

aioquic sends 1200 bytes for ever, QUIC's least, where Ethernet carries 1472 and jumbo frames 8972; and each packet
costs the same. A probe is a packet with PING and padding (RFC 9000 section 14.4): it is acknowledged like any other
one, but neither its loss nor its way concerns the congestion control.

What goes where nobody has looked yet is no larger than the base: probes of another path, and every second one that
follows a silence, so that a path that carries less than before answers at all.
"""

# ruff: noqa: SLF001 - see `quic.py`

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # re-exported without saying so
from aioquic.quic.connection import NetworkAddress, QuicNetworkPath, QuicReceiveContext
from aioquic.quic.packet import QuicFrameType
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.tls import Epoch

from overlay.protocol.udp.mtu import FIRST_PATIENCE, MtuSearch
from overlay.transports.quic_bulk import PACKET_NUMBER, TAG, BulkConnection, Burst
from overlay.transports.quic_recovery import ProbePacket

LARGEST: Final = 8972
"""Jumbo frames. aioquic's lengths of two bytes end at 16,383, and a burst has to have some packets."""
MAX_CONNECTION_ID_BYTES: Final = 20
"""RFC 9000 section 17.2: what a peer may make us put into each short header."""
DATAGRAM_OVERHEAD: Final = 1 + MAX_CONNECTION_ID_BYTES + PACKET_NUMBER + TAG + 3
"""First byte, connection id, packet number, AEAD tag, and type and length of the frame."""
SILENCES: Final = 2
"""Probe timeouts in succession after which every second probe is a small one."""


class SearchingConnection(BulkConnection):
    """aioquic's connection, whose packets grow to what the path carries.

    Args:
        now: the clock's time.
        largest_datagram: bytes, as far as the search may go; QUIC's least of 1200 is the base.
        settings: aioquic's.
    """

    def __init__(self, now: float, *, largest_datagram: int, **settings: Any) -> None:
        super().__init__(now, **settings)
        base, largest = self._max_datagram_size, min(largest_datagram, LARGEST)
        self._wants_more = largest > base
        self._search = MtuSearch(base, max(base, largest))
        self._searched: QuicNetworkPath | None = None
        """The path that the search is about."""
        self._first_probe = 0
        """The packet number from which on probes have gone that way."""
        self._silences = 0
        """Probe timeouts since a packet was acknowledged. aioquic's own count ends when anything at all is heard."""
        self.congestion.mtu = self._search

    @property
    def mtu(self) -> int:
        """Bytes of the largest datagram that it sends."""
        return self._search.size

    @property
    def max_datagram(self) -> int:
        """The longest datagram that fits into a packet and is not too long for the peer.

        A longer one would block all others, as aioquic never drops one.
        """
        theirs = (self._remote_max_datagram_frame_size or 0) - 3
        return max(0, min(self._max_datagram_size - DATAGRAM_OVERHEAD, theirs))

    @property
    def probe_timeout(self) -> float | None:
        """In seconds, without backoff, or None before the first sample."""
        return self._loss.get_probe_timeout() if self._loss._rtt_initialized else None

    def path_changed(self) -> None:
        """Our packets leave by another way now: nothing is known of what it carries."""
        self._search.reset()
        self._first_probe = self._packet_number
        self._resize()

    def too_large(self, size: int) -> None:
        """The system would not send a datagram of this size (EMSGSIZE); what was in it counts as lost in time."""
        if self._search.refused(size):
            self._resize()

    def bursts_to_send(self, now: float) -> Iterator[Burst]:
        """What is to be sent, and perhaps a probe behind it; `get_timer` tells then when to ask again."""
        if self._network_paths and self._network_paths[0] is not self._searched:
            if self._searched is not None:
                self.path_changed()
            self._searched = self._network_paths[0]
        if self._goes_small():
            with self._small():
                yield from super().bursts_to_send(now)
            return
        yield from super().bursts_to_send(now)
        if self._may_search() and (size := self._search.probe_to_send(now)) is not None:
            yield self._probe(size, now)

    def get_timer(self) -> float | None:
        """When to call `handle_timer` and `bursts_to_send`."""
        at: float | None = super().get_timer()
        search = self._search.next_timeout() if self._may_search() else None
        return search if at is None or (search is not None and search < at) else at

    def handle_timer(self, now: float) -> None:
        """Something may be due; `bursts_to_send` comes next."""
        timeouts = self._loss._pto_count
        super().handle_timer(now)
        if self._handshake_confirmed and self._loss._pto_count > timeouts:
            self._silences += 1

    def _goes_small(self) -> bool:
        # A client that is challenged has another address now, so it may be another way.
        is_challenged = bool(self._network_paths and self._network_paths[0].remote_challenges)
        return is_challenged or (self._probe_pending and self._silences >= SILENCES and self._silences % 2 == 0)

    def _may_search(self) -> bool:
        """Whether probes may leave: where nothing arrives, what is lost says nothing about its size."""
        return self._wants_more and not self._silences and self._is_settled

    def _probe(self, size: int, now: float) -> Burst:
        path, pair = self._network_paths[0], self._cryptos[Epoch.ONE_RTT]
        number = self._packet_number
        header = self._header_start() + (number & 0xFFFF).to_bytes(PACKET_NUMBER, "big")
        payload = bytes((QuicFrameType.PING,)).ljust(size - len(header) - TAG, b"\0")
        data = pair.encrypt_packet(header, payload, number)
        self._packet_number += 1
        self._loss.on_probe_sent(ProbePacket(number, now, size, self._probe_delivered), self._spaces[Epoch.ONE_RTT])
        self._search.probe_sent(size, now, 2 * (self.probe_timeout or FIRST_PATIENCE / 2))
        self._left(path, len(data), now)
        return data, len(data), path.addr

    def _probe_delivered(self, state: QuicDeliveryState, number: int, size: int) -> None:
        if number < self._first_probe:
            return
        if state is not QuicDeliveryState.ACKED:
            self._search.probe_lost(size)
        elif self._search.probe_acknowledged(size):
            self._resize()

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        congestion = self.congestion
        congestion.largest_acknowledged = 0
        super()._handle_ack_frame(context, frame_type, buf)
        largest = congestion.largest_acknowledged
        if largest:
            timeouts, self._silences = self._silences, 0
            if self._search.small_acknowledged(largest, timeouts):
                self._resize()

    def _send_probing_frames(self, network_path: QuicNetworkPath, now: float) -> list[tuple[bytes, NetworkAddress]]:
        with self._small():
            return super()._send_probing_frames(network_path, now)

    def _resize(self) -> None:
        self._max_datagram_size = self._search.size
        congestion = self.congestion
        congestion._max_datagram_size = self._pacer._max_datagram_size = self._search.size
        # A window that has no room for a packet would never open.
        congestion.congestion_window = max(congestion.congestion_window, 2 * self._search.size)
        waiting = [data for data in self._datagrams_pending if len(data) <= self.max_datagram]
        self._datagrams_pending.clear()
        self._datagrams_pending.extend(waiting)

    @contextmanager
    def _small(self) -> Iterator[None]:
        """Make packets that every path carries."""
        size = self._max_datagram_size
        self._max_datagram_size = self._search.base
        try:
            yield
        finally:
            # The system may have refused the former size meanwhile.
            self._max_datagram_size = min(size, self._search.size)
