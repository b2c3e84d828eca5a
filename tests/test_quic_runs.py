"""Runs: the bookkeeping, without a connection."""

import pytest

from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import ProtocolViolation, run_header, varint
from overlay.transports.quic_runs import MAX_OPEN_RUNS, MAX_RUN, ReceiveRuns, SendRuns


class Wire:
    """Writes runs into memory."""

    def __init__(self) -> None:
        self.runs: list[bytearray] = []
        self.ended: set[int] = set()

    def open_run(self) -> int:
        self.runs.append(bytearray())
        return len(self.runs) - 1

    def write_run(self, quic_stream: int, data: bytes | memoryview, *, end: bool) -> None:
        assert quic_stream not in self.ended
        self.runs[quic_stream] += data
        if end:
            self.ended.add(quic_stream)


def test_a_run_goes_on_while_its_stream_does() -> None:
    """Consecutive pieces share a header; a gap, or a repetition after a loss, begins a new run."""
    wire = Wire()
    runs = SendRuns(wire)
    runs.send(4, 100, b"abc", idle=False)
    runs.send(4, 103, memoryview(b"def"), idle=False)
    runs.send(4, 100, b"abc", idle=True)
    assert wire.runs == [run_header(4, 100) + b"abcdef", run_header(4, 100) + b"abc"]
    assert wire.ended == {0, 1}
    assert len(runs) == 0


def test_an_idle_stream_without_data_ends_its_run_only() -> None:
    """And where there is none, nothing is sent."""
    wire = Wire()
    runs = SendRuns(wire)
    runs.send(4, 0, b"", idle=True)
    runs.send(4, 0, b"x", idle=False)
    runs.send(4, 1, b"", idle=True)
    assert wire.runs == [run_header(4, 0) + b"x"]
    assert wire.ended == {0}


def test_a_run_ends_before_it_has_more_than_its_length() -> None:
    """So a receiver grants each run a fixed window."""
    wire = Wire()
    runs = SendRuns(wire)
    piece = bytes(60_000)
    for number in range(40):
        runs.send(0, number * len(piece), piece, idle=False)
    assert len(wire.runs) == 3
    assert all(len(run) <= MAX_RUN + 16 for run in wire.runs)


def test_no_more_than_64_runs_are_open() -> None:
    """The least recently used one makes room."""
    wire = Wire()
    runs = SendRuns(wire)
    for stream in range(MAX_OPEN_RUNS):
        runs.send(stream, 0, b"x", idle=False)
    runs.send(0, 1, b"x", idle=False)
    runs.send(1000, 0, b"x", idle=False)
    assert len(runs) == MAX_OPEN_RUNS
    assert wire.ended == {1}


@pytest.mark.parametrize("cut", range(1, 14))
def test_a_header_may_be_cut_anywhere(cut: int) -> None:
    """Packets end where they like."""
    runs = ReceiveRuns()
    data = run_header(70_000, 5_000_000_000) + b"xy"
    got = [runs.receive(2, data[:cut], end=False), runs.receive(2, data[cut:], end=True)]
    pieces = [piece for piece in got if piece is not None]
    assert b"".join(piece[2] for piece in pieces) == b"xy"
    assert pieces[0][:2] == (70_000, 5_000_000_000)
    assert len(runs) == 0


def test_a_run_without_a_header_is_a_violation() -> None:
    """So is one that goes beyond the largest offset."""
    with pytest.raises(ProtocolViolation) as caught:
        ReceiveRuns().receive(2, b"\x40", end=True)
    assert caught.value.code is CloseCode.FRAME_ERROR
    with pytest.raises(ProtocolViolation):
        ReceiveRuns().receive(2, varint(0) + varint(2**62 - 1) + b"x", end=False)


def test_a_run_that_was_reset_is_forgotten() -> None:
    """Its data comes again on another one."""
    runs = ReceiveRuns()
    runs.receive(2, run_header(0, 0) + b"x", end=False)
    runs.forget(2)
    runs.forget(6)
    assert len(runs) == 0
