"""Frames of the example router: what neighbours say to each other, and nothing else. Pure.

All integers are big-endian. The first byte is the kind:

    1 ROUTES      1 to 256 times: destination (32) | sequence (8) | metric (1)
    2 BROADCAST   hops (1) | source (32) | number (8) | payload
    3 MESSAGE     hops (1) | source (32) | number (8) | destination (32) | payload

`metric` counts links from the sender to the destination: 0 is the sender itself, 255 says that it has no route any
more. `hops` counts the links that the packet has travelled when it arrives: 1 from its source to a neighbour. Nobody
signs anything: a node believes its neighbours, each of which has proven its key to it and to nobody else.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from overlay.errors import IdentityError
from overlay.identity import PeerId

ROUTES: Final = 1
BROADCAST: Final = 2
MESSAGE: Final = 3

MAX_HOPS: Final = 64
"""What is farther away is taken for unreachable: a bound for what goes astray."""
WITHDRAWN: Final = 255
"""As a metric: no route."""
MAX_SEQUENCE: Final = 2**63 - 1
"""Higher ones are garbage, so that there always is a next one. Microseconds since 1970 reach it in 292,000 years."""
ROUTES_PER_FRAME: Final = 256

_ROUTE: Final = struct.Struct("!32sQB")
_BROADCAST: Final = struct.Struct("!BB32sQ")
_MESSAGE: Final = struct.Struct("!BB32sQ32s")
OVERHEAD: Final = _MESSAGE.size
"""Bytes that a payload grows by, at most."""


class Garbage(Exception):
    """A frame that breaks the format; the text says how."""


class Route(NamedTuple):
    """One line of what a neighbour announces."""

    destination: PeerId
    sequence: int
    """How new this is: the destination alone counts it up."""
    metric: int
    """Links from the neighbour to the destination, or `WITHDRAWN`."""


class Packet(NamedTuple):
    """A payload under way."""

    source: PeerId
    number: int
    """With `source`: which packet this is, whatever ways its copies take."""
    destination: PeerId | None
    """None: everybody."""
    hops: int
    """Links travelled so far."""
    payload: bytes

    @property
    def key(self) -> tuple[PeerId, int]:
        """What tells it from all others."""
        return self.source, self.number


def encode_routes(routes: Sequence[Route]) -> list[bytes]:
    """As many frames as it takes."""
    lines = [_ROUTE.pack(route.destination.raw, route.sequence, route.metric) for route in routes]
    starts = range(0, len(lines), ROUTES_PER_FRAME)
    return [bytes((ROUTES,)) + b"".join(lines[start : start + ROUTES_PER_FRAME]) for start in starts]


def encode_packet(packet: Packet) -> bytes:
    """The frame in which a packet travels its next link, which is counted already."""
    source, number, destination, hops, payload = packet
    if destination is None:
        return _BROADCAST.pack(BROADCAST, hops + 1, source.raw, number) + payload
    return _MESSAGE.pack(MESSAGE, hops + 1, source.raw, number, destination.raw) + payload


def decode(frame: bytes) -> list[Route] | Packet:
    """Read a frame.

    Raises:
        Garbage: it is none of ours.
    """
    try:
        return _decode(frame)
    except (struct.error, IdentityError) as error:
        raise Garbage(str(error)) from error


def _decode(frame: bytes) -> list[Route] | Packet:
    kind = frame[0] if frame else 0
    if kind == ROUTES:
        if not 0 < len(frame) - 1 <= ROUTES_PER_FRAME * _ROUTE.size:
            raise Garbage(f"routes in {len(frame)} bytes")
        routes = [Route(PeerId(raw), *numbers) for raw, *numbers in _ROUTE.iter_unpack(memoryview(frame)[1:])]
        for route in routes:
            if route.sequence > MAX_SEQUENCE or MAX_HOPS < route.metric != WITHDRAWN:
                raise Garbage(f"a route of {route.metric} links, number {route.sequence}")
        return routes
    if kind == BROADCAST:
        _, hops, source, number = _BROADCAST.unpack_from(frame)
        packet = Packet(PeerId(source), number, None, hops, frame[_BROADCAST.size :])
    elif kind == MESSAGE:
        _, hops, source, number, destination = _MESSAGE.unpack_from(frame)
        packet = Packet(PeerId(source), number, PeerId(destination), hops, frame[_MESSAGE.size :])
    else:
        raise Garbage(f"no kind {kind}")
    if not 0 < packet.hops <= MAX_HOPS:
        raise Garbage(f"a packet after {packet.hops} links")
    return packet
