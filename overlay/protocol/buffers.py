"""The bytes of one direction of a stream, kept by absolute offset.

`SendBuffer` holds what the peer has not acknowledged, `ReceiveBuffer` what the application has not read. Neither
copies large pieces; both gather small ones, so that the overhead per byte is bounded whatever sizes come in.
"""

from bisect import bisect_right
from collections import deque
from typing import Final

SMALL: Final = 16 * 1024
"""Pieces below this are gathered: an object of its own costs more than the copy."""
GATHERED: Final = 64 * 1024
MAX_GAPS: Final = 256
"""Separate pieces beyond a gap. On QUIC a peer has at most 64 runs of a stream under way, so it stays far below."""
GAP: Final = 480
"""Bytes from the first gap to the end for which there may be one, if that allows more: on raw UDP each lost packet
leaves a gap, and on its worst link, where packets have 250 bytes of a stream, hardly every second one is lost. What a
peer makes us keep thereby costs less than twice the credit that it has used."""


class SendBuffer:
    """Bytes from `start` (acknowledged up to there) to `end` (written up to there)."""

    __slots__ = ("_pieces", "_starts", "end", "start")

    def __init__(self) -> None:
        self.start = 0
        self.end = 0
        self._starts: list[int] = []
        self._pieces: list[bytes | bytearray | memoryview] = []

    def __len__(self) -> int:
        return self.end - self.start

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes at the end. Large `bytes` are kept as they are; everything else is copied."""
        size = len(data)
        if not size:
            return
        if self._pieces and size < SMALL:
            last = self._pieces[-1]
            if type(last) is bytearray and len(last) < GATHERED:
                last += data
                self.end += size
                return
        self._starts.append(self.end)
        if size < SMALL:
            self._pieces.append(bytearray(data))
        elif isinstance(data, bytes) or (isinstance(data, memoryview) and isinstance(data.obj, bytes)):
            self._pieces.append(data)
        else:
            self._pieces.append(bytes(data))
        self.end += size

    def peek(self, offset: int, size: int) -> bytes | memoryview:
        """Up to `size` bytes at `offset`, which lies between `start` and `end`; at least one if there is one.

        It may return fewer than are there, to hand out a view instead of a copy.
        """
        index = bisect_right(self._starts, offset) - 1
        piece = self._pieces[index]
        begin = offset - self._starts[index]
        if isinstance(piece, bytearray):
            # A view would forbid appending to it.
            return bytes(piece[begin : begin + size])
        if not begin and len(piece) <= size:
            return piece
        return memoryview(piece)[begin : begin + size]

    def acknowledge(self, offset: int) -> None:
        """Forget everything below `offset`."""
        self.start = offset
        count = bisect_right(self._starts, offset) - 1
        if count >= 0 and offset >= self.end:
            count += 1
        if count > 0:
            del self._starts[:count]
            del self._pieces[:count]

    def discard(self) -> None:
        """Forget all bytes; the offsets stay."""
        self.start = self.end
        self._starts.clear()
        self._pieces.clear()


class ReceiveBuffer:
    """Bytes from `consumed` (read up to there) over `received` (complete up to there) to those beyond gaps."""

    __slots__ = ("_gaps", "_ready", "consumed", "received")

    def __init__(self) -> None:
        self.consumed = 0
        self.received = 0
        self._ready: deque[bytes | bytearray | memoryview] = deque()
        self._gaps: list[_Segment] = []

    def __len__(self) -> int:
        """How many bytes can be read now."""
        return self.received - self.consumed

    @property
    def gaps(self) -> int:
        """How many separate pieces wait beyond a gap."""
        return len(self._gaps)

    def insert(self, offset: int, data: bytes) -> bool:
        """Add bytes that arrived; whether more can be read now.

        Duplicates are dropped. The caller has checked them against the limit that it granted, and `gaps` against
        MAX_GAPS afterwards.
        """
        end = offset + len(data)
        if not data or end <= self.received:
            return False
        if offset > self.received:
            self._insert_beyond(offset, data)
            return False
        if offset < self.received:
            data = data[self.received - offset :]
        _gather(self._ready, data)
        self.received = end
        while self._gaps and self._gaps[0].start <= self.received:
            segment = self._gaps.pop(0)
            skip = self.received - segment.start
            for piece in segment.pieces:
                if skip >= len(piece):
                    skip -= len(piece)
                    continue
                _gather(self._ready, piece[skip:] if skip else piece)
                skip = 0
            self.received = max(self.received, segment.end)
        return True

    def _insert_beyond(self, offset: int, data: bytes) -> None:
        """Keep a piece beyond a gap. Segments are sorted, never overlap, and grow at their end."""
        gaps = self._gaps
        index = bisect_right(gaps, offset, key=lambda segment: segment.start)
        end = offset + len(data)
        if index:
            before = gaps[index - 1]
            if end <= before.end:
                return
            if offset < before.end:
                data = data[before.end - offset :]
                offset = before.end
        else:
            before = None
        while index < len(gaps) and gaps[index].end <= end:
            # The new piece covers it whole.
            del gaps[index]
        if index < len(gaps) and gaps[index].start < end:
            data = data[: gaps[index].start - offset]
            end = gaps[index].start
        if before is not None and before.end == offset:
            _gather(before.pieces, data)
            before.end = end
        else:
            before = _Segment(offset, end, deque([data]))
            gaps.insert(index, before)
            index += 1
        if index < len(gaps) and gaps[index].start == end:
            after = gaps.pop(index)
            # Joined as well: pieces of a byte each, filled in between, would cost fifty bytes each.
            _gather(before.pieces, after.pieces.popleft())
            before.pieces.extend(after.pieces)
            before.end = after.end

    def read(self, size: int) -> bytes:
        """Take up to `size` bytes; b"" when there are none."""
        ready = self._ready
        if not ready:
            return b""
        first = ready[0]
        if len(first) == size or (len(first) < size and len(ready) == 1):
            ready.popleft()
            self.consumed += len(first)
            return bytes(first)
        if len(first) > size:
            view = memoryview(first)
            ready[0] = view[size:]
            self.consumed += size
            return bytes(view[:size])
        parts: list[bytes | bytearray | memoryview] = []
        left = size
        while ready and left:
            first = ready[0]
            if len(first) > left:
                view = memoryview(first)
                ready[0] = view[left:]
                parts.append(view[:left])
                left = 0
                break
            parts.append(ready.popleft())
            left -= len(first)
        data = b"".join(parts)
        self.consumed += len(data)
        return data

    def discard(self) -> None:
        """Drop the bytes that can be read, as if they had been; pieces beyond a gap stay, to complete it."""
        self._ready.clear()
        self.consumed = self.received

    def skip_to(self, offset: int) -> None:
        """Take everything below `offset` as received and read: what a RESET leaves behind."""
        self.received = max(self.received, offset)
        self._gaps.clear()
        self.discard()


class _Segment:
    """Contiguous bytes beyond a gap."""

    __slots__ = ("end", "pieces", "start")

    def __init__(self, start: int, end: int, pieces: "deque[bytes | bytearray | memoryview]") -> None:
        self.start = start
        self.end = end
        self.pieces = pieces


def _gather(pieces: "deque[bytes | bytearray | memoryview]", data: "bytes | bytearray | memoryview") -> None:
    """Append `data`; small pieces are joined, so that a peer's one-byte frames cost one byte each."""
    if len(data) < 1024 and pieces:
        last = pieces[-1]
        if type(last) is bytearray:
            if len(last) < SMALL:
                last += data
                return
        elif len(last) < 1024:
            pieces[-1] = bytearray(last) + data
            return
    pieces.append(data)
