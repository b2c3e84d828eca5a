"""The example router without its network: which frame goes to whom, and what is kept until it can go. Pure.

What a user gives it becomes a packet, told from all others by its source and a number. A packet for everybody is
flooded: each node hands it to all neighbours but the one that it came from, once. A packet for one key takes the next
hop of the routing table (`router_routes.py` says how that is found). Nothing is lost by a link that breaks: the driver
hands back what it could not deliver, and that waits here, as does what has no route, until a neighbour or a route
appears. A neighbour that is new, or back, is given the recent floods: it may have missed them.

So copies do arrive. The driver hands back with `maybe_delivered` what may have arrived all the same, and it is sent
again, because a duplicate can be recognised and a loss cannot. Therefore each node remembers the packets that it has
had, and its user gets none twice. Nor does it send copies on: where a slow link makes frames come back, copies of
copies would make it slower still. But when routes change, a message may be led back to a node that has sent it on
already, and there its only copy must not be taken for a duplicate. The links travelled tell: it has travelled farther
than when it came first, and the copy of a packet that has travelled farthest of all is never dropped.

Shells call `neighbour_up`, `neighbour_down`, `received`, `returned` and `send` when that happens and `handle_timeout`
at `next_timeout`, and then do what `take_actions` lists, in its order.
"""

from typing import Final, NamedTuple

from overlay.identity import PeerId
from overlay.testing.router_ageing import Ageing
from overlay.testing.router_routes import RoutingTable
from overlay.testing.router_wire import MAX_HOPS, Garbage, Packet, decode, encode_packet, encode_routes

KEPT_SECONDS: Final = 60.0
"""How long a node goes on trying with a packet, and gives floods to those who come anew."""
KEPT_PACKETS: Final = 4096
KEPT_SIZE: Final = 16 * 1024 * 1024
REMEMBERED_SECONDS: Final = 600.0
"""How long a packet is recognised: it would have to be kept by ten nodes in turn to arrive twice."""
REMEMBERED_PACKETS: Final = 65_536
PATIENCE_PERIODS: Final = 4.0
"""Periods that a frame has for its link, the first time. The routes over a neighbour that says nothing for so long have
been taken for lost by then, so what comes back may well go another way."""
TRIGGERED_SHARE: Final = 1 / 20
"""Of a period: what changes meanwhile is told in one frame, instead of one for each thing that was heard."""


class Message(NamedTuple):
    """What a user gets."""

    payload: bytes
    source: PeerId
    broadcast: bool
    hops: int
    """Links travelled: 0 from oneself, 1 from a neighbour."""


class Send(NamedTuple):
    """Please send this frame to a neighbour."""

    frame: bytes
    neighbour: PeerId | None
    """None: to all."""
    exclude: PeerId | None
    """But to this one."""
    routing: bool
    """Before all others, as routes that come late make others late."""
    patience: float
    """Seconds after which it is to come back if it is not known to have arrived."""


class RouterCore:
    """One node of the mesh.

    Args:
        ours: our key.
        period: seconds between two announcements of ourselves.
        sequence: the number of the first one; higher than any that was used before a restart.
        number: of the first packet; not near any that was used before a restart.
        now: the clock, in seconds.

    Attributes:
        table: who is reached over whom.
        garbage: frames of neighbours that broke the format.
        duplicates: packets that came again.
        dropped: packets that this node has given up: too old, too many, too far, too long.
    """

    def __init__(self, ours: PeerId, *, period: float, sequence: int, number: int, now: float) -> None:
        self.table = RoutingTable(ours, period=period, sequence=sequence)
        self.garbage = 0
        self.duplicates = 0
        self.dropped = 0
        self._ours = ours
        self._period = period
        self._patience = PATIENCE_PERIODS * period
        self._number = number
        self._seen: Ageing[tuple[PeerId, int], int] = Ageing(
            seconds=REMEMBERED_SECONDS, count=REMEMBERED_PACKETS, size=0
        )
        """Since when this node has had a packet, and how many links its copy that came last had travelled."""
        self._floods: Ageing[tuple[PeerId, int], Packet] = Ageing(
            seconds=KEPT_SECONDS, count=KEPT_PACKETS, size=KEPT_SIZE
        )
        """For neighbours to come."""
        self._waiting: Ageing[tuple[PeerId, int, PeerId | None], Packet] = Ageing(
            seconds=KEPT_SECONDS, count=KEPT_PACKETS, size=KEPT_SIZE
        )
        """By packet, and for a flood by the neighbour that has not got it."""
        self._actions: list[Send | Message] = []
        self._next_announcement = now
        self._next_change = now

    @property
    def waiting(self) -> int:
        """Packets for which there is no way at the moment."""
        return len(self._waiting)

    # ---------------------------------------------------------------- what happens

    def neighbour_up(self, neighbour: PeerId, now: float) -> None:
        """There is a link to it, or a new one in place of another: what the old one carried may be lost."""
        if neighbour in self.table.neighbours:
            self.table.neighbour_down(neighbour, now)
        self.table.neighbour_up(neighbour)
        for frame in encode_routes(self.table.everything()):
            self._actions.append(Send(frame, neighbour, None, True, self._patience))
        self._floods.expire(now)
        for packet in self._floods.values():
            if packet.source != neighbour:
                self._hand(packet, neighbour, now)
        self._tell_changes(now)

    def neighbour_down(self, neighbour: PeerId, now: float) -> None:
        """There is no link to it any more."""
        self.table.neighbour_down(neighbour, now)
        self._tell_changes(now)

    def received(self, frame: bytes, neighbour: PeerId, now: float) -> None:
        """A frame has come. Garbage is counted, and dropped."""
        try:
            heard = decode(frame)
            if isinstance(heard, Packet):
                self._take(heard, neighbour, now)
            else:
                self.table.heard(heard, neighbour, now)
        except Garbage:
            self.garbage += 1
        self._tell_changes(now)

    def returned(self, frame: bytes, neighbour: PeerId, now: float, *, hopeless: bool = False) -> None:
        """The driver could not deliver a frame of ours, or does not know.

        Args:
            frame: as it was in a `Send`.
            neighbour: to whom.
            now: the clock, in seconds.
            hopeless: it can never be delivered there.
        """
        packet = decode(frame)
        if not isinstance(packet, Packet):
            # Routes are news: the next announcement is better than this one again.
            return
        packet = packet._replace(hops=packet.hops - 1)
        if hopeless:
            self.dropped += 1
        elif packet.destination is not None:
            self._keep(packet, None, now)
        elif neighbour in self.table.neighbours:
            # If not, it will be given the floods when it is back.
            self._keep(packet, neighbour, now)

    def handle_timeout(self, now: float) -> None:
        """Announce ourselves, and tell what has changed, if it is time."""
        if now >= self._next_announcement:
            self._next_announcement = now + self._period
            self._seen.expire(now)
            self._floods.expire(now)
            self.table.expire(now)
            self.table.renew()
            self._try_again(now)
        self._tell_changes(now)

    # ---------------------------------------------------------------- what a user asks for

    def send(self, payload: bytes, destination: PeerId | None, now: float) -> None:
        """Send to one key, whether there is a route now or not; None: to everybody but ourselves."""
        packet = Packet(self._ours, self._number, destination, 0, payload)
        self._number = (self._number + 1) % 2**64
        self._seen.add(packet.key, 0, 0, now)
        if destination is None:
            self._flood(packet, None, now)
        elif destination == self._ours:
            self._deliver(packet)
        else:
            self._forward(packet, now)

    # ---------------------------------------------------------------- what is to be done

    def take_actions(self) -> list[Send | Message]:
        """Frames to send, and messages for our user."""
        actions, self._actions = self._actions, []
        return actions

    def next_timeout(self) -> float:
        """When `handle_timeout` has something to do, on the clock of `now`."""
        return min(self._next_announcement, self._next_change) if self.table.changed else self._next_announcement

    # ---------------------------------------------------------------- packets

    def _take(self, packet: Packet, neighbour: PeerId, now: float) -> None:
        for_us = packet.destination in {None, self._ours}
        before = self._seen.get(packet.key)
        if before is None and not (for_us and packet.source == self._ours):
            self._seen.add(packet.key, packet.hops, 0, now)
        elif before is not None and not for_us and packet.hops > before[1]:
            self._seen.replace(packet.key, packet.hops)
        else:
            self.duplicates += 1
            return
        if for_us:
            self._deliver(packet)
        if packet.destination is None:
            self._flood(packet, neighbour, now)
        elif not for_us:
            self._forward(packet, now)

    def _deliver(self, packet: Packet) -> None:
        self._actions.append(Message(packet.payload, packet.source, packet.destination is None, packet.hops))

    def _flood(self, packet: Packet, origin: PeerId | None, now: float) -> None:
        self._floods.add(packet.key, packet, len(packet.payload), now)
        if packet.hops < MAX_HOPS:
            self._actions.append(Send(encode_packet(packet), None, origin, False, self._patience))

    def _forward(self, packet: Packet, now: float) -> None:
        assert packet.destination is not None  # noqa: S101 - for the type checker
        next_hop = self.table.next_hop(packet.destination)
        if next_hop is None:
            self._keep(packet, None, now)
        else:
            self._hand(packet, next_hop, now)

    def _hand(self, packet: Packet, neighbour: PeerId, now: float) -> None:
        if packet.hops < MAX_HOPS:
            # Twice as long with each try: what comes back from a link that is only slow would make it slower.
            patience = self._patience + (self._age(packet, now) or 0.0)
            self._actions.append(Send(encode_packet(packet), neighbour, None, False, patience))
        else:
            self.dropped += 1

    # ---------------------------------------------------------------- what waits

    def _keep(self, packet: Packet, neighbour: PeerId | None, now: float) -> None:
        age = self._age(packet, now)
        key = (*packet.key, neighbour)
        waits = self._waiting.get(key)
        if age is None or age > KEPT_SECONDS:
            self.dropped += 1
        elif waits is None:
            self.dropped += self._waiting.add(key, packet, len(packet.payload), now)
        elif packet.hops > waits[1].hops:
            # Of two copies the one goes on that nobody takes for a duplicate.
            self._waiting.replace(key, packet)

    def _age(self, packet: Packet, now: float) -> float | None:
        """Seconds since this node has had it; None: that was too long ago."""
        seen = self._seen.get(packet.key)
        return None if seen is None else now - seen[0]

    def _try_again(self, now: float) -> None:
        self.table.gained = False
        for (_, _, neighbour), packet in self._waiting.take_all():
            if packet.destination is not None and self.table.next_hop(packet.destination) is None:
                self._keep(packet, None, now)
            elif packet.destination is not None:
                self._forward(packet, now)
            elif neighbour is not None and neighbour in self.table.neighbours:
                self._hand(packet, neighbour, now)

    # ---------------------------------------------------------------- routes

    def _tell_changes(self, now: float) -> None:
        """Tell all neighbours at once what has changed, but not more often than every 20th of a period."""
        if self.table.changed and now >= self._next_change:
            self._next_change = now + self._period * TRIGGERED_SHARE
            for frame in encode_routes(self.table.take_changes()):
                self._actions.append(Send(frame, None, None, True, self._patience))
        if self.table.gained:
            self._try_again(now)
