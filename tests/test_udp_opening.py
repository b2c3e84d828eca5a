"""The time before it is certain: packets that come before the keys, and reminders of what was lost."""

from udp_network import Link
from udp_peers import Dialler, Letter, World

from overlay.protocol.udp.connection import Confirmed, Proven
from overlay.protocol.udp.opening import INTERVAL, MAXIMUM_BYTES, MAXIMUM_PACKETS, Opening
from overlay.protocol.udp.wire import DATA, DATA_OVERHEAD, HANDSHAKE, MAXIMUM_DATAGRAM


def test_early_packets_are_given_back_once_and_in_order() -> None:
    opening = Opening()
    buffer = bytearray(b"aabbc")
    opening.keep(memoryview(buffer), 2)
    buffer[:] = bytes(5)
    opening.keep(b"dd", 2)
    assert opening.proven(0.0) == [b"aa", b"bb", b"c", b"dd"]
    assert opening.proven(0.0) == []


def test_what_is_kept_is_bounded_in_packets_and_in_bytes() -> None:
    opening = Opening()
    for _ in range(100):
        opening.keep(b"x" * 300, 30)
    assert len(opening.proven(0.0)) == MAXIMUM_PACKETS
    opening = Opening()
    for _ in range(100):
        opening.keep(bytes(MAXIMUM_BYTES // 4), MAXIMUM_BYTES // 4)
    opening.keep(bytes(MAXIMUM_DATAGRAM), MAXIMUM_DATAGRAM)
    assert sum(map(len, opening.proven(0.0))) == MAXIMUM_BYTES


def test_reminders_begin_with_the_keys_and_come_evenly() -> None:
    opening = Opening()
    assert opening.next_timeout() is None
    assert not opening.reminds(1000.0)
    opening.proven(5.0)
    now = 5.0
    for _ in range(5):
        due = opening.next_timeout()
        assert due == now + INTERVAL
        assert not opening.reminds(due - 0.001)
        assert opening.reminds(due)
        assert not opening.reminds(due)
        now = due


def overtaken(world: World) -> list[Letter]:
    """What the dialler has sent when it has proven the acceptor, DATA first; the link does not take it any more."""
    assert world.run(5.0, lambda: world.dialler.has(Proven))
    world.there.up = False
    world.run(0.0)
    letters = [letter for letter in world.dialler.sent if letter.data[0] == HANDSHAKE][-4:]
    data = [letter for letter in world.dialler.sent if letter.data[0] == DATA]
    assert data
    return data + letters


def test_data_that_overtakes_the_handshake_waits_for_the_keys() -> None:
    """Nothing is sent twice: what was said first is there as soon as the dialler's key is proven."""
    dialler = Dialler()
    dialler.say(100)
    world = World(dialler=dialler)
    letters = overtaken(world)
    core = world.acceptor.one
    for letter in letters[:-1]:
        core.receive_datagram(letter.data, letter.source, world.now)
    world.acceptor.datagrams_to_send(world.now)
    assert not world.acceptor.has(Proven)
    assert world.acceptor.control_received == 0
    core.receive_datagram(letters[-1].data, letters[-1].source, world.now)
    world.acceptor.datagrams_to_send(world.now)
    assert world.acceptor.has(Proven)
    assert world.acceptor.control_received == 100
    assert world.acceptor.one.is_closing is False


def test_garbage_that_comes_before_the_keys_costs_nothing_but_the_favour() -> None:
    """It fills the place of what is kept, from the right address and from another one; then all goes on as ever."""
    dialler = Dialler()
    dialler.say(100)
    world = World(dialler=dialler)
    assert world.run(5.0, lambda: world.acceptor.core is not None)
    core = world.acceptor.one
    for number in range(1000):
        junk = bytes([DATA]) + core.ids[0] + number.to_bytes(4, "big") + bytes(200)
        core.receive_datagram(junk, ("dialler", "elsewhere")[number % 2], world.now)
    assert len(core._opening._early) == MAXIMUM_PACKETS
    world.open()
    assert world.run(5.0, lambda: world.acceptor.control_received == 100)
    assert world.acceptor.protection.forged == MAXIMUM_PACKETS
    assert not core.is_closing


def test_a_lost_confirmation_is_repeated_long_before_the_probe_timeout_of_a_far_peer() -> None:
    """With a round trip of 5 s the probe timeout is 15 s: half of what a dial has."""
    world = World(Link(delay=2.5), Link(delay=2.5))
    assert world.run(30.0, lambda: world.dialler.has(Proven))
    # All that the acceptor says in its first moment as a peer is lost, and then it hears nothing to acknowledge.
    world.back.up = False
    assert world.run(30.0, lambda: world.acceptor.has(Proven))
    proven_at = world.now
    world.network.change(proven_at + 1.0, world.back, up=True)
    world.acceptor.feed = lambda *_: None  # type: ignore[method-assign]
    assert world.run(20.0, lambda: world.dialler.has(Confirmed))
    assert world.now <= proven_at + INTERVAL + 2.5 + 0.1


def test_the_loss_of_what_a_far_dialler_says_first_is_noticed_by_its_reminders() -> None:
    """Their acknowledgement shows the gap after a round trip; the probe timeout would be three of them."""
    dialler = Dialler()
    dialler.say(100)
    world = World(Link(delay=2.5), Link(delay=2.5), dialler=dialler)
    lost: list[float] = []
    take = world.acceptor.feed

    def feed(letter: Letter, now: float) -> None:
        if letter.data[0] == DATA and not lost:
            lost.append(now)
        else:
            take(letter, now)

    world.acceptor.feed = feed  # type: ignore[method-assign]
    assert world.run(60.0, lambda: world.acceptor.control_received == 100)
    assert world.now <= lost[0] + INTERVAL + 5.0 + 0.2


def test_reminders_end_when_all_is_certain() -> None:
    """A PING or DONE alone makes the shortest packet that there is: while it opens they leave, and then never."""
    world = World(Link(delay=2.5), Link(delay=2.5)).open()
    shortest = DATA_OVERHEAD + 1
    sent = [len(host.sent) for host in world.hosts]
    assert any(len(letter) == shortest for host in world.hosts for letter in host.sent)
    world.run(60.0)
    for host, before in zip(world.hosts, sent, strict=True):
        assert not [letter for letter in host.sent[before:] if len(letter) == shortest]
