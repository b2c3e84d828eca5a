"""A connection that has its keys: new keys, addresses and ids under load, and who only pretends to have moved."""

import pytest
from udp_network import Link
from udp_peers import Dialler, Letter, World

from overlay.protocol.codes import CloseCode
from overlay.protocol.udp.connection import AddressChanged, IdsChanged
from overlay.protocol.udp.path import AMPLIFICATION
from overlay.protocol.udp.wire import DATA, KEY_PHASE, MINIMUM_DATAGRAM

MEGABYTE = 1_000_000


def world(**values: float) -> World:
    values = {"delay": 0.025, "rate": 6.25e6, "queue": 300_000, "mtu": 1400} | values
    return World(Link(**values), Link(**values)).open()  # type: ignore[arg-type]


def data_ids(letters: list[Letter]) -> set[bytes]:
    return {letter.data[1:9] for letter in letters if letter.data[0] & ~KEY_PHASE == DATA}


# --- keys


@pytest.mark.parametrize("loss", [0.0, 0.1, 0.3])
def test_keys_are_updated_under_load(loss: float) -> None:
    """Both sides do so by themselves, again and again, and no byte suffers."""
    it = world(loss=loss)
    for host in it.hosts:
        host.protection._update_after = 100
    it.transfer(MEGABYTE, 120.0, MEGABYTE)
    generations = [host.protection.generation for host in it.hosts]
    assert min(generations) > 4
    assert abs(generations[0] - generations[1]) <= 1
    if not loss:
        assert [host.protection.forged for host in it.hosts] == [0, 0]
    assert not any(host.one.is_closing for host in it.hosts)


def test_packets_of_the_last_keys_open_as_long_as_they_can_be_under_way() -> None:
    it = world(reorder=0.3, reorder_depth=50, duplicate=0.1)
    for host in it.hosts:
        host.protection._update_after = 200
    it.transfer(2 * MEGABYTE, 60.0)
    assert it.dialler.protection.generation > 4
    assert it.acceptor.protection.forged == 0


def test_keys_of_before_are_kept_for_as_long_as_the_path_needs() -> None:
    it = world(delay=0.4)
    it.transfer(20_000, 20.0)
    for host in it.hosts:
        assert host.one.probe_timeout is not None
        assert host.one.probe_timeout > 0.8
        assert host.protection.probe_timeout == host.one.probe_timeout == host.established.path.probe_timeout


# --- addresses


@pytest.mark.parametrize("who", [0, 1])
def test_a_peer_that_moves_under_a_transfer_is_followed(who: int) -> None:
    """Its packets come from elsewhere: it is challenged there, and then the stream goes on there, under a new id."""
    it = world()
    moving, staying = it.hosts[who], it.hosts[1 - who]
    moving.send(4, 2 * MEGABYTE)
    staying.send(5, 2 * MEGABYTE)
    it.run(0.3)
    before = staying.one.destination
    moving.address = "new place"
    assert it.run(30.0, lambda: AddressChanged("new place") in staying.events)
    moved = len(staying.sent)
    it.wake()
    assert it.run(60.0, lambda: staying.got(4) == moving.got(5) == 2 * MEGABYTE)
    assert {letter.target for letter in staying.sent[moved:]} == {"new place"}
    assert data_ids(staying.sent[moved:]) == {staying.one.destination}
    assert staying.one.destination != before
    # Of the ids that were given up the last is still known; there are new ones for the next time.
    assert before in moving.one.ids
    assert len(moving.one.ids) == 4
    added = [event for event in moving.events if isinstance(event, IdsChanged) and event.added]
    assert [len(event.added) for event in added] == [2, 1, 1]
    it.dialler.one.close(CloseCode.NO_ERROR)
    it.run(20.0)
    assert all(host.one.is_over for host in it.hosts)


def test_a_peer_may_move_again_and_again() -> None:
    it = world()
    it.dialler.send(4, 40 * MEGABYTE)
    destinations = []
    for number in range(5):
        it.dialler.address = f"place {number}"
        place = it.dialler.address
        assert it.run(30.0, lambda place=place: AddressChanged(place) in it.acceptor.events)  # type: ignore[misc]
        it.run(1.0)
        destinations.append(it.acceptor.one.destination)
    assert len(set(destinations)) == 5
    removed = [event.removed for event in it.dialler.events if isinstance(event, IdsChanged) and event.removed]
    assert len(removed) == 5
    assert not set(it.dialler.one.ids) & {one for ids in removed for one in ids}


def test_an_idle_peer_that_moves_is_found_by_its_next_packet() -> None:
    it = world()
    it.transfer(10_000, 5.0, 10_000).quiet()
    it.run(10.0)
    it.dialler.address = "new place"
    it.dialler.send(4, 10)
    assert it.run(10.0, lambda: AddressChanged("new place") in it.acceptor.events)
    it.acceptor.send(5, 50_000)
    it.wake()
    assert it.run(10.0, lambda: it.dialler.got(5) == 60_000)


@pytest.mark.parametrize("overtaking", [True, False])
def test_copies_from_another_address_change_nothing(overtaking: bool) -> None:
    """Somebody sends copies of all packets from a victim's address: it gets no flood, and the transfer goes on."""
    it = world()
    fed = 0

    def copies(letter: Letter) -> list[Letter]:
        nonlocal fed
        fed += len(letter)
        copy = Letter(letter.data, "victim", letter.target)
        return [copy] if overtaking else [Letter(letter.data, letter.source, letter.target), copy]

    it.acceptor.hostile = copies
    it.transfer(MEGABYTE, 30.0, MEGABYTE)
    it.run(20.0)
    assert AddressChanged("victim") not in it.acceptor.events
    to_victim = [letter for letter in it.acceptor.sent if letter.target == "victim"]
    assert sum(map(len, to_victim)) <= AMPLIFICATION * fed
    assert max(map(len, to_victim), default=0) < 50
    assert bool(to_victim) is overtaking
    if not overtaking:
        assert it.acceptor.established.path.candidates == ()


def test_only_what_is_new_and_newest_speaks_for_another_address() -> None:
    """Replays earn no bytes for a victim, and a packet that was overtaken says nothing of where its sender is now."""
    it = world().quiet()
    it.run(2.0)
    acceptor, dialler = it.acceptor, it.dialler.established
    held, fresh, newer = (dialler._seal(dialler.transmission.frame_alone(b"\x01"), "acceptor").data for _ in range(3))
    acceptor.one.receive_datagram(fresh, "dialler", it.now)
    acceptor.one.receive_datagram(held, "victim", it.now)
    assert acceptor.established.path.candidates == ()
    for _ in range(5):
        acceptor.one.receive_datagram(newer, "victim", it.now)
    assert list(acceptor.established.path.candidates) == ["victim"]
    assert acceptor.established.path._candidates["victim"].received == len(newer)


def test_a_single_short_packet_is_enough_to_be_challenged() -> None:
    """What may be answered is three times what came; the shortest packet there is must do."""
    it = world().quiet()
    it.run(2.0)
    ping = it.dialler.established._seal(it.dialler.established.transmission.frame_alone(b"\x01"), "acceptor")
    assert len(ping.data) == 30
    before = len(it.acceptor.sent)
    it.acceptor.one.receive_datagram(ping.data, "new place", it.now)
    it.run(0.0)
    [challenge] = [letter for letter in it.acceptor.sent[before:] if letter.target == "new place"]
    assert len(challenge) <= AMPLIFICATION * 30
    it.run(20.0)
    # What it may cost is counted over all attempts.
    assert sum(len(letter) for letter in it.acceptor.sent if letter.target == "new place") <= AMPLIFICATION * 30
    assert it.acceptor.established.path.candidates == ()


def test_what_was_learnt_of_the_old_path_is_forgotten() -> None:
    it = world()
    it.transfer(MEGABYTE, 10.0).quiet()
    assert it.dialler.one.mtu > 1300
    assert it.dialler.one.rtt is not None
    it.dialler.established._move(it.now)
    assert it.dialler.one.mtu == MINIMUM_DATAGRAM
    assert it.dialler.one.rtt is it.dialler.one.probe_timeout is None
    it.transfer(10_000, 10.0)
    assert it.dialler.one.rtt is not None


# --- what is known


def test_progress_is_what_the_peer_has_acknowledged_while_something_is_under_way() -> None:
    """To be heard is not enough, and to send is nothing."""
    it = world().transfer(10_000, 5.0, 10_000).quiet()
    it.run(3.0)
    dialler = it.dialler.one
    acknowledged = it.dialler.established._acknowledged_at
    it.acceptor.send(5, 1000)
    it.run(1.0)
    heard = dialler.last_progress(it.now)
    assert heard > it.now - 1.0 > acknowledged
    it.there.up = False
    it.dialler.send(4, 1000)
    it.acceptor.send(5, 100)
    it.run(2.0)
    assert it.dialler.got(5) == 11_100
    assert dialler.last_progress(it.now) <= heard
    it.there.up = True
    it.run(5.0)
    assert dialler.last_progress(it.now) > it.now - 5.0


def test_what_is_known_during_the_handshake() -> None:
    it = World(dialler=Dialler())
    assert it.dialler.one.last_progress(7.0) == 7.0
    it.open()
    assert it.dialler.one.last_progress(it.now) <= it.now


def test_a_size_that_the_system_refuses_is_left() -> None:
    it = world(mtu=9000).quiet()
    it.run(5.0)
    assert it.dialler.one.mtu > 8000
    it.there.mtu = 1400
    it.dialler.send(4, 30_000)
    it.dialler._feed_session(it.dialler.one, it.now)
    for outgoing in it.dialler.one.bursts_to_send(it.now):
        assert not outgoing.is_mtu_probe
        it.dialler.one.send_refused(outgoing, it.now)
    assert it.dialler.one.mtu == MINIMUM_DATAGRAM
    assert it.run(10.0, lambda: it.acceptor.got(4) == 30_000)


def test_the_search_for_the_mtu_waits_until_the_peer_has_keys() -> None:
    it = World(Link(delay=0.025), Link(delay=0.025))
    assert it.run(5.0, lambda: len(it.dialler.sent) > 4)
    early = max(map(len, it.dialler.sent))
    assert early <= 300
    it.open()
    it.run(1.0)
    assert max(map(len, it.dialler.sent)) > 1000
