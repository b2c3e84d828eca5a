"""QUIC: aioquic's sans-I/O connection, made mutual, bounded and driven by us.

Only this file, `quic_mtu.py`, `quic_bulk.py` and `quic_recovery.py` touch private names of aioquic (1.7). Here is what
it does that we would not have, or does not do that we need; there is what it does too slowly. What is changed here:

- **Who is it?** aioquic has no public switch for client certificates, lets an empty Certificate message through, and
  goes on after a fatal alert until its next packet is built: a client that sends a victim's certificate with garbage
  behind it, and then an empty one, completes the handshake with the victim's certificate on record. So the identity
  is only the key that `Engine` notes after CertificateVerify was verified under it, and an engine that is
  closing is fed nothing and read no more.
- **How much?** aioquic grants credit on receipt and doubles it for ever. Here credit follows what was handed over to
  the session, CRYPTO is bounded, and no bidirectional stream may be opened at all. aioquic fills gaps with zeros, so
  credit is memory, whatever little was sent: one who dials us begins with a small window, which grows with what it
  has really sent, as far as the memory for all such windows goes.
- **How loud?** aioquic warns of each failed handshake; what a stranger can cause is only worth DEBUG.
- **No resumption**: without a ticket handler or fetcher aioquic neither offers nor takes a PSK, and so no 0-RTT.
"""

# ruff: noqa: SLF001, ARG002 - private names are this file's purpose; the signatures of overrides are aioquic's

import errno
import logging
import math
import ssl
from collections import deque
from typing import Any, Final

from aioquic import tls
from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # re-exported without saying so
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration
from aioquic.quic.congestion.base import K_GRANULARITY
from aioquic.quic.connection import (
    CONNECTION_LIMIT_FRAME_CAPACITY,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    NetworkAddress,
    QuicConnectionAdapter,
    QuicConnectionError,
    QuicConnectionState,
    QuicReceiveContext,
)
from aioquic.quic.events import QuicEvent, StreamDataReceived
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicProtocolVersion,
)
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from cryptography import x509

from overlay.config import Config, KiB, MiB
from overlay.errors import HandshakeError, IdentityMismatch, SelfDial
from overlay.identity import Identity, PeerId, peer_id_of
from overlay.protocol.budget import Budget
from overlay.protocol.codes import CloseCode
from overlay.transports.base import ClosedBy, CloseReason, Role
from overlay.transports.quic_congestion import OVERLAY
from overlay.transports.quic_handshakes import CONNECTION_ID_BYTES
from overlay.transports.quic_mtu import SearchingConnection
from overlay.transports.quic_runs import MAX_HEADER, MAX_RUN

logger = logging.getLogger(__name__)

ALPN: Final = "overlay-quic/1"
CONNECTION_WINDOW: Final = 8 * MiB
"""Credit beyond what was handed over. Data is handed over as it arrives in order, so this bounds what lies behind a
lost packet: 80 MB/s at 100 ms. What a reader does not read is bounded by the session's own windows."""
FIRST_WINDOW: Final = 64 * KiB
"""The same for one who dials us, at first: what its connection costs anyway."""
WINDOW_SHARE: Final = 8
"""A window may double while that many times its size is free, so that a few cannot take all."""
RUN_WINDOW: Final = MAX_RUN + 4 * MAX_HEADER
"""A run never gets more than this, and gets it at once."""
CONTROL_WINDOW: Final = 256 * KiB
MAX_CRYPTO: Final = 16 * KiB
"""CRYPTO bytes of one epoch: a handshake of ours has 600, and aioquic's default would be 512 KiB of a stranger's."""
MAX_CRYPTO_FRAGMENTS: Final = 16
MAX_FRAGMENTS: Final = 512
"""Gaps in one stream. A run is 900 packets, so 450 is what the worst order of arrival makes; each more costs memory
and a linear search, and somebody sends one byte in two on purpose."""
UNSENT_DATAGRAMS: Final = 16 * KiB
"""The same of datagrams, and by how much they may be ahead of streams that wait, too."""
UNSENT: Final = 64 * KiB
"""Bytes that may wait below us at most, beyond what the window has room for ..."""
UNSENT_SECONDS: Final = 0.002
"""... and no more than leaves in this time, or two packets: what is not taken yet, what is urgent overtakes."""
REVIVAL: Final = 0.25
"""Seconds of silence after which a packet is news, if a probe would have been answered in less. Before the round-trip
time is known, it may be that of a satellite, and the backoff is what lets an answer come before the next probe."""
MANY_STREAMS: Final = 12
"""Streams up to which aioquic's own way is the cheaper one."""
TURN: Final = 16 * KiB
"""Bytes of streams that aioquic looks at together when there are many."""

CLOSE_CODES: Final[dict[int, CloseCode]] = {
    QuicErrorCode.NO_ERROR: CloseCode.NO_ERROR,
    QuicErrorCode.INTERNAL_ERROR: CloseCode.INTERNAL_ERROR,
    QuicErrorCode.CONNECTION_REFUSED: CloseCode.REFUSED,
    QuicErrorCode.FLOW_CONTROL_ERROR: CloseCode.FLOW_CONTROL_ERROR,
    QuicErrorCode.STREAM_LIMIT_ERROR: CloseCode.FLOW_CONTROL_ERROR,
    QuicErrorCode.FINAL_SIZE_ERROR: CloseCode.FINAL_SIZE_ERROR,
    QuicErrorCode.FRAME_ENCODING_ERROR: CloseCode.FRAME_ERROR,
    # How an application's close is sent before the handshake is confirmed (RFC 9000 section 10.2.3).
    QuicErrorCode.APPLICATION_ERROR: CloseCode.REFUSED,
}
"""Our code for each transport error of QUIC; STATE_ERROR for those not named."""


def quic_configuration(identity: Identity, config: Config, role: Role) -> QuicConfiguration:
    """The settings of one side; they are read only, so all its connections share them."""
    return QuicConfiguration(
        alpn_protocols=[ALPN],
        certificate=identity.certificate,
        congestion_control_algorithm=OVERLAY,
        connection_id_length=CONNECTION_ID_BYTES,
        idle_timeout=config.idle_timeout,
        is_client=role is Role.DIALER,
        max_data=CONNECTION_WINDOW if role is Role.DIALER else FIRST_WINDOW,
        max_datagram_frame_size=64 * KiB,
        max_stream_data=RUN_WINDOW,
        private_key=identity.private_key,
        supported_versions=[QuicProtocolVersion.VERSION_1],
        # No authority signs these certificates: whose key it is, is checked by Engine.
        verify_mode=ssl.CERT_NONE,
    )


class Engine(SearchingConnection):
    """aioquic's connection with mutual authentication and bounded buffers.

    Args:
        identity: ours.
        configuration: of `quic_configuration`.
        now: the clock's time.
        expected: the key that is dialled; None on the accepting side.
        windows: what the windows of all accepted connections may grow by together; None on the dialling side.
        largest_datagram: as far as it may look for what the path carries, in bytes.
        original_destination_connection_id: what the client drew, on the accepting side.
        retry_source_connection_id: what our Retry told it to use instead.

    Attributes:
        proven: the peer's key, once it has signed the handshake with it. Nothing else says who the peer is.
        refusal: why we would not have the peer.
        control_in: id of the peer's control stream, the first unidirectional one.
    """

    def __init__(
        self,
        identity: Identity,
        configuration: QuicConfiguration,
        now: float,
        *,
        expected: PeerId | None = None,
        windows: Budget | None = None,
        largest_datagram: int = SMALLEST_MAX_DATAGRAM_SIZE,
        original_destination_connection_id: bytes | None = None,
        retry_source_connection_id: bytes | None = None,
    ) -> None:
        super().__init__(
            now,
            largest_datagram=largest_datagram,
            configuration=configuration,
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        self._logger = _Quiet(logger, self._logger.extra)
        self.proven: PeerId | None = None
        self.refusal: HandshakeError | None = None
        self.control_in = 3 if configuration.is_client else 2
        self._control_out = 2 if configuration.is_client else 3
        self._own_key = identity.peer_id
        self._expected = expected
        self._windows = windows
        self._window = configuration.max_data
        self._delivered = 0
        self._handed_over = 0
        self._control_handed_over = 0
        self._written = 0
        self._datagrams_written = 0
        self._even = 0
        """How many more bytes of datagrams than of streams there were when both had had the same."""
        # aioquic hard-codes 128; we use no bidirectional streams, so a peer gets none to fill.
        self._local_max_streams_bidi.value = self._local_max_streams_bidi.sent = 0

    @property
    def is_closing(self) -> bool:
        """Whether anything has ended it: us, the peer, silence, an error."""
        return self._close_event is not None

    @property
    def is_garbage(self) -> bool:
        """Whether the first packet of a client, which anybody can encrypt, could not be decrypted."""
        return not self._is_client and not self.packets_received

    @property
    def rtt(self) -> float | None:
        """Smoothed round-trip time in seconds, or None."""
        return self._loss._rtt_smoothed if self._loss._rtt_initialized else None

    @property
    def rtt_min(self) -> float | None:
        """The least round-trip time of the path in seconds, or None. aioquic's own is a millisecond at least."""
        return self.congestion.rtt_min

    @property
    def last_progress(self) -> float:
        """When the peer last showed that our packets arrive; with none under way, when it was last heard.

        Who is heard need not hear us: a network may lose packets in one direction only.
        """
        if not self._loss.bytes_in_flight:
            return self.last_heard
        return self.congestion.last_acknowledged

    @property
    def waiting_datagrams(self) -> int:
        """How many DATAGRAM frames wait to be sent."""
        return len(self._datagrams_pending)

    @property
    def control_backlog(self) -> int:
        """Bytes of control frames that the peer has not acknowledged."""
        stream = self._streams.get(self._control_out)
        return 0 if stream is None else len(stream.sender._buffer)

    @property
    def ids_issued(self) -> int:
        """Changes when there is a new connection id to route."""
        return self._host_cid_seq

    def connection_ids(self) -> list[bytes]:
        """Under which datagrams for this connection arrive."""
        return [connection_id.cid for connection_id in self._host_cids]

    def release(self) -> None:
        """Give back what the window has grown by: nothing is received any more."""
        if self._windows is not None:
            self._windows.release(self._window - self._configuration.max_data)
            self._windows = None

    def room(self) -> int:
        """How many stream bytes may be written now, never beyond the peer's credit; a new run must be possible."""
        if self._close_event is not None or not self._handshake_complete:
            return 0
        # A stream beyond the peer's limit would be held by aioquic, and block whatever comes behind it.
        next_run = max(self._local_next_stream_id_uni, self._control_out + 4)
        if next_run // 4 >= self._remote_max_streams_uni:
            return 0
        unsent = self._written - self._remote_max_data_used
        window = max(0, self._loss.congestion_window - self._loss.bytes_in_flight)
        room = window + self._reserve() - unsent
        # A few bytes at a time would make packets of pieces.
        if room < self._max_datagram_size:
            return 0
        return min(room, self._remote_max_data - self._written - MAX_HEADER)

    def _reserve(self) -> int:
        """Bytes that should wait beside what may leave now, so that packets are full."""
        rate = self._loss.congestion_window / max(self._loss._rtt_smoothed, K_GRANULARITY)
        return max(2 * self._max_datagram_size, min(UNSENT, int(rate * UNSENT_SECONDS)))

    def datagram_room(self) -> int:
        """How many bytes of DATAGRAM frames may be queued now.

        aioquic sends them before all streams. So while stream bytes wait, they are queued no faster than those leave.
        """
        window = max(0, self._loss.congestion_window - self._loss.bytes_in_flight)
        room = window + UNSENT_DATAGRAMS - sum(map(len, self._datagrams_pending))
        more = self._datagrams_written - self._remote_max_data_used
        if self._written <= self._remote_max_data_used or more < self._even:
            self._even = more
            return room
        return min(room, UNSENT_DATAGRAMS + self._even - more)

    def send_datagram_frame(self, data: bytes) -> None:
        """Queue a DATAGRAM frame."""
        self._datagrams_written += len(data)
        super().send_datagram_frame(data)

    def handshake_error(self) -> Exception:
        """What to tell the dialler of a handshake that is over."""
        if self.refusal is not None:
            return self.refusal
        reason = self.close_reason()
        if reason is None:
            return HandshakeError("the handshake was given up")
        if reason.by is ClosedBy.NETWORK:
            return TimeoutError(errno.ETIMEDOUT, reason.reason or "no answer")
        code = CloseCode(reason.code) if reason.code in set(CloseCode) else CloseCode.REFUSED
        who = "the peer broke off" if reason.by is ClosedBy.PEER else "we broke off"
        return HandshakeError(f"{who} the handshake: {reason.reason or code.name}", code)

    def close_reason(self) -> CloseReason | None:
        """Why it ended, in our words; None while it lives."""
        event = self._close_event
        if event is None:
            return None
        if self._state is QuicConnectionState.TERMINATED:
            return CloseReason(ClosedBy.NETWORK, CloseCode.SILENT, event.reason_phrase)
        by = ClosedBy.PEER if self._state is QuicConnectionState.DRAINING else ClosedBy.US
        code, reason = event.error_code, event.reason_phrase
        if event.frame_type is not None:
            alert = code - QuicErrorCode.CRYPTO_ERROR
            if alert in set(tls.AlertDescription):
                reason = reason or tls.AlertDescription(alert).name.replace("_", " ")
            is_tls = 0 <= alert < 0x100
            code = CloseCode.UNAUTHENTICATED if is_tls else CLOSE_CODES.get(code, CloseCode.STATE_ERROR)
        return CloseReason(by, code, reason)

    def open_run(self) -> int:
        """The id of the next unidirectional stream; the first one is always the control stream."""
        self._open_control()
        return self.get_next_available_stream_id(is_unidirectional=True)

    def write_run(self, quic_stream: int, data: bytes | memoryview, *, end: bool) -> None:
        """Queue data of a run."""
        self._written += len(data)
        # aioquic appends it to a bytearray, so a view is as good as bytes.
        self.send_stream_data(quic_stream, data, end_stream=end)  # type: ignore[arg-type]

    def send_control(self, frame: bytes) -> None:
        """Queue a control frame."""
        self._open_control()
        self._written += len(frame)
        self.send_stream_data(self._control_out, frame)

    def _open_control(self) -> None:
        if self.get_next_available_stream_id(is_unidirectional=True) == self._control_out:
            self.send_stream_data(self._control_out, b"")

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """The datagrams to send; the control stream goes first, where aioquic takes turns.

        For each packet aioquic looks at every stream, also at those that only wait for an acknowledgement, or whose
        turn does not come any more. So it is shown only those that have something to do, as many as fill some
        packets, and the others when these are done.
        """
        streams, queue = self._streams, self._streams_queue
        control = streams.get(self._control_out)
        if control is not None and not control.sender.buffer_is_empty and queue and queue[0] is not control:
            queue.remove(control)
            queue.insert(0, control)
        if len(queue) <= MANY_STREAMS:
            return super().datagrams_to_send(now)
        parked: list[QuicStream] = []
        waiting: deque[QuicStream] = deque()
        for stream in queue:
            (waiting if _has_work(stream) else parked).append(stream)
        always = {self.control_in: streams[self.control_in]} if self.control_in in streams else {}
        datagrams: list[tuple[bytes, NetworkAddress]] = []
        while True:
            shown = _take_turn(waiting)
            self._streams_queue = shown
            self._streams = {stream.stream_id or 0: stream for stream in shown} | always
            try:
                sent = super().datagrams_to_send(now)
            finally:
                for stream in shown:
                    if stream.stream_id not in self._streams:
                        del streams[stream.stream_id or 0]
                parked += self._streams_queue
                self._streams, self._streams_queue = streams, [*waiting, *parked]
            datagrams += sent
            if not sent or not waiting:
                return datagrams

    def next_event(self) -> QuicEvent | None:
        """The next event; taking it hands its data over, which earns the peer new credit."""
        event = super().next_event()
        if type(event) is StreamDataReceived:
            event = self._joined(event)
            self._handed_over += len(event.data)
            self._delivered += len(event.data)
            if event.stream_id == self.control_in:
                self._control_handed_over += len(event.data)
        return event

    def _joined(self, event: StreamDataReceived) -> StreamDataReceived:
        """With the data of the events behind it, if those are of the same stream.

        aioquic makes one of each packet; the session's work is per piece, a tenth of all that receiving costs.
        """
        parts = [event.data]
        events = self._events
        while events and isinstance(following := events[0], StreamDataReceived):
            if following.stream_id != event.stream_id:
                break
            event = following
            parts.append(event.data)
            events.popleft()
        if len(parts) == 1:
            return event
        return StreamDataReceived(b"".join(parts), event.end_stream, event.stream_id)

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        # The TLS context is made here, and again after a Retry; it has no public settings for these.
        context = self.tls
        context._request_client_certificate = not self._is_client
        context._signature_algorithms = [tls.SignatureAlgorithm.ED25519]
        context._supported_groups = [tls.Group.X25519]
        verify_signature = context._check_certificate_verify_signature

        def check(verify: tls.CertificateVerify) -> None:
            verify_signature(verify)
            self._check_peer(context)

        context._check_certificate_verify_signature = check  # type: ignore[method-assign]

    def _check_peer(self, context: tls.Context) -> None:
        """The peer has signed the handshake with its leaf's key: accept that key, or let the handshake die."""
        try:
            self.proven = self._acceptable(context._peer_certificate, context._peer_certificate_chain)
        except HandshakeError as refusal:
            self.refusal = refusal
            raise tls.AlertBadCertificate(str(refusal)) from refusal

    def _acceptable(self, leaf: x509.Certificate | None, others: list[x509.Certificate]) -> PeerId:
        if leaf is None or others:
            raise HandshakeError(f"the peer sent {len(others) + 1} certificates, not one")
        key = peer_id_of(leaf)
        # An acceptor judges a dialler with our own key when the handshake is done, so that it can say SELF_DIAL.
        if self._is_client and key == self._own_key:
            raise SelfDial("this address leads back to ourselves")
        if self._is_client and key != self._expected:
            raise IdentityMismatch(f"{key} answered, not {self._expected}")
        return key

    def _confirm_handshake(self) -> None:
        super()._confirm_handshake()
        # TLS writes nothing after this without tickets: 48 KiB for each connection that nobody needs.
        self._crypto_buffers.clear()

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket)
        # A server could make us send to any address; where we dial is the address book's decision.
        self._remote_preferred_address = None

    def _heard(self, now: float, packets: int) -> None:
        if now - self.last_heard > max(REVIVAL, self.probe_timeout or math.inf):
            # The path works again. aioquic, as RFC 9002 section 6.2.1 has it, would sit out the rest of the backoff
            # that the silence has built up, seconds of it, unless what comes first is an acknowledgement.
            self._loss._pto_count = 0
        super()._heard(now, packets)

    def _is_bulky(self, stream: QuicStream) -> bool:
        # The control stream leaves with what is not data, before all runs.
        return stream.stream_id != self._control_out and super()._is_bulky(stream)

    def _payload_received(
        self, context: QuicReceiveContext, plain: bytes, crypto_frame_required: bool = False
    ) -> tuple[bool, bool]:
        # Only what decrypted comes here: the sign of life that nobody can forge.
        self._heard(context.time, 1)
        return super()._payload_received(context, plain, crypto_frame_required)

    def _handle_crypto_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(start)
        receiver = self._crypto_streams[context.epoch].receiver
        if end > MAX_CRYPTO or len(receiver._ranges) > MAX_CRYPTO_FRAGMENTS:
            raise QuicConnectionError(
                error_code=QuicErrorCode.CRYPTO_BUFFER_EXCEEDED,
                frame_type=frame_type,
                reason_phrase="too much CRYPTO data",
            )
        super()._handle_crypto_frame(context, frame_type, buf)

    def _handle_stream_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        stream = self._streams.get(buf.pull_uint_var())
        buf.seek(start)
        if stream is not None and len(stream.receiver._ranges) > MAX_FRAGMENTS:
            raise QuicConnectionError(
                error_code=QuicErrorCode.FLOW_CONTROL_ERROR,
                frame_type=frame_type,
                reason_phrase="a stream in too many fragments",
            )
        super()._handle_stream_frame(context, frame_type, buf)

    def _handle_reset_stream_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        events = len(self._events)
        start = buf.tell()
        stream_id = buf.pull_uint_var()
        buf.seek(start)
        super()._handle_reset_stream_frame(context, frame_type, buf)
        if len(self._events) > events:
            # What will never be handed over must not be held against the peer for ever, nor held.
            receiver = self._streams[stream_id].receiver
            self._handed_over += receiver.highest_offset - receiver.starting_offset()
            receiver._buffer.clear()

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        # aioquic doubles MAX_DATA whenever half of it was received. The rule for MAX_STREAMS is its own.
        data, streams = self._local_max_data, self._local_max_streams_uni
        if self._window < CONNECTION_WINDOW and self._delivered >= self._window:
            self._grow()
        wanted = self._handed_over + self._window
        if wanted - data.value >= self._window // 2:
            data.value = wanted
        for limit in (data, streams):
            if limit.value == limit.sent or (limit is streams and limit.sent - limit.used >= limit.value - limit.sent):
                continue
            buffer = builder.start_frame(
                limit.frame_type,
                capacity=CONNECTION_LIMIT_FRAME_CAPACITY,
                handler=self._on_connection_limit_delivery,
                handler_args=(limit,),
            )
            buffer.push_uint_var(limit.value)
            limit.sent = limit.value

    def _grow(self) -> None:
        windows, size = self._windows, self._window
        if windows is None or windows.limit - windows.used < WINDOW_SHARE * size or not windows.reserve(size):
            return
        self._window += size

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> None:
        # aioquic doubles MAX_STREAM_DATA likewise. A run has its credit from the start and gets no more.
        if stream.stream_id != self.control_in:
            return
        wanted = self._control_handed_over + CONTROL_WINDOW
        if wanted - stream.max_stream_data_local >= CONTROL_WINDOW // 2:
            stream.max_stream_data_local = wanted
        if stream.max_stream_data_local_sent != stream.max_stream_data_local:
            buffer = builder.start_frame(
                QuicFrameType.MAX_STREAM_DATA,
                capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
                handler=self._on_max_stream_data_delivery,
                handler_args=(stream,),
            )
            buffer.push_uint_var(stream.stream_id)
            buffer.push_uint_var(stream.max_stream_data_local)
            stream.max_stream_data_local_sent = stream.max_stream_data_local


class _Quiet(QuicConnectionAdapter):
    """Says everything at DEBUG, and in our logger's name."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        super().log(min(level, logging.DEBUG), msg, *args, **kwargs)


def _has_work(stream: QuicStream) -> bool:
    """Whether aioquic would do anything for it when it builds packets."""
    sender = stream.sender
    return (
        not sender.buffer_is_empty or sender.reset_pending or stream.receiver.stop_pending or stream.is_finished
    ) and not stream.is_blocked


def _take_turn(waiting: deque[QuicStream]) -> list[QuicStream]:
    """The next streams, up to TURN bytes."""
    shown: list[QuicStream] = []
    size = 0
    while waiting and size < TURN:
        stream = waiting.popleft()
        shown.append(stream)
        size += stream.sender._buffer_stop - stream.sender.next_offset
    return shown
