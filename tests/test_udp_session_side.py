"""What the session may say and ask, before there is a peer, with one, and after it."""

import pytest
from udp_network import Link
from udp_peers import World

from overlay.protocol.codes import CloseCode
from overlay.protocol.udp.connection import Phase, Proven
from overlay.protocol.udp.wire import MINIMUM_DATAGRAM


def test_before_the_peer_is_proven_nothing_may_be_sent() -> None:
    world = World()
    core = world.dialler.one
    assert core.phase is Phase.OPENING
    assert core.sendable(0.0) == 0
    for send in (
        lambda: core.send_control(b"x"),
        lambda: core.send_stream(4, 0, b"x"),
        lambda: core.send_datagram(b"x"),
    ):
        with pytest.raises(RuntimeError, match="proven"):
            send()
    assert core.rtt is core.probe_timeout is None
    assert core.mtu == MINIMUM_DATAGRAM
    assert core.max_datagram_size == core.congestion_window == 0
    assert core.loss == 0.0
    assert core.destination == b""
    assert len(core.ids) == 1


def test_a_dialler_may_speak_as_soon_as_the_peer_is_proven() -> None:
    """What it says is there with the acceptor's first answer, a round trip before it is confirmed."""
    world = World()
    world.dialler.say(100)
    assert world.run(5.0, lambda: world.dialler.has(Proven))
    proven = world.now
    assert world.run(5.0, lambda: world.acceptor.control_received == 100)
    assert world.now == pytest.approx(proven + 0.025)


def test_with_a_peer_the_facts_are_there() -> None:
    link = Link(delay=0.025, loss=0.1, mtu=1400, rate=6.25e6, queue=300_000)
    world = World(link, Link(delay=0.025, mtu=1400)).open()
    world.transfer(1_000_000, 30.0)
    core = world.dialler.one
    assert core.rtt is not None
    assert core.probe_timeout is not None
    assert 0.05 <= core.rtt < core.probe_timeout < 0.5
    assert 0.05 < core.loss < 0.2
    assert 1300 < core.mtu <= 1400
    assert core.congestion_window > 2 * core.mtu
    assert core.max_datagram_size == core.mtu - 30
    assert core.destination == world.acceptor.one.ids[1]
    assert not core.is_closing


def test_after_the_end_nothing_is_taken() -> None:
    world = World().open().quiet()
    core = world.dialler.one
    core.close(CloseCode.NO_ERROR)
    assert core.is_closing
    assert not core.is_over
    assert core.sendable(world.now) == 0
    core.send_control(b"x")
    core.send_stream(4, 0, b"x")
    assert not core.send_datagram(b"x")
    world.run(5.0)
    assert core.is_over
    assert world.acceptor.control_received == 0
    assert world.acceptor.got(4) == 0
