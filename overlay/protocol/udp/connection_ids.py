"""Connection ids: by which of them a connection is found, on either side.

A side gives the peer SPARE unused ids beside the one in use, each with its reset token, in NEW_ID frames. When its
address changes, the peer goes on to the next one, so who watches both networks cannot tell by the id that it is the
same peer (RFC 9000 section 9.5). Using an id gives up all that were issued before it, and they are replaced; so there
is no frame to retire one. Of those given up the last is still answered to, for packets that were overtaken.

The ids that the handshake was made under have sequence number 0, and are left as soon as there are others. They have
no reset token: an acceptor's is known to whoever saw its COOKIE before there is a connection, and he could ask for the
RESET of it then, with a packet of his own, and use it later (RFC 9000 section 21.11). All others are known here before
anybody else hears of them, so nobody is sent a RESET of them while they are in use.
"""

import hmac
from collections.abc import Callable
from typing import Final

from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import ProtocolViolation
from overlay.protocol.udp.payload import NewId
from overlay.protocol.udp.wire import ID_SIZE

SPARE: Final = 2
"""Ids issued ahead: one for a change of address, one for the next before the news of the first has gone round."""


class LocalIds:
    """The ids by which the peer finds us; never more than SPARE + 2.

    Args:
        first: ours in the handshake.
        random: as many unpredictable bytes as asked for.
        token: makes an id's reset token.
    """

    def __init__(self, first: bytes, random: Callable[[int], bytes], token: Callable[[bytes], bytes]) -> None:
        self._random = random
        self._token = token
        self._sequences = {first: 0}
        self._used = 0
        self._announced = 0

    @property
    def ids(self) -> tuple[bytes, ...]:
        """All that packets for us may carry."""
        return tuple(self._sequences)

    def issue(self) -> list[NewId]:
        """What is to be announced to the peer now, reliably; the caller finds us by these from now on."""
        issued: list[NewId] = []
        while self._announced < self._used + SPARE:
            self._announced += 1
            connection_id = self._random(ID_SIZE)
            self._sequences[connection_id] = self._announced
            issued.append(NewId(self._announced, connection_id, self._token(connection_id)))
        return issued

    def receive_use(self, connection_id: bytes) -> list[bytes]:
        """A packet for this id has opened.

        Returns:
            The ids that nobody uses any more. When there are some, `issue` has new ones.
        """
        sequence = self._sequences.get(connection_id, 0)
        if sequence <= self._used:
            return []
        before, self._used = self._used, sequence
        given_up = [one for one, number in self._sequences.items() if number < sequence and number != before]
        for one in given_up:
            del self._sequences[one]
        return given_up


class RemoteIds:
    """The ids by which we find the peer: the one in use, and at most SPARE further ones.

    Args:
        first: the peer's in the handshake.
    """

    def __init__(self, first: bytes) -> None:
        self._sequence = 0
        self._ids = {0: first}
        self._tokens: dict[int, bytes] = {}

    @property
    def current(self) -> bytes:
        """The one in use."""
        return self._ids[self._sequence]

    @property
    def is_handshakes(self) -> bool:
        """Whether it is still the handshake's."""
        return not self._sequence

    def receive_new_id(self, new: NewId) -> None:
        """NEW_ID came; repetitions are in order.

        Raises:
            ProtocolViolation: it is more than was asked for, or contradicts what is known.
        """
        if not new.sequence:
            raise ProtocolViolation(CloseCode.STATE_ERROR, "the handshake's connection id has no token")
        if new.sequence < self._sequence:
            return
        if new.sequence > self._sequence + SPARE:
            raise ProtocolViolation(CloseCode.STATE_ERROR, "more connection ids than are of use")
        known = self._ids.setdefault(new.sequence, new.connection_id)
        token = self._tokens.setdefault(new.sequence, new.token)
        if (known, token) != (new.connection_id, new.token) or len(set(self._ids.values())) < len(self._ids):
            raise ProtocolViolation(CloseCode.STATE_ERROR, "a connection id contradicts another")

    def advance(self) -> bool:
        """Go on to the next id, as the address has changed; False when there is none, and the old one has to do."""
        if self._sequence + 1 not in self._ids:
            return False
        del self._ids[self._sequence]
        self._tokens.pop(self._sequence, None)
        self._sequence += 1
        return True

    def is_reset(self, connection_id: bytes, token: bytes) -> bool:
        """Whether a RESET is the peer's: it has forgotten the id that we use, and the connection."""
        expected = self._tokens.get(self._sequence)
        return expected is not None and connection_id == self.current and hmac.compare_digest(expected, token)
