"""QUIC in bulk: packets that carry data and nothing else, many at a time, beside aioquic's own code for all others.

Nearly all packets of a busy connection have one STREAM frame and no more. aioquic takes each by itself, through code
that is ready for anything: 45 us for one that comes, 50 us for one that leaves. What is the same for all packets of a
burst is done once here: the header protection, the bookkeeping of numbers, timers, credit and congestion control, the
event. What is left for each is its seal, and to look that it is what it should be:

- In: a packet is taken in bulk if its number is beyond all others, it opens with the current keys, and has one STREAM
  frame without FIN that continues what a known stream has already. Anything else, the strange and the hostile too,
  goes to aioquic as it came. There is no second judgement of what is wrong.
- Out: aioquic sends all that is not data, and streams that have less than a packet. It is shown no others. Their data
  leaves behind that, in full packets of one size, which one system call sends (`UdpSocket.send_burst`).

So this changes how much work is done, not what is said: `tests/test_quic_bulk*.py` run both side by side. With another
version of aioquic than those that it was compared with, everything is left to aioquic.
"""

# ruff: noqa: SLF001 - see `quic.py`

from collections.abc import Iterator
from struct import Struct
from typing import Any, Final, cast

import aioquic
from aioquic._crypto import AEAD, CryptoError, HeaderProtection
from aioquic.quic.connection import NetworkAddress, QuicConnection, QuicConnectionState, QuicNetworkPath
from aioquic.quic.crypto import CryptoContext
from aioquic.quic.events import StreamDataReceived
from aioquic.quic.packet import PACKET_FIXED_BIT, decode_packet_number
from aioquic.quic.recovery import MAX_ACK_RANGES
from aioquic.quic.stream import QuicStream
from aioquic.tls import CipherSuite, Epoch

from overlay.protocol.frames import read_varint, varint
from overlay.transports.quic_congestion import OverlayReno
from overlay.transports.quic_recovery import BurstPacer, DataPacket, Recovery

KNOWN_VERSIONS: Final = frozenset({"1.7.2"})
"""Of aioquic."""
MAX_BURST: Final = 32 * 1024
"""Bytes of packets sent together: what makes calls cheap, and does not keep the first of them waiting for the last."""
KEY_PACKETS: Final = 2**22
"""Packets after which new keys are taken: AES-GCM may seal twice that with one (RFC 9001 section 6.6), and aioquic does
not count. At a hundred megabytes a second that is some minutes."""
SHORT: Final = 512
"""Bytes of a single datagram below which it is hardly ever plain data, and to look is to open it twice."""
AES: Final = frozenset({CipherSuite.AES_128_GCM_SHA256, CipherSuite.AES_256_GCM_SHA384})
"""With ChaCha20 each packet's header has a key stream of its own."""
SAMPLE: Final = 16
"""RFC 9001 section 5.4.2: bytes of a packet that its header is hidden with."""
PACKET_NUMBER: Final = 2
"""Bytes of a packet number that we send, as aioquic does."""
TAG: Final = 16
SHORT_HEADER: Final = 0xC0
RESERVED: Final = 0x18
KEY_PHASE: Final = 0x04
SPIN: Final = 0x20
STREAM, LENGTH, OFFSET = 0x08, 0x02, 0x04
USUAL: Final = Struct("!BHIH")
"""A STREAM frame's type, stream, offset and length, as they are mostly: integers of two, four and two bytes."""

Burst = tuple[bytes, int, NetworkAddress]
"""Datagrams one behind the other, the size of each but the last one, and where to."""


class BulkConnection(QuicConnection):
    """aioquic's connection with a quick way for data.

    Attributes:
        bulk: whether that way is taken; it may be turned off at any time.
        last_heard: when the last packet was decrypted.
        packets_received: how many were.
    """

    def __init__(self, now: float, **settings: Any) -> None:
        super().__init__(**settings)
        self.last_heard = now
        self.packets_received = 0
        recovery = Recovery(
            congestion_control_algorithm=self._configuration.congestion_control_algorithm,
            initial_rtt=self._configuration.initial_rtt,
            max_datagram_size=self._max_datagram_size,
            peer_completed_address_validation=not self._is_client,
            send_probe=self._send_probe,
            logger=self._logger,
        )
        self._pacer = recovery._pacer = BurstPacer(max_datagram_size=self._max_datagram_size)
        self._loss: Recovery = recovery
        self._new_keys_at = KEY_PACKETS
        """Number of a packet."""
        self.bulk = aioquic.__version__ in KNOWN_VERSIONS

    @property
    def bulk(self) -> bool:
        """Whether packets of data are handled in bulk."""
        return self._loss.is_bulk

    @bulk.setter
    def bulk(self, wanted: bool) -> None:
        self._loss.is_bulk = wanted

    @property
    def congestion(self) -> OverlayReno:
        """The congestion control, which also counts what was sent and lost."""
        return cast("OverlayReno", self._loss._cc)

    @property
    def _is_settled(self) -> bool:
        """Whether it is established, lives, and has proven its path; never with a version that is not known."""
        return (
            self.bulk
            and self._handshake_confirmed
            and self._state is QuicConnectionState.CONNECTED
            and self._close_event is None
            and self._network_paths[0].is_validated
        )

    def _heard(self, now: float, packets: int) -> None:
        """So many packets were decrypted."""
        self.packets_received += packets
        self.last_heard = now

    # ---------------------------------------------------------------- in

    def receive_datagram(self, data: bytes, addr: NetworkAddress, now: float) -> None:
        """Feed one datagram, unless the connection is over: aioquic would process what follows a fatal alert."""
        self.receive_burst(data, len(data), addr, now)

    def receive_burst(self, data: bytes, segment: int, addr: NetworkAddress, now: float) -> None:
        """Feed datagrams of `segment` bytes that stand in `data` one behind the other; the last may be shorter."""
        at = 0
        masks = b""
        while at < len(data) and self._close_event is None:
            keys = self._keys_in(addr) if len(data) > segment or segment >= SHORT else None
            if keys is not None:
                masks = masks or self._masks_in(keys, data, segment)
                at = self._take(keys, masks, data, at, segment, now)
            if at < len(data):
                super().receive_datagram(data[at : at + segment], addr, now)
                at += segment

    def _keys_in(self, addr: NetworkAddress) -> CryptoContext | None:
        """What opens the packets of an established connection that come as they have always come."""
        if not self._is_settled or self._network_paths[0].addr != addr:
            return None
        keys = self._cryptos[Epoch.ONE_RTT].recv
        return keys if keys.cipher_suite in AES else None

    def _masks_in(self, keys: CryptoContext, data: bytes, segment: int) -> bytes:
        """What hides the headers (RFC 9001 section 5.4.3): SAMPLE bytes for each packet, of which 5 are used."""
        # A packet number counts as four bytes here, as nobody knows yet how long it is.
        first = 1 + len(self.host_cid) + 4
        samples = [data[at + first : at + first + SAMPLE] for at in range(0, len(data), segment)]
        # A part of a block would stay in the cipher and shift all that follows, for good. The last sample may be short,
        # and many are if all datagrams are: anybody can send such.
        return _encrypt(keys, b"".join(samples).ljust(len(samples) * SAMPLE, b"\0"))

    def _take(self, keys: CryptoContext, masks: bytes, data: bytes, at: int, segment: int, now: float) -> int:
        """Take packets of data from `at` on; where the first one stands that is none."""
        space = self._spaces[Epoch.ONE_RTT]
        credit = self._local_max_data
        used, expected, largest = credit.used, space.expected_packet_number, space.largest_received_packet
        spans: list[list[int]] = []
        parts: list[bytes] = []
        last: QuicStream | None = None
        head = count = 0
        while at < len(data):
            mask = at // segment * SAMPLE
            opened = self._open(keys, data[at : at + segment], masks[mask : mask + 5], expected, largest)
            if opened is None:
                break
            first, number, payload = opened
            frame = _data_frame(payload)
            if frame is None:
                break
            stream_id, offset, position = frame
            size = len(payload) - position
            stream = self._streams.get(stream_id)
            if stream is None or used + size > credit.value or not _continues(stream, offset, size):
                break
            stream.receiver._buffer_start = stream.receiver.highest_offset = offset + size
            used += size
            if stream is not last:
                self._give(last, parts)
                last, parts = stream, []
            parts.append(payload[position:])
            if spans and spans[-1][1] == number:
                spans[-1][1] = number + 1
            else:
                spans.append([number, number + 1])
            largest = number
            if number > expected:
                expected = number + 1
            head = first
            count += 1
            at += segment
        if last is not None:
            self._give(last, parts)
            credit.used = used
            space.expected_packet_number = expected
            self._taken(spans, count, bool(head & SPIN), now)
        return at

    def _open(
        self, keys: CryptoContext, packet: bytes, mask: bytes, expected: int, largest: int
    ) -> tuple[int, int, bytes] | None:
        """First byte, number and payload of a packet that is beyond all others (RFC 9001 sections 5.3 and 5.4)."""
        number_at = 1 + len(self.host_cid)
        if len(packet) < number_at + 4 + SAMPLE or not packet.startswith(self.host_cid, 1):
            return None
        first = packet[0] ^ (mask[0] & 0x1F)
        if first & (SHORT_HEADER | RESERVED | KEY_PHASE) != PACKET_FIXED_BIT | keys.key_phase * KEY_PHASE:
            return None
        body = number_at + (first & 0x03) + 1
        length = body - number_at
        hidden = int.from_bytes(packet[number_at:body], "big")
        truncated = hidden ^ int.from_bytes(mask[1 : 1 + length], "big")
        number = decode_packet_number(truncated, 8 * length, expected)
        if number <= largest:
            return None
        header = b"%c%b%b" % (first, self.host_cid, truncated.to_bytes(length, "big"))
        try:
            return first, number, cast("AEAD", keys.aead).decrypt(packet[body:], header, number)
        except CryptoError:
            return None

    def _give(self, stream: QuicStream | None, parts: list[bytes]) -> None:
        if stream is not None:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            self._events.append(StreamDataReceived(data, end_stream=False, stream_id=stream.stream_id or 0))

    def _taken(self, spans: list[list[int]], count: int, spin: bool, now: float) -> None:
        """Note that packets with these numbers have come, as aioquic does for each."""
        self._heard(now, count)
        space = self._spaces[Epoch.ONE_RTT]
        largest = spans[-1][1] - 1
        self._spin_bit = spin != self._is_client
        self._spin_highest_pn = largest
        self._close_at = now + self._idle_timeout()
        self._ack_eliciting_sent_since_receipt = False
        space.largest_received_packet = largest
        space.largest_received_time = now
        for low, high in spans:
            space.ack_queue.add(low, high)
            if len(space.ack_queue) > MAX_ACK_RANGES:
                space.ack_queue.shift()
            for number in range(low, high):
                space.received_packets.add(number)
        if space.ack_at is None:
            space.ack_at = now + self._ack_delay

    # ---------------------------------------------------------------- out

    def bursts_to_send(self, now: float) -> Iterator[Burst]:
        """What is to be sent; `get_timer` tells then when to ask again.

        Each burst is made when it is asked for, so that the first one is on its way while the second one is sealed.
        Until the last one was, nothing else may be done with the connection.
        """
        if self._packet_number >= self._new_keys_at and self._handshake_confirmed:
            self._new_keys_at = self._packet_number + KEY_PACKETS
            self.request_key_update()
        streams: list[QuicStream] = []
        if self._sends_bulk():
            others: list[QuicStream] = []
            for stream in self._streams_queue:
                (streams if self._is_bulky(stream) else others).append(stream)
            self._streams_queue = others
        try:
            datagrams = self.datagrams_to_send(now)
        finally:
            self._streams_queue += streams
        for data, address in datagrams:
            yield data, len(data), address
        for stream in streams:
            for burst in self._send_data(stream, now):
                yield burst
                # Each in its turn.
                self._streams_queue.remove(stream)
                self._streams_queue.append(stream)

    def _sends_bulk(self) -> bool:
        pair = self._cryptos.get(Epoch.ONE_RTT)
        return (
            pair is not None
            and self._is_settled
            and pair.send.cipher_suite in AES
            and not pair._update_key_requested
            # A probe may leave although the window is full, and takes data along: that is aioquic's matter.
            and not self._probe_pending
        )

    def _is_bulky(self, stream: QuicStream) -> bool:
        """Whether it has data for a whole packet, and nothing else to say."""
        sender = stream.sender
        return (
            # As it is, too, when the stream was reset.
            not sender.buffer_is_empty
            and sender._buffer_stop - sender.next_offset >= self._max_datagram_size
            # A FIN that was lost without data is no data.
            and (not sender._pending_eof or sender._pending[-1].stop == sender._buffer_fin)
            and not stream.is_blocked
        )

    def _send_data(self, stream: QuicStream, now: float) -> Iterator[Burst]:
        """As much of a stream as credit, congestion control and pacing let go."""
        sender = stream.sender
        pending = sender._pending
        path = self._network_paths[0]
        limit = min(
            sender.highest_offset + self._remote_max_data - self._remote_max_data_used, stream.max_stream_data_remote
        )
        while len(pending) and (stop := min(pending[0].stop, limit)) > (start := pending[0].start):
            # The system may have refused what was yielded before, for its size.
            size = self._max_datagram_size
            packets = (self._loss.congestion_window - self._loss.bytes_in_flight) // size
            if packets <= 0:
                return
            paced = self._pacer.room(now)
            if not paced:
                self._pacing_at = self._pacer.next_send_time(now)
                return
            data, end = self._seal(stream, start, stop, min(packets, paced, max(1, MAX_BURST // size)), now)
            self._pacer.sent(len(data))
            pending.subtract(start, end)
            if end > sender.highest_offset:
                self._remote_max_data_used += end - sender.highest_offset
                sender.highest_offset = end
            if end == sender._buffer_fin:
                sender._pending_eof = False
            sender.buffer_is_empty = not len(pending)
            self._left(path, len(data), now)
            yield data, min(size, len(data)), path.addr

    def _left(self, path: QuicNetworkPath, size: int, now: float) -> None:
        """Note that so many bytes leave that are to be acknowledged."""
        path.bytes_sent += size
        if not self._ack_eliciting_sent_since_receipt:
            # RFC 9000 section 10.1.
            self._close_at = now + self._idle_timeout()
            self._ack_eliciting_sent_since_receipt = True

    def _header_start(self) -> bytes:
        """A packet's header up to its number of PACKET_NUMBER bytes (RFC 9000 section 17.3.1)."""
        phase = self._cryptos[Epoch.ONE_RTT].key_phase * KEY_PHASE
        return b"%c%b" % (PACKET_FIXED_BIT | self._spin_bit * SPIN | phase | (PACKET_NUMBER - 1), self._peer_cid.cid)

    def _seal(self, stream: QuicStream, start: int, stop: int, packets: int, now: float) -> tuple[bytes, int]:
        """Packets with the data from `start` on, up to `stop`; and where the data ends that is in them."""
        sender = stream.sender
        buffer, base, final = sender._buffer, sender._buffer_start, sender._buffer_fin
        pair = self._cryptos[Epoch.ONE_RTT]
        seal = cast("AEAD", pair.send.aead).encrypt
        before = self._header_start()
        number_at = len(before)
        stream_id = varint(stream.stream_id or 0)
        # Behind the header: type, stream, length, seal; the offset may be there or not.
        room = self._max_datagram_size - number_at - PACKET_NUMBER - 1 - len(stream_id) - 2 - TAG
        number = self._packet_number
        space = self._spaces[Epoch.ONE_RTT]
        parts: list[bytes] = []
        samples: list[bytes] = []
        offset = start
        while offset < stop and len(samples) < packets:
            where = varint(offset) if offset else b""
            end = min(offset + room - len(where), stop)
            fin = end == final
            kind = STREAM | LENGTH | (OFFSET if offset else 0) | fin
            length = (end - offset | 0x4000).to_bytes(2, "big")
            plain = b"".join((bytes((kind,)), stream_id, where, length, buffer[offset - base : end - base]))
            header = before + (number & 0xFFFF).to_bytes(2, "big")
            sealed = seal(plain, header, number)
            parts += (header, sealed)
            # From the fourth byte behind the start of the packet number on.
            samples.append(sealed[4 - PACKET_NUMBER : 4 - PACKET_NUMBER + SAMPLE])
            size = len(header) + len(sealed)
            packet = DataPacket(number, now, size, sender, offset, end, fin=fin)
            space.sent_packets[number] = packet  # type: ignore[assignment]  # it has what is looked at
            offset = end
            number += 1
        masks = _encrypt(pair.send, b"".join(samples))
        burst = bytearray(b"".join(parts))
        for index in range(len(samples)):
            at, mask = index * self._max_datagram_size, index * SAMPLE
            burst[at] ^= masks[mask] & 0x1F
            burst[at + number_at] ^= masks[mask + 1]
            burst[at + number_at + 1] ^= masks[mask + 2]
        self._packet_number = number
        self._loss.on_burst_sent(len(samples), len(burst), now, space)
        return bytes(burst), offset


def _data_frame(payload: bytes) -> tuple[int, int, int] | None:
    """Stream, offset, and where the data begins, if the payload is one STREAM frame without FIN (RFC 9000 19.8)."""
    if len(payload) > USUAL.size:
        kind, stream_id, offset, size = USUAL.unpack_from(payload)
        if kind == STREAM | OFFSET | LENGTH and (stream_id >> 14, offset >> 30, size >> 14) == (1, 2, 1):
            whole = size & 0x3FFF == len(payload) - USUAL.size
            return (stream_id & 0x3FFF, offset & 0x3FFF_FFFF, USUAL.size) if whole else None
    try:
        if payload[0] & ~OFFSET != STREAM | LENGTH:
            return None
        stream_id, position = read_varint(payload, 1)
        offset, position = read_varint(payload, position) if payload[0] & OFFSET else (0, position)
        size, position = read_varint(payload, position)
    except IndexError:
        return None
    return (stream_id, offset, position) if size and position + size == len(payload) else None


def _continues(stream: QuicStream, offset: int, size: int) -> bool:
    """Whether this is new data in order, within the stream's credit."""
    receiver = stream.receiver
    return (
        receiver._buffer_start == offset
        and not receiver._buffer
        and not receiver.is_finished
        and receiver._final_size is None
        and offset + size <= stream.max_stream_data_local
    )


def _encrypt(keys: CryptoContext, samples: bytes) -> bytes:
    """Each sample under the key for headers: one call for all, where aioquic makes one for each."""
    return cast("HeaderProtection", keys.hp)._encryptor.update(samples)
