"""What an endpoint tells of its peers, in every state and by the thousand."""

import time
from collections.abc import Callable

from keeper_support import NOBODY, Line

from overlay import Address, Config, Endpoint, Identity, Ticket
from overlay.protocol.evidence import Source
from overlay.testing import connections, ticket, until

CONFIG = Config(transports=("memory",))


async def test_a_peer_is_shown_in_each_of_its_states() -> None:
    """From its first dial to the last: state, paths, the next dial, what is known of its addresses."""
    async with Endpoint(Identity.generate(), CONFIG) as us, Endpoint(Identity.generate(), CONFIG) as them:
        line = Line(us, "hangs")
        before = time.time()
        us.keep(ticket(them), name="them")
        [status] = us.peers()
        assert (status.peer_id, status.name, status.state) == (them.peer_id, "them", "dialling")
        assert (status.kept, status.blocked, status.next_dial, status.paths) == (True, False, None, ())
        assert status.since is not None and status.since >= 0
        [place] = status.addresses
        assert (place.address, place.source, place.successes, place.failures) == (
            ticket(them).addresses[0],
            "static",
            0,
            0,
        )
        assert before <= place.learnt <= time.time()
        assert place.last_success is None is place.last_failure is place.rtt

        line.mode = "refuses"
        line.go_on()
        await until(lambda: us.peers()[0].state == "backing off")
        [status] = us.peers()
        assert status.next_dial is not None
        assert 0 < status.next_dial <= 1
        assert (status.addresses[0].failures, status.addresses[0].stage) == (1, "connect")

        line.mode = "works"
        us.kick()
        await until(lambda: us.peers()[0].state == "connected")
        [status] = us.peers()
        assert [path.transport for path in status.paths] == ["memory"]
        assert status.next_dial is None
        await until(lambda: us.peers()[0].addresses[0].successes == 1)
        [place] = us.peers()[0].addresses
        assert place.failures == 0
        assert place.rtt == 0.001

        line.mode = "hangs"
        connections(us, them.peer_id)[0].abort()
        await until(lambda: us.peers()[0].state == "lingering")
        assert us.peers()[0].paths == ()

        us.block(them.peer_id)
        [status] = us.peers()
        assert (status.state, status.kept, status.blocked) == ("known", False, True)


async def test_those_with_a_session_come_first() -> None:
    async with Endpoint(Identity.generate(), CONFIG) as us, Endpoint(Identity.generate(), CONFIG) as them:
        others = [Identity.generate().peer_id for _ in range(3)]
        for other in others:
            us.book.learn(other, NOBODY, Source.TICKET)
        await us.connect(ticket(them))
        assert [status.peer_id for status in us.peers()] == [them.peer_id, *others]


async def test_a_thousand_peers_are_listed(record_property: Callable[[str, object], None]) -> None:
    """Each once, with its addresses in the order of dialling."""
    places = [Address("memory", f"host{number}.memory", 1) for number in range(4)]
    async with Endpoint(Identity.generate(), CONFIG) as us:
        keys = [Identity.generate().peer_id for _ in range(1000)]
        for number, key in enumerate(keys):
            if number % 2:
                us.keep(Ticket(key, tuple(places)))
            else:
                for place in places:
                    us.book.learn(key, place, Source.INBOUND)
        began = time.perf_counter()
        listed = us.peers()
        record_property("milliseconds for 1,000 peers", 1000 * (time.perf_counter() - began))
        assert {status.peer_id for status in listed} == set(keys)
        assert len(listed) == 1000
        assert all({place.address for place in status.addresses} == set(places) for status in listed)
        assert sum(status.kept for status in listed) == 500


async def test_an_address_is_shown_by_transport_once_one_of_them_was_tried() -> None:
    """The place that stands for all of them would say the same again, or that nothing was tried yet."""
    async with Endpoint(Identity.generate(), Config(transports=("memory",))) as us:
        peer = Identity.generate().peer_id
        address = Address(None, "198.51.100.7", 9330)
        us.book.learn(peer, address, Source.TICKET)
        assert [one.address for one in us.book.addresses(peer)] == [address]
        us.book.missed(peer, address.with_transport("quic"), "connect")
        assert [(str(one.address), one.failures) for one in us.book.addresses(peer)] == [
            ("quic://198.51.100.7:9330", 1)
        ]
