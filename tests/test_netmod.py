"""The driver in the shape of the first drivers' interface."""

import pytest
from driver_support import node, star

from overlay import FLOOD, AddressError, FrameTooLong, NotANeighbour, SelfDial
from overlay.netmod import Netmod, Single
from overlay.testing import ticket, until


async def test_the_five_calls_do_what_they_did_there_and_tell_the_truth() -> None:
    async with star(2) as (middle, (a, b)):
        netmod = Netmod(middle.driver)
        await netmod.send(b"to one", Single(a.peer_id))
        await netmod.send(b"to all", FLOOD)
        await netmod.send(b"to all but a", FLOOD, exclude=a.peer_id)
        assert await a.frames(2) == [b"to one", b"to all"]
        assert await b.frames(2) == [b"to all", b"to all but a"]
        await b.driver.send(b"back", middle.peer_id)
        assert await netmod.next() == (b"back", Single(b.peer_id))
        assert netmod.size_hint() == min(middle.driver.mtu(a.peer_id), middle.driver.mtu(b.peer_id)) > 0
        assert netmod.metrics(a.peer_id).peer_id == a.peer_id


async def test_its_errors_hold_the_frame() -> None:
    async with star(1) as (middle, _), node() as stranger:
        netmod = Netmod(middle.driver)
        with pytest.raises(NotANeighbour) as unknown:
            await netmod.send(b"frame", Single(stranger.peer_id))
        assert unknown.value.frame == b"frame"
        long = bytes(middle.driver.max_frame_size + 1)
        with pytest.raises(FrameTooLong) as refused:
            await netmod.send(long, FLOOD)
        assert refused.value.frame == long


async def test_peering_starts_with_a_ticket_and_nothing_less() -> None:
    async with node() as one, node() as other:
        netmod = Netmod(one.driver)
        with pytest.raises(AddressError):
            netmod.start_peering("198.51.100.7:9330")
        with pytest.raises(SelfDial):
            netmod.start_peering(str(ticket(one.endpoint)))
        assert netmod.start_peering(str(ticket(other.endpoint))) == other.peer_id
        await until(lambda: one.is_neighbour(other))
