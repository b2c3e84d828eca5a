"""Runs: how the bytes of many session streams travel over few QUIC streams.

A run is one unidirectional QUIC stream: a small header (session stream, offset), data, FIN. One QUIC stream for each
session stream would be simpler, but aioquic allows 128 at once and its cost per packet grows with them: 26 us at ten,
280 us at a thousand. A run ends when its stream is idle, so a thousand streams that whisper cost no more than one.

This is the bookkeeping of both directions; it neither sends nor receives.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Protocol

from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import VARINT_MAX, ProtocolViolation, read_varint, run_header

MAX_RUN: Final = 1024 * 1024
"""Data bytes of one run: what a receiver may have to hold for one lost packet at its head."""
MAX_HEADER: Final = 16
"""Two variable-length integers."""
MAX_OPEN_RUNS: Final = 64
"""Half of the 128 streams that a peer running aioquic grants: the other half is on its way to be forgotten."""


class RunWriter(Protocol):
    """Where runs are written to."""

    def open_run(self) -> int:
        """Begin a QUIC stream and return its id."""

    def write_run(self, quic_stream: int, data: bytes | memoryview, *, end: bool) -> None:
        """Queue data on it; `end` sends the FIN behind."""


@dataclass(slots=True)
class _Outgoing:
    quic_stream: int
    next_offset: int
    length: int


class SendRuns:
    """The runs that we have open, the least recently used one first."""

    def __init__(self, writer: RunWriter) -> None:
        self._writer = writer
        self._open: OrderedDict[int, _Outgoing] = OrderedDict()

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def send(self, stream: int, offset: int, data: bytes | memoryview, *, idle: bool) -> None:
        """Send a piece of a stream: on its run if it continues it, else on a new one.

        Args:
            stream: the session stream.
            offset: of the first byte of `data` in it.
            data: at most 64 KiB.
            idle: nothing more follows now, so the run ends with this piece.
        """
        size = len(data)
        run = self._open.get(stream)
        if run is not None and (run.next_offset != offset or run.length + size > MAX_RUN):
            self._end(stream, run)
            run = None
        if run is None:
            if not size:
                return
            if len(self._open) >= MAX_OPEN_RUNS:
                self._end(*next(iter(self._open.items())))
            run = _Outgoing(self._writer.open_run(), offset, 0)
            data = run_header(stream, offset) + data
            if not idle:
                self._open[stream] = run
        elif idle:
            del self._open[stream]
        else:
            self._open.move_to_end(stream)
        run.next_offset += size
        run.length += size
        self._writer.write_run(run.quic_stream, data, end=idle)

    def _end(self, stream: int, run: _Outgoing) -> None:
        del self._open[stream]
        self._writer.write_run(run.quic_stream, b"", end=True)


@dataclass(slots=True)
class _Incoming:
    stream: int
    next_offset: int


class ReceiveRuns:
    """The runs that the peer has open. Bounded by the number of QUIC streams that it may open."""

    def __init__(self) -> None:
        self._open: dict[int, _Incoming | bytes] = {}

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def receive(self, quic_stream: int, data: bytes, *, end: bool) -> tuple[int, int, bytes] | None:
        """Take what arrived in order on a QUIC stream.

        Returns:
            Session stream, offset and data; None while there is no data.

        Raises:
            ProtocolViolation: no header, or an offset beyond 2**62 - 1.
        """
        run = self._open.get(quic_stream, b"")
        if isinstance(run, bytes):
            head = run + data
            try:
                stream, position = read_varint(head, 0)
                offset, position = read_varint(head, position)
            except IndexError:
                if end:
                    raise ProtocolViolation(CloseCode.FRAME_ERROR, "a run ends inside its header") from None
                self._open[quic_stream] = head
                return None
            data = head[position:]
            run = _Incoming(stream, offset)
            self._open[quic_stream] = run
        if end:
            del self._open[quic_stream]
        if not data:
            return None
        offset = run.next_offset
        run.next_offset += len(data)
        if run.next_offset > VARINT_MAX:
            raise ProtocolViolation(CloseCode.FRAME_ERROR, "a run goes beyond the largest offset")
        return run.stream, offset, data

    def forget(self, quic_stream: int) -> None:
        """The peer reset the run: what is missing comes again on another one."""
        self._open.pop(quic_stream, None)
