"""Where packets go: an address, until the peer is proven to be reached at another one.

A peer's address changes when its NAT forgets it or it moves to another network. Its packets then come from elsewhere,
and open all the same, as they are found by connection id. That proves who made them, not where they were sent from:
who sees a packet can send a copy of it from any address, and have us flood that. So (RFC 9000 sections 8.2, 9):

1. Only a packet with the highest number so far counts: copies that come late say nothing.
2. A PATH_CHALLENGE goes to the new address. Until its PATH_RESPONSE is here nothing else does, and what goes there is
   at most 3 times what came from there.
3. Then the old address must have been silent for a probe timeout. A peer behind two uplinks that take turns would else
   make us begin congestion control anew with every packet; and a copy that overtook its original is no reason to move.

Addresses are whatever the caller compares them by.
"""

import hmac
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final

from overlay.protocol.udp.payload import FrameType, encode_challenge

AMPLIFICATION: Final = 3
"""RFC 9000 section 8."""
ATTEMPTS: Final = 3
"""Challenges before an address is given up; each is waited for twice as long as the one before."""
CHALLENGE_SIZE: Final = 8
MAX_CANDIDATES: Final = 4
"""Addresses under examination. More than one, so that somebody who has packets copied from his address cannot keep
another one from its turn."""
VALIDITY: Final = 10.0
"""Seconds for which an address that is not in use counts as proven; by then it may be somebody else's."""
MAX_RESPONSES: Final = 8
"""Answers that wait to be sent; a peer needs one for each address of ours that it examines."""


@dataclass(slots=True)
class _Candidate:
    """An address from which the newest packet of its time came."""

    address: Hashable
    heard_at: float
    received: int = 0
    """Bytes from there."""
    sent: int = 0
    """Bytes to there."""
    validated: bool = False
    challenges: list[bytes] = field(default_factory=list)
    attempts: int = 0
    due: float = 0.0
    """When the next challenge is to be sent, or, after the last, when it is given up; validated, until when it is."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A frame that must go to `address`, in a packet of its own, wherever other packets go."""

    address: Hashable
    frame: bytes


class Path:
    """The address of one peer.

    Args:
        address: what the handshake was made with, which is proven.
        random: as many unpredictable bytes as asked for.
        now: the clock, in seconds.

    Attributes:
        address: where packets go.
        probe_timeout: seconds, kept up to date by whoever measures the path.
    """

    def __init__(self, address: Hashable, random: Callable[[int], bytes], now: float) -> None:
        self.address = address
        self.probe_timeout = 1.0
        self._random = random
        self._heard_at = now
        self._candidates: dict[Hashable, _Candidate] = {}
        self._responses: deque[Probe] = deque(maxlen=MAX_RESPONSES)

    @property
    def candidates(self) -> tuple[Hashable, ...]:
        """The addresses under examination."""
        return tuple(self._candidates)

    def receive_packet(self, address: Hashable, size: int, now: float, *, newest: bool) -> bool:
        """A packet has opened that had not come before. From `address` itself, call it once for many.

        Args:
            address: where from.
            size: bytes of the datagram.
            now: the clock, in seconds.
            newest: whether its number is the highest so far.

        Returns:
            Whether `address` has changed: then round-trip time, congestion control and MTU begin anew.
        """
        if address == self.address:
            if newest:
                self._heard_at = now
            return False
        candidate = self._candidates.get(address)
        if candidate is None or (candidate.validated and now >= candidate.due):
            if newest:
                self._examine(_Candidate(address, heard_at=now, received=size, due=now))
            return False
        candidate.received += size
        if newest:
            candidate.heard_at = now
        return self._migrate(now)

    def receive_challenge(self, address: Hashable, data: bytes) -> None:
        """PATH_CHALLENGE came from `address`; the answer goes there (RFC 9000 section 8.2.2)."""
        self._responses.append(Probe(address, encode_challenge(FrameType.PATH_RESPONSE, data)))

    def receive_response(self, data: bytes, now: float) -> bool:
        """PATH_RESPONSE came, from wherever (section 8.2.3); one that answers nothing says nothing.

        Returns:
            Whether `address` has changed, as for `receive_packet`.
        """
        for candidate in self._candidates.values():
            if any(hmac.compare_digest(data, challenge) for challenge in candidate.challenges):
                candidate.validated = True
                candidate.due = now + VALIDITY
                candidate.challenges.clear()
        return self._migrate(now)

    def probes_to_send(self, now: float, size: int) -> list[Probe]:
        """Answers and challenges that are due, each for a packet of `size` bytes to its own address."""
        probes = [probe for probe in self._responses if self._allows(probe.address, size)]
        self._responses.clear()
        for candidate in self._candidates.values():
            if candidate.validated or now < candidate.due or candidate.attempts >= ATTEMPTS:
                continue
            candidate.due = now + self.probe_timeout * (1 << candidate.attempts)
            candidate.attempts += 1
            if self._allows(candidate.address, size):
                # Each is new: the answer to one says nothing about when another arrived (section 8.2.1).
                data = self._random(CHALLENGE_SIZE)
                candidate.challenges.append(data)
                probes.append(Probe(candidate.address, encode_challenge(FrameType.PATH_CHALLENGE, data)))
        return probes

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout` and `probes_to_send`; None when there is nothing to wait for."""
        dues = [candidate.due for candidate in self._candidates.values() if not candidate.validated]
        if self._best() is not None:
            dues.append(self._heard_at + self.probe_timeout)
        return min(dues, default=None)

    def handle_timeout(self, now: float) -> bool:
        """`next_timeout` has come; before it nothing happens.

        Returns:
            Whether `address` has changed, as for `receive_packet`.
        """
        for candidate in tuple(self._candidates.values()):
            if not candidate.validated and candidate.attempts >= ATTEMPTS and now >= candidate.due:
                del self._candidates[candidate.address]
        return self._migrate(now)

    def _examine(self, candidate: _Candidate) -> None:
        self._candidates.pop(candidate.address, None)
        if len(self._candidates) == MAX_CANDIDATES:
            del self._candidates[next(iter(self._candidates))]
        self._candidates[candidate.address] = candidate

    def _best(self) -> _Candidate | None:
        """The proven address that was heard last, if it was heard after the one in use."""
        proven = (one for one in self._candidates.values() if one.validated and one.heard_at > self._heard_at)
        return max(proven, key=lambda one: one.heard_at, default=None)

    def _migrate(self, now: float) -> bool:
        best = self._best()
        if best is None or now < self._heard_at + self.probe_timeout:
            return False
        # If it was a thief who passed packets on, and he stops, the way back is short (RFC 9000 section 9.3.3).
        before = _Candidate(self.address, heard_at=self._heard_at, validated=True, due=now + VALIDITY)
        self.address = best.address
        self._heard_at = best.heard_at
        self._candidates = {before.address: before}
        return True

    def _allows(self, address: Hashable, size: int) -> bool:
        """Whether `size` bytes may go to `address`; they are counted."""
        if address == self.address:
            return True
        candidate = self._candidates.get(address)
        if candidate is None:
            return False
        if not candidate.validated and candidate.sent + size > AMPLIFICATION * candidate.received:
            return False
        candidate.sent += size
        return True
