"""What strangers and false peers try against a connection, at every stage of its life."""

import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from udp_network import Attachment, Link
from udp_peers import Dialler, Letter, World

from overlay.protocol.codes import CloseCode
from overlay.protocol.udp.connection import AddressChanged, Closed, Confirmed, Phase, Proven
from overlay.protocol.udp.cookie import read_cookie
from overlay.protocol.udp.wire import (
    COOKIE,
    DATA,
    HANDSHAKE,
    ID_SIZE,
    KEY_PHASE,
    KNOCK,
    MINIMUM_DATAGRAM,
    RESET,
    TOKEN_SIZE,
)

# --- stateless resets


def test_a_reset_that_was_fetched_before_the_connection_began_does_not_end_it() -> None:
    """Whoever sees the COOKIE go by knows the acceptor's id, and asks for its RESET while it is nobody's yet."""
    world = World()
    assert world.run(5.0, lambda: any(letter.data[0] == COOKIE for letter in world.acceptor.sent))
    found = read_cookie(world.acceptor.sent[-1].data, world.dialler.one.ids[0])
    assert found is not None
    acceptor, _ = found
    assert world.acceptor.core is None
    fetched = world.acceptor.tokens.reset(acceptor, 100)
    assert fetched is not None

    def attack() -> None:
        world.dialler.one.receive_datagram(fetched, "acceptor", world.now)
        world.run(0.0)
        assert not world.dialler.one.is_closing

    for event in (Proven, Confirmed):
        assert world.run(5.0, lambda event=event: world.dialler.has(event))  # type: ignore[misc]
        attack()
    world.transfer(50_000, 10.0, 50_000)
    attack()
    for host in world.hosts:
        assert host.established._remote.current != acceptor


def test_both_leave_the_ids_of_the_handshake_at_once() -> None:
    """Each finds the other by an id that was never seen beside the handshake's, and can be reset by that one."""
    world = World().open().quiet()
    for host, other in (world.hosts, world.hosts[::-1]):
        assert host.one.destination == other.one.ids[1]
        token = other.tokens.token(host.one.destination)
        reset = bytes([RESET]) + host.one.destination + token
        assert AddressChanged(other.address) in host.events
        host.one.receive_datagram(reset, other.address, world.now)
        assert host.one.is_over


def test_tokens_cannot_be_guessed_one_bit_at_a_time() -> None:
    world = World().open().quiet()
    dialler = world.dialler.one
    token = world.acceptor.tokens.token(dialler.destination)
    for bit in range(8 * TOKEN_SIZE):
        wrong = (int.from_bytes(token, "big") ^ 1 << bit).to_bytes(TOKEN_SIZE, "big")
        dialler.receive_datagram(bytes([RESET]) + dialler.destination + wrong, "acceptor", world.now)
    assert not dialler.is_closing


# --- every stage


STAGES: dict[str, Callable[[World], bool]] = {
    "knocking": lambda world: bool(world.dialler.sent),
    "cookie": lambda world: bool(world.acceptor.sent),
    "hello": lambda world: world.acceptor.core is not None,
    "proof": lambda world: world.dialler.has(Proven),
    "accepted": lambda world: world.acceptor.has(Proven),
    "confirmed": lambda world: world.dialler.has(Confirmed),
    "established": lambda world: world.acceptor.got(4) > 50_000,
    "closing": lambda world: world.dialler.one.is_closing,
    "draining": lambda world: world.acceptor.core is not None and world.acceptor.one.phase is Phase.DRAINING,
}
PACKETS = [KNOCK, COOKIE, HANDSHAKE, RESET, DATA, DATA | KEY_PHASE]


def reach(world: World, stage: str) -> None:
    """Let a world come to a stage of its life, with work to do."""
    world.dialler.send(4, 100_000)
    if stage in {"closing", "draining"}:
        assert world.run(30.0, lambda: world.acceptor.got(4) > 50_000)
        world.dialler.one.close(CloseCode.RETIRED)
        world.wake()
    assert world.run(30.0, lambda: STAGES[stage](world))


@st.composite
def damage(draw: st.DrawFn, seen: list[bytes]) -> bytes:
    """A packet that was never sent: made of nothing, or of one that was."""
    kind = draw(st.sampled_from(["noise", "flip", "cut", "longer", "relabel", "body"]))
    if kind == "noise":
        return bytes([draw(st.sampled_from(PACKETS))]) + draw(st.binary(max_size=100))
    data = bytearray(draw(st.sampled_from(seen)))
    if kind == "flip":
        data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
    elif kind == "cut":
        del data[draw(st.integers(0, len(data) - 1)) :]
    elif kind == "longer":
        data += draw(st.binary(min_size=1, max_size=20))
    elif kind == "relabel":
        data[0] = draw(st.sampled_from([kind for kind in PACKETS if kind != data[0]]))
    else:
        body = draw(st.integers(0, len(data) - 1))
        data[body:] = bytes([data[body] ^ 1]) + bytes(len(data) - body - 1)
    return bytes(data)


@pytest.mark.parametrize("stage", STAGES)
@settings(max_examples=12)
@given(st.data())
def test_damaged_and_repeated_packets_change_nothing_at_any_stage(stage: str, data: st.DataObject) -> None:
    """From the peer's address and from another one, to both sides; then all goes on, and ends as it would have."""
    world = World(Link(delay=0.025, mtu=1400, rate=6.25e6), Link(delay=0.025, mtu=1400, rate=6.25e6))
    reach(world, stage)
    seen = [letter.data for host in world.hosts for letter in host.sent]
    # A knock that is damaged in its padding is a knock, and asks for nothing but another cookie.
    bad = data.draw(st.lists(damage(seen) | st.sampled_from(seen[:-1] or seen), min_size=1, max_size=30))
    sent = [len(host.sent) for host in world.hosts]
    said = [list(host.events) for host in world.hosts]
    for host, other in (world.hosts, world.hosts[::-1]):
        if stage == "knocking" and host is world.acceptor:
            continue
        for datagram in bad:
            # What was sent in the last moment is still on its way: to feed it is no repetition.
            if datagram in seen[-20:] or host.core is None:
                continue
            for source in (other.address, "elsewhere"):
                host.feed(Letter(datagram, source, host.address), world.now)
    assert [host.events for host in world.hosts] == said
    extra = sum(len(host.datagrams_to_send(world.now)) for host in world.hosts)
    assert extra <= 2 * len(bad) + 60, sent
    if stage in {"closing", "draining"}:
        world.run(20.0)
    else:
        world.open()
        assert world.run(30.0, lambda: world.acceptor.got(4) == 100_000)
        assert world.acceptor.begun == 1
        assert world.dialler.established.path.candidates == ()
        world.dialler.one.close(CloseCode.RETIRED)
        world.run(20.0)
    assert world.dialler.closed == Closed(CloseCode.RETIRED, "", "us")
    assert world.acceptor.closed == Closed(CloseCode.RETIRED, "", "peer")
    assert all(host.one.is_over for host in world.hosts)


@pytest.mark.parametrize("change", ["lost", "doubled", "late"])
@pytest.mark.parametrize("position", range(16))
def test_any_packet_of_the_beginning_may_be_lost_doubled_or_late(position: int, change: str) -> None:
    """Of both directions, the first DATA included: all is certain soon, whichever it is."""
    world = World(Link(delay=0.025, mtu=300), Link(delay=0.025, mtu=300))
    letters = 0
    for host, place in zip(world.hosts, world.places, strict=True):

        def feed(
            letter: Letter, now: float, true: Callable[[Letter, float], None] = host.feed, place: Attachment = place
        ) -> None:
            nonlocal letters
            letters += 1
            if letters - 1 != position:
                true(letter, now)
            elif change == "doubled":
                true(letter, now)
                true(letter, now)
            elif change == "late":
                world.network.at(now + 0.3, place.arrive, letter)

        host.feed = feed  # type: ignore[method-assign]
    world.open(4.0)
    world.transfer(20_000, 10.0, 20_000)


# --- far away


def test_a_dial_over_five_seconds_and_much_loss_comes_through_in_its_time() -> None:
    """Three round trips of 5 s in 30 s, of which the acceptor gives its part 20, and every fifth packet is lost."""
    done = 0
    for seed in range(40):
        world = World(
            Link(delay=2.5, loss=0.2, mtu=300), Link(delay=2.5, loss=0.2, mtu=300), seed=seed, handshake_timeout=30.0
        )
        world.acceptor.settings = {"handshake_timeout": 20.0}
        done += world.run(30.0, lambda world=world: all(host.has(Confirmed) for host in world.hosts))  # type: ignore[misc]
    assert done >= 36


# --- keys


@pytest.mark.parametrize("seed", range(3))
def test_keys_are_updated_under_load_over_a_network_that_does_everything(seed: int) -> None:
    """Loss, reordering and copies at once, both directions full, and forged packets of both phases among them."""
    values = {"delay": 0.025, "rate": 6.25e6, "queue": 300_000, "mtu": 1400}
    weather = {"loss": 0.05, "reorder": 0.1, "reorder_depth": 50, "duplicate": 0.1}
    world = World(Link(**values, **weather), Link(**values, **weather), seed=seed).open()  # type: ignore[arg-type]
    dice = random.Random(seed)
    forged = [0, 0]
    for index, host in enumerate(world.hosts):
        host.protection._update_after = 80

        def forge(letter: Letter, index: int = index) -> Iterable[Letter]:
            if letter.data[0] & ~KEY_PHASE != DATA:
                return
            # A genuine packet under the other phase, and noise under both: neither commits anybody to new keys.
            forged[index] += 2
            yield Letter(bytes([letter.data[0] ^ KEY_PHASE]) + letter.data[1:], letter.source, letter.target)
            noise = letter.data[:9] + dice.randbytes(len(letter.data) - 9)
            yield Letter(noise, letter.source, letter.target)

        host.hostile = forge
    world.transfer(1_000_000, 120.0, 1_000_000)
    generations = [host.protection.generation for host in world.hosts]
    assert min(generations) > 4
    assert abs(generations[0] - generations[1]) <= 1
    for host, count in zip(world.hosts, forged, strict=True):
        assert host.protection.forged >= count > 500
        assert not host.one.is_closing


def test_more_forged_packets_than_the_cipher_bears_end_it_with_a_code_and_nothing_is_opened_any_more() -> None:
    """RFC 9001 section 6.6."""
    world = World().open().quiet()
    core = world.acceptor.one
    protection = world.acceptor.protection
    protection.forged = protection._aead.integrity - 1
    dialler = world.dialler.established
    genuine = dialler._seal(dialler.transmission.frame_alone(b"\x06late"), "acceptor").data
    core.receive_datagram(bytes([DATA]) + core.ids[0] + bytes(100), "dialler", world.now)
    core.receive_datagram(genuine, "dialler", world.now)
    world.run(5.0)
    assert world.acceptor.closed is not None
    assert (world.acceptor.closed.code, world.acceptor.closed.by) == (CloseCode.AEAD_LIMIT_REACHED, "us")
    assert world.acceptor.datagrams == []
    assert world.dialler.closed is not None
    assert (world.dialler.closed.code, world.dialler.closed.by) == (CloseCode.AEAD_LIMIT_REACHED, "peer")


# --- addresses


def opened(rate: float = 6.25e6) -> World:
    values = {"delay": 0.025, "rate": rate, "queue": 300_000, "mtu": 1400}
    return World(Link(**values), Link(**values)).open()  # type: ignore[arg-type]


@pytest.mark.parametrize("who", [0, 1])
def test_who_moves_himself_goes_on_under_another_id_at_once(who: int) -> None:
    """RFC 9000 section 9.5: no id is seen at both places, in neither direction; idle or not, the peer hears of it."""
    world = opened()
    moving, staying = world.hosts[who], world.hosts[1 - who]
    world.transfer(200_000, 10.0, 200_000).quiet()
    world.run(3.0)
    before = moving.one.destination, staying.one.destination
    mark = len(moving.sent), len(staying.sent)
    moving.address = "new place"
    moving.one.local_address_changed(world.now)
    assert moving.one.rtt is None
    world.run(0.0)
    assert min(map(len, moving.sent[mark[0] :])) <= MINIMUM_DATAGRAM
    assert world.run(5.0, lambda: AddressChanged("new place") in staying.events)
    world.transfer(300_000, 20.0, 300_000)
    here = {letter.data[1 : 1 + ID_SIZE] for letter in moving.sent[mark[0] :]}
    there = {letter.data[1 : 1 + ID_SIZE] for letter in staying.sent[mark[1] :] if letter.target == "new place"}
    # The challenge to the new address is the one thing that still goes to the old id, before the peer is believed.
    assert before[0] not in here
    assert moving.one.destination in here
    assert staying.one.destination in there
    assert staying.one.destination != before[1]


def test_moving_under_load_loses_nothing() -> None:
    world = opened(rate=1e6)
    dialler, acceptor = world.dialler, world.acceptor
    dialler.send(4, 2_000_000)
    acceptor.send(5, 2_000_000)
    for number in range(3):
        world.run(0.5)
        dialler.address = f"place {number}"
        dialler.one.local_address_changed(world.now)
        world.wake()
    assert world.run(60.0, lambda: acceptor.got(4) == dialler.got(5) == 2_000_000)
    assert AddressChanged("place 2") in acceptor.events
    assert not any(host.one.is_closing for host in world.hosts)


def test_a_full_window_does_not_keep_the_news_of_a_move_back() -> None:
    """Who only sends has no acknowledgements to show, and what is in flight on the old path says nothing of the new."""
    world = opened()
    world.dialler.send(4, 5_000_000)
    world.run(0.4)
    world.dialler.address = "new place"
    world.dialler.one.local_address_changed(world.now)
    moved, mark = world.now, len(world.dialler.sent)
    world.run(0.0)
    # Of a size that any path carries: probes of the MTU, which leave too, may be lost for theirs.
    assert min(map(len, world.dialler.sent[mark:])) <= MINIMUM_DATAGRAM
    assert world.run(5.0, lambda: AddressChanged("new place") in world.acceptor.events)
    # There, back with the challenge, and there with its answer; and the old address is silent for a probe timeout.
    assert world.now < moved + 0.5


def test_moving_is_of_no_use_before_it_is_open_and_after_its_end() -> None:
    world = World()
    for done in (lambda: bool(world.dialler.sent), lambda: world.dialler.has(Proven)):
        assert world.run(5.0, done)
        world.dialler.one.local_address_changed(world.now)
    world.open()
    world.dialler.one.close(CloseCode.NO_ERROR)
    world.dialler.one.local_address_changed(world.now)
    world.run(20.0)
    assert all(host.one.is_over for host in world.hosts)
    world.dialler.one.local_address_changed(world.now)
    assert world.dialler.one.bursts_to_send(world.now) == []


def test_more_moves_than_ids_fall_back_to_the_last_one() -> None:
    """A peer that is not heard gives no new ids: the connection is worth more than what an id may tell."""
    world = opened().quiet()
    world.there.up = world.back.up = False
    destinations = []
    for _ in range(5):
        world.dialler.one.local_address_changed(world.now)
        destinations.append(world.dialler.one.destination)
        world.run(0.1)
    assert len(set(destinations)) == 2
    world.there.up = world.back.up = True
    world.transfer(20_000, 30.0, 20_000)


def test_two_that_move_at_once_and_lose_each_other_end_in_silence_and_send_next_to_nothing() -> None:
    """Nobody can tell either of them where the other one is; the session dials anew."""
    world = World(Link(delay=0.025), Link(delay=0.025), dialler=Dialler(None, idle_timeout=20.0), idle_timeout=20.0)
    world.open().quiet()
    before = sum(len(host.sent) for host in world.hosts)
    for host in world.hosts:
        host.address = "new " + host.address
        host.send(4, 5000)
        host.one.local_address_changed(world.now)
    world.run(60.0)
    for host in world.hosts:
        assert host.closed is not None
        assert host.closed.code == CloseCode.SILENT
        assert host.one.is_over
    assert sum(len(host.sent) for host in world.hosts) - before < 200
