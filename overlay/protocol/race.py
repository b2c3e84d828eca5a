"""Which address of a peer is tried when: a pure plan, after happy eyeballs (RFC 8305), with QUIC ahead.

QUIC on IPv6 starts at once, QUIC on IPv4 250 ms later, and so on in turns; raw UDP starts 250 ms after the last QUIC,
TCP 100 ms after the last raw UDP, but both at 500 ms however many addresses there are: where all UDP is lost, nobody
waits longer for TCP. Raw UDP and TCP take three round trips alike, so its 100 ms are a lead that only the network can
take away. Among private addresses of one transport the steps are 30 ms: no packet takes longer there. The lead of QUIC
stays 250 ms even so: its handshake in Python takes tens of milliseconds on a busy machine, and the fallback is not to
win because of that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import zip_longest
from typing import Final

STEP: Final = 0.25
"""RFC 8305 section 8: Connection Attempt Delay."""
PRIVATE_STEP: Final = 0.03
RAW_LEAD: Final = 0.1
"""Of raw UDP over TCP."""
LAST_FALLBACK: Final = 0.5
OVER_UDP: Final = frozenset({"quic", "udp"})
"""Transports that may be blocked without a word, all at once: what comes behind them does not wait for each."""


@dataclass(frozen=True, slots=True)
class Start:
    """One entry of a plan."""

    at: float
    """Seconds after the race's start; earlier if everything before has failed."""
    transport: str
    host: str
    port: int


def plan(
    candidates: Sequence[tuple[str, str, int]], transports: Sequence[str], *, rtt: float | None = None
) -> list[Start]:
    """When to try which address.

    Args:
        candidates: (transport, host, port) in the order that the peer prefers.
        transports: the order that we prefer; others are left out.
        rtt: the smallest round-trip time that is known to the peer: no step is shorter than 1.5 of them.

    Returns:
        The starts in order of time.
    """
    floor = 1.5 * rtt if rtt else 0.0
    starts: list[Start] = []
    at = 0.0
    for transport in transports:
        group = _in_turns([one for one in dict.fromkeys(candidates) if one[0] == transport])
        if not group:
            continue
        if starts:
            fallback = starts[-1].at + (RAW_LEAD if starts[-1].transport == "udp" else STEP)
            if starts[0].transport in OVER_UDP:
                fallback = min(fallback, LAST_FALLBACK)
            at = max(fallback, floor)
        for _, host, port in group:
            starts.append(Start(at, transport, host, port))
            at += max(PRIVATE_STEP if _is_private(host) else STEP, floor)
    return sorted(starts, key=lambda start: start.at)


def _in_turns(group: Sequence[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """IPv6 and everything else in turns, IPv6 first."""
    six = [one for one in group if ":" in one[1]]
    rest = [one for one in group if ":" not in one[1]]
    return [one for pair in zip_longest(six, rest) for one in pair if one is not None]


def _is_private(host: str) -> bool:
    try:
        return ip_address(host).is_private
    except ValueError:
        return False
