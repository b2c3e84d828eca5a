"""Between a connection's first packet and the certainty that both sides have its keys: what comes too early, or never.

**Too early.** A dialler sends DATA right behind the last flight of its handshake, and the network may turn them round.
An acceptor without keys keeps a few such packets until it has them (RFC 9000 section 5.7 does so for 0-RTT and 1-RTT),
or the first thing that a peer says would wait for a probe timeout, which is three round trips.

**Never.** That both know is said in DATA: by DONE, or by acknowledging something. When that packet is lost nobody is in
a hurry: the handshake's own channel is silent, as all of TLS has arrived, and DATA's first probe timeout is 15 s where
a round trip takes 5 s. So until it is certain, each side says every INTERVAL something that is to be acknowledged.
"""

from typing import Final

from overlay.protocol.udp.handshake_channel import MAXIMUM_INTERVAL
from overlay.protocol.udp.payload import Buffer

INTERVAL: Final = MAXIMUM_INTERVAL
"""Seconds; on a path with a short round trip DATA's own probe timeout comes first."""
MAXIMUM_PACKETS: Final = 10
"""What a sender lets out before it has heard anything (RFC 9002 section 7.2). Anybody who has seen our id can fill it;
the true packets are then lost, which is what would have become of them anyway."""
MAXIMUM_BYTES: Final = 16 * 1024
"""At most two datagrams of the largest kind, and ten of the usual ones."""


class Opening:
    """What one side keeps of the time before it is certain."""

    def __init__(self) -> None:
        self._early: list[bytes] = []
        self._bytes = 0
        self._reminder_at: float | None = None

    def keep(self, datagrams: Buffer, segment: int) -> None:
        """DATA packets of `segment` bytes came, and there are no keys yet."""
        for start in range(0, len(datagrams), segment):
            packet = bytes(datagrams[start : start + segment])
            if len(self._early) >= MAXIMUM_PACKETS or self._bytes + len(packet) > MAXIMUM_BYTES:
                return
            self._early.append(packet)
            self._bytes += len(packet)

    def proven(self, now: float) -> list[bytes]:
        """There are keys; returns the packets that were kept, in the order in which they came."""
        self._reminder_at = now + INTERVAL
        early, self._early = self._early, []
        return early

    def next_timeout(self) -> float | None:
        """When `reminds` will be true; None before `proven`."""
        return self._reminder_at

    def reminds(self, now: float) -> bool:
        """Whether it is time to say something; it will be again after INTERVAL."""
        if self._reminder_at is None or now < self._reminder_at:
            return False
        self._reminder_at = now + INTERVAL
        return True
