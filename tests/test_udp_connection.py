"""Whole connections: they live through every network, end as they should, and strangers change nothing about them."""

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from udp_network import Gilbert, Link
from udp_peers import ACCEPTOR, DIALLER, Dialler, Host, Letter, World

from overlay.errors import IdentityMismatch
from overlay.protocol.codes import CloseCode
from overlay.protocol.udp.connection import AddressChanged, Closed, Confirmed, IdsChanged, Phase, Proven, UdpCore
from overlay.protocol.udp.cookie import read_reset
from overlay.protocol.udp.handshake import AcceptorHandshake
from overlay.protocol.udp.handshake_states import HandshakeClosed, State
from overlay.protocol.udp.transmission import Burst
from overlay.protocol.udp.wire import COOKIE, DATA, HANDSHAKE, KNOCK, RESET

MEGABYTE = 1_000_000


def links(**values: float) -> tuple[Link, Link]:
    """The same in both directions."""
    values = {"delay": 0.025} | values
    return Link(**values), Link(**values)  # type: ignore[arg-type]


def end(world: World, code: CloseCode = CloseCode.RETIRED) -> None:
    """The dialler ends it; both forget it in time and are silent."""
    world.dialler.one.close(code, "it was nice")
    world.run(60.0)
    assert world.dialler.closed == Closed(code, "it was nice", "us")
    assert world.acceptor.closed == Closed(code, "it was nice", "peer")
    for host in world.hosts:
        assert host.one.is_over
        assert host.one.next_timeout() is None
        assert host.one.bursts_to_send(world.now) == []


# --- a whole life


@pytest.mark.parametrize("mtu", [300, 1400, 65_507])
def test_a_whole_life(mtu: int) -> None:
    world = World(*links(mtu=mtu)).open()
    assert world.now == pytest.approx(0.175)
    for host in world.hosts:
        assert [type(event) for event in host.events if not isinstance(event, AddressChanged)] == [
            Proven,
            Confirmed,
            IdsChanged,
        ]
        assert host.one.phase is Phase.OPEN
        assert host.one.rtt == pytest.approx(0.05)
    world.transfer(300_000, 30.0, 200_000)
    for host in world.hosts:
        assert host.one.send_datagram(b"x" * host.one.max_datagram_size)
        assert not host.one.send_datagram(b"x" * (host.one.max_datagram_size + 1))
    sizes = [len(b"x" * host.one.max_datagram_size) for host in world.hosts]
    world.quiet()
    assert [len(host.datagrams[0]) for host in reversed(world.hosts)] == sizes
    world.run(10.0)
    assert 0.97 * mtu <= world.dialler.one.mtu <= mtu
    assert world.acceptor.begun == 1
    end(world)


def test_ten_megabytes_through_packets_of_three_hundred_bytes() -> None:
    world = World(*links(mtu=300, rate=6.25e6, queue=400_000)).open()
    began = world.now
    world.transfer(10 * MEGABYTE, 60.0).quiet()
    assert max(map(len, world.dialler.sent[-10_000:])) <= 300 or world.there.counters.too_long < 20
    assert 10 * MEGABYTE / (world.now - began) > 3e6


WEATHER: dict[str, dict[str, Any]] = {
    "1 % lost": {"loss": 0.01},
    "10 % lost": {"loss": 0.1},
    "30 % lost": {"loss": 0.3},
    "lost in bursts": {"gilbert": Gilbert(0.02, 0.3)},
    "reordered": {"reorder": 0.2, "reorder_depth": 50},
    "doubled": {"duplicate": 0.5},
    "all at once": {"loss": 0.1, "reorder": 0.1, "duplicate": 0.2},
    "far": {"delay": 1.0, "loss": 0.05},
}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", WEATHER)
def test_it_is_complete_whatever_the_network_does(name: str, seed: int) -> None:
    values = {"rate": 6.25e6, "queue": 300_000, "mtu": 1400} | WEATHER[name]
    world = World(*links(**values), seed=seed, handshake_timeout=60.0).open(60.0)
    world.transfer(300_000, 120.0, 100_000)
    world.dialler.one.close(CloseCode.NO_ERROR)
    world.run(120.0)
    assert all(host.one.is_over for host in world.hosts)
    assert world.acceptor.closed is not None


def test_a_blackout_of_thirty_seconds_is_survived() -> None:
    world = World(*links(rate=6.25e6, queue=300_000, mtu=1400)).open()
    world.network.blackout(0.5, 30.0, world.there, world.back)
    world.transfer(3 * MEGABYTE, 60.0)
    assert 30.5 < world.now < 36.0
    assert not world.dialler.one.is_closing


def test_a_blackout_in_the_handshake_is_survived() -> None:
    world = World()
    world.network.blackout(0.06, 10.0, world.there, world.back)
    world.open()
    assert world.now < 16.0


# --- how it ends


def test_who_dials_nobody_is_told_so_in_time() -> None:
    world = World(*links(loss=1.0))
    assert not world.run(29.9, lambda: world.dialler.one.is_closing)
    world.run(1.0)
    closed = world.dialler.closed
    assert closed is not None
    assert (closed.code, closed.by) == (CloseCode.HANDSHAKE_TIMEOUT, "network")
    assert world.dialler.one.is_over
    assert 4 < len(world.dialler.sent) <= 16


def test_who_accepts_and_hears_no_more_gives_up() -> None:
    world = World(handshake_timeout=5.0)
    world.network.change(0.12, world.there, up=False)
    world.run(15.0)
    for host, by in ((world.acceptor, "network"), (world.dialler, "peer")):
        assert host.closed is not None
        assert (host.closed.code, host.closed.by) == (CloseCode.HANDSHAKE_TIMEOUT, by)
        assert host.one.is_over


def test_another_key_than_the_one_dialled_ends_it_before_anything_is_proven() -> None:
    world = World(dialler=Dialler(DIALLER.peer_id))
    world.run(20.0)
    closed = world.dialler.closed
    assert closed is not None
    assert isinstance(closed.cause, IdentityMismatch)
    assert closed.by == "us"
    assert world.acceptor.closed is not None
    assert not any(host.has(Proven) for host in world.hosts)
    assert all(host.one.is_over for host in world.hosts)


def test_an_acceptor_that_does_not_want_the_peer_says_why() -> None:
    world = World()
    world.acceptor.on_proven = lambda core: core.close(CloseCode.REFUSED, "not you")
    world.run(20.0)
    assert world.dialler.events == [Proven(ACCEPTOR.peer_id), *world.dialler.events[1:]]
    assert world.dialler.closed == Closed(CloseCode.REFUSED, "not you", "peer")
    assert world.acceptor.closed == Closed(CloseCode.REFUSED, "not you", "us")
    assert all(host.one.is_over for host in world.hosts)


def close_when(world: World, host: Host, condition: Callable[[], bool]) -> None:
    assert world.run(5.0, condition)
    assert not host.one.is_closing
    host.one.close(CloseCode.LOST_RACE, "another was faster")
    assert host.one.is_closing
    host.one.close(CloseCode.RETIRED)
    world.run(60.0)
    assert host.closed is not None
    assert (host.closed.code, host.closed.by) == (CloseCode.LOST_RACE, "us")
    for one in world.hosts:
        assert one.core is None or one.core.is_over


def test_a_dialler_may_close_before_anybody_has_heard_of_it() -> None:
    world = World()
    close_when(world, world.dialler, lambda: bool(world.dialler.sent))
    assert [letter.data[0] for letter in world.dialler.sent] == [KNOCK]
    assert world.acceptor.core is None


def test_a_dialler_may_close_during_tls() -> None:
    world = World()
    close_when(world, world.dialler, lambda: world.acceptor.core is not None)
    assert world.acceptor.closed is not None
    assert (world.acceptor.closed.code, world.acceptor.closed.by) == (CloseCode.LOST_RACE, "peer")
    assert isinstance(world.acceptor.closed.cause, HandshakeClosed)


def test_an_acceptor_may_close_during_tls() -> None:
    world = World()
    close_when(world, world.acceptor, lambda: world.acceptor.core is not None)
    assert world.dialler.closed is not None
    assert (world.dialler.closed.code, world.dialler.closed.by) == (CloseCode.LOST_RACE, "peer")


def test_a_dialler_may_close_before_it_knows_whether_it_is_accepted() -> None:
    """The acceptor gets the goodbye that it can read, whichever comes first."""
    world = World()
    close_when(world, world.dialler, lambda: world.dialler.has(Proven))
    assert not world.dialler.has(Confirmed)
    assert world.acceptor.closed is not None
    assert (world.acceptor.closed.code, world.acceptor.closed.by) == (CloseCode.LOST_RACE, "peer")


def test_an_acceptor_may_close_before_the_dialler_knows() -> None:
    world = World()
    close_when(world, world.acceptor, lambda: world.acceptor.has(Proven))
    assert world.dialler.closed == Closed(CloseCode.LOST_RACE, "another was faster", "peer")


def test_both_may_close_at_once() -> None:
    world = World().open()
    before = len(world.dialler.sent) + len(world.acceptor.sent)
    for host in world.hosts:
        host.one.close(CloseCode.RETIRED)
    world.run(20.0)
    for host in world.hosts:
        assert host.closed == Closed(CloseCode.RETIRED, "", "us")
        assert host.one.is_over
    assert len(world.dialler.sent) + len(world.acceptor.sent) - before < 12


def test_what_is_queued_leaves_before_the_goodbye() -> None:
    world = World().open()
    world.dialler.send(4, 1000)
    world.dialler.say(500)
    world.dialler._feed_session(world.dialler.one, world.now)
    world.dialler.one.close(CloseCode.SESSION_CLOSED)
    world.run(20.0)
    assert world.acceptor.got(4) == 1000
    assert world.acceptor.control_received == 500
    assert world.acceptor.closed == Closed(CloseCode.SESSION_CLOSED, "", "peer")


def test_a_goodbye_that_was_lost_is_said_again_ever_more_rarely() -> None:
    world = World(*links(rate=1e6)).open()
    world.acceptor.send(5, MEGABYTE)
    world.run(0.2)
    world.there.up = False
    world.dialler.one.close(CloseCode.NO_ERROR)
    before, arrived = len(world.dialler.sent), world.back.counters.delivered
    world.run(0.1)
    world.there.up = True
    world.run(20.0)
    assert world.acceptor.closed is not None
    assert world.acceptor.closed.by == "peer"
    goodbyes, arrived = len(world.dialler.sent) - before, world.back.counters.delivered - arrived
    assert 2 <= goodbyes <= 2 + arrived.bit_length()


def test_an_idle_connection_ends_in_silence() -> None:
    world = World(idle_timeout=20.0).open()
    world.quiet()
    # Nothing keeps it alive but the peer: neither what we send nor the raising of the MTU.
    heard = world.dialler.established.heard_at
    world.there.up = world.back.up = False
    world.dialler.send(4, 5000)
    assert not world.run(heard + 19.9 - world.now, lambda: world.dialler.one.is_closing)
    world.run(2.0)
    for host in world.hosts:
        assert host.closed == Closed(CloseCode.SILENT, "nothing was heard for the idle time", "network")
        assert host.one.is_over


def test_the_idle_time_is_no_shorter_than_the_path_needs() -> None:
    world = World(*links(delay=2.0), idle_timeout=1.0).open()
    world.transfer(20_000, 60.0)


def test_a_peer_that_has_forgotten_us_ends_it() -> None:
    world = World().open().quiet()
    other = world.acceptor.tokens.reset(world.dialler.one.destination, 100)
    assert other is not None
    token = read_reset(other)
    assert token is not None
    for wrong in (other[:-1] + bytes([other[-1] ^ 1]), other[:-1], other + b"\0", other[:1] + bytes(8) + other[9:]):
        world.dialler.one.receive_datagram(wrong, "acceptor", world.now)
        assert not world.dialler.one.is_closing
    world.dialler.one.receive_datagram(other, "anywhere", world.now)
    world.run(0.0)
    assert world.dialler.closed is not None
    assert world.dialler.closed.by == "network"
    assert world.dialler.one.is_over


# --- a peer that breaks the rules


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\x7f", CloseCode.FRAME_ERROR),
        (b"", CloseCode.FRAME_ERROR),
        (b"\x04\x04", CloseCode.FRAME_ERROR),
        (b"\x0c\x00\x01x", CloseCode.STATE_ERROR),
        (b"\x02\x80\xff\xff\xff\x00\x00\x00", CloseCode.FLOW_CONTROL_ERROR),
        (b"\x0a\x3f" + bytes(24), CloseCode.STATE_ERROR),
        (b"\x0a\x00" + bytes(24), CloseCode.STATE_ERROR),
        (b"\x03\x80\xff\xff\xff\x01x", CloseCode.FLOW_CONTROL_ERROR),
    ],
)
def test_a_violation_is_answered_with_its_code(payload: bytes, code: CloseCode) -> None:
    world = World().open().quiet()
    flight = world.dialler.established.transmission._flight
    bad = world.dialler.established._seal(Burst(flight.next_number, [payload], len(payload)), "acceptor")
    flight.next_number += 1
    world.acceptor.one.receive_datagram(bad.data, "dialler", world.now)
    world.run(20.0)
    assert world.acceptor.closed is not None
    assert (world.acceptor.closed.code, world.acceptor.closed.by) == (code, "us")
    assert world.dialler.closed is not None
    assert (world.dialler.closed.code, world.dialler.closed.by) == (code, "peer")


def test_a_peer_that_never_listens_to_control_frames_is_cut_off() -> None:
    world = World().open().quiet()
    world.there.up = False
    for _ in range(100):
        world.dialler.one.send_control(bytes(64 * 1024))
    world.run(0.1)
    assert world.dialler.closed is not None
    assert world.dialler.closed.code == CloseCode.FLOW_CONTROL_ERROR


def test_worn_out_keys_end_it_without_a_word() -> None:
    world = World().open().quiet()
    protection = world.dialler.protection
    protection._sealed = protection._aead.confidentiality
    protection._update_after = 1 << 60
    before = len(world.dialler.sent)
    world.dialler.send(4, 1000)
    world.run(1.0)
    assert world.dialler.closed is not None
    assert (world.dialler.closed.code, world.dialler.closed.by) == (CloseCode.AEAD_LIMIT_REACHED, "us")
    assert world.dialler.one.is_over
    assert len(world.dialler.sent) == before
    world = World().open().quiet()
    world.dialler.protection._sealed = protection._aead.confidentiality
    world.dialler.protection._update_after = 1 << 60
    world.dialler.one.close(CloseCode.NO_ERROR)
    world.run(1.0)
    assert world.dialler.closed == Closed(CloseCode.NO_ERROR, "", "us")
    assert world.dialler.one.is_over


# --- strangers


def mangled(letter: Letter, dice: random.Random, seen: list[Letter]) -> Iterator[Letter]:
    """All that somebody can do who sees and sends packets, but has no keys."""
    data = letter.data
    flipped = bytearray(data)
    flipped[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    forged = [
        bytes(flipped),
        data[: dice.randrange(len(data))],
        data + b"\0",
        data[:13] + dice.randbytes(max(len(data) - 13, 0)),
        bytes([dice.choice([KNOCK, COOKIE, HANDSHAKE, RESET, DATA, DATA | 4])]) + dice.randbytes(dice.randrange(100)),
        bytes([dice.choice([COOKIE, HANDSHAKE, RESET, DATA, DATA | 4])]) + data[1:],
        b"",
    ]
    for one in forged:
        yield Letter(one, letter.source, letter.target)
        yield Letter(one, "elsewhere", letter.target)
    yield from dice.sample(seen, min(3, len(seen)))


@pytest.mark.parametrize("seed", range(6))
def test_garbage_replays_and_damage_at_every_stage_change_nothing(seed: int) -> None:
    """The same goes on as without: as many packets, at the same times."""
    traces = []
    for is_attacked in (False, True):
        world = World(*links(mtu=1400, rate=6.25e6), seed=seed)
        dice = random.Random(seed)
        if is_attacked:
            for host in world.hosts:
                seen: list[Letter] = []

                def hostile(letter: Letter, seen: list[Letter] = seen, dice: random.Random = dice) -> Iterable[Letter]:
                    bad = list(mangled(letter, dice, seen))
                    seen.append(letter)
                    return bad

                host.hostile = hostile
        world.open()
        opened = world.now
        world.transfer(100_000, 30.0, 50_000)
        done = world.now
        world.run(5.0)
        assert world.dialler.established.path.candidates == ()
        kinds = [[type(event) for event in host.events] for host in world.hosts]
        traces.append((opened, done, world.acceptor.begun, kinds))
        forged = world.acceptor.protection.forged
        assert (forged > 100) is is_attacked
        end(world)
    honest, attacked = traces
    assert attacked[1] == pytest.approx(honest[1], abs=0.02)
    assert attacked[0] == pytest.approx(honest[0], abs=0.001)
    assert attacked[2] == honest[2] == 1
    assert attacked[3] == honest[3]


def test_a_flood_of_packets_that_do_not_open_is_counted_and_answered_by_nothing() -> None:
    world = World().open().quiet()
    world.run(5.0)
    core = world.acceptor.one
    before, heard = len(world.acceptor.sent), world.acceptor.established.heard_at
    dice = random.Random(1)
    for _ in range(2000):
        core.receive_datagram(
            bytes([DATA]) + core.ids[0] + dice.randbytes(100), dice.choice(["dialler", "x"]), world.now
        )
    world.run(0.0)
    assert world.acceptor.protection.forged >= 2000
    assert len(world.acceptor.sent) == before
    assert world.acceptor.established.heard_at == heard
    assert world.acceptor.established._opened == []
    world.transfer(10_000, 5.0)


def test_neither_before_the_keys_nor_after_the_end_does_data_do_anything() -> None:
    world = World()
    world.dialler.one.receive_datagram(bytes([DATA]) + bytes(100), "acceptor", 0.0)
    world.open().quiet()
    recorded = [letter for letter in world.acceptor.sent if letter.data[0] & DATA == DATA]
    end(world)
    sent = len(world.dialler.sent)
    for letter in (*recorded, *recorded):
        world.dialler.one.receive_datagram(letter.data, letter.source, world.now)
    world.run(1.0)
    assert len(world.dialler.sent) == sent


def test_who_may_not_know_does_not_hear_the_goodbye() -> None:
    """Packets from elsewhere do not make a closing connection talk, and a flood makes it talk less and less."""
    world = World().open().quiet()
    world.there.up = False
    world.dialler.one.close(CloseCode.NO_ERROR)
    world.run(0.01)
    before = len(world.dialler.sent)
    noise = bytes([DATA]) + bytes(100)
    for _ in range(1000):
        world.dialler.one.receive_datagram(noise, "elsewhere", world.now)
        assert world.dialler.one.bursts_to_send(world.now) == []
    for _ in range(1000):
        world.dialler.one.receive_datagram(noise, "acceptor", world.now)
        world.dialler.datagrams_to_send(world.now)
    assert len(world.dialler.sent) - before == 10
    assert {letter.target for letter in world.dialler.sent} == {"acceptor"}


def test_until_all_is_confirmed_only_the_address_of_the_cookie_counts() -> None:
    """Genuine packets that come from elsewhere are not taken: neither the handshake's, nor DATA."""
    world = World()
    assert world.run(5.0, lambda: world.acceptor.core is not None)
    world.there.up = False
    assert world.run(5.0, lambda: world.dialler.has(Proven))
    core = world.acceptor.one
    finished = [letter for letter in world.dialler.sent if letter.data[0] == HANDSHAKE][-3:]
    for source, is_taken in (("elsewhere", False), ("dialler", True)):
        for letter in finished:
            core.receive_datagram(letter.data, source, world.now)
        world.run(0.0)
        assert world.acceptor.has(Proven) is is_taken
    ping = world.dialler.established._seal(world.dialler.established.transmission.frame_alone(b"\x01"), "acceptor")
    for source, is_taken in (("elsewhere", False), ("dialler", True)):
        core.receive_datagram(ping.data, source, world.now)
        core.batch_ended(world.now)
        assert (world.acceptor.established.transmission.numbers.largest >= 0) is is_taken
    assert not world.acceptor.has(Confirmed)
    assert world.acceptor.established.path.candidates == ()


# --- time


def test_the_deadline_is_always_ahead_and_never_far() -> None:
    """No livelock: a turn at the time that was named moves it, or sends something."""
    world = World(*links(loss=0.2), handshake_timeout=60.0).open(60.0)
    world.transfer(50_000, 60.0)
    for host in world.hosts:
        host.one.send_control(b"never heard")
        host.datagrams_to_send(world.now)
        times = []
        for _ in range(20):
            due = host.one.next_timeout()
            if due is None:
                break
            now = max(due, world.now)
            host.one.handle_timeout(now)
            host.datagrams_to_send(now)
            times.append(now)
        assert all(first <= second for first, second in pairwise(times))
        assert len(set(times)) > 5


def test_a_goodbye_without_a_later_call_is_due_at_once() -> None:
    world = World().open().quiet()
    world.dialler.one.close(CloseCode.NO_ERROR)
    assert world.dialler.one.next_timeout() == 0.0
    world.dialler.one.handle_timeout(world.now)
    due = world.dialler.one.next_timeout()
    assert due is not None
    assert world.now < due < world.now + 1.0
    world.dialler.one.handle_timeout(due)
    assert world.dialler.one.is_over


def test_a_burst_is_the_same_as_its_packets() -> None:
    """One read of many packets, in a buffer that is used again, and many reads of one: the same bytes come out."""
    world = World(*links(mtu=1400)).open()
    world.transfer(MEGABYTE, 10.0).quiet()
    world.run(3.0)
    world.there.up = False
    before = len(world.dialler.sent)
    world.dialler.send(4, 10_000)
    world.run(0.045)
    fresh = [letter.data for letter in world.dialler.sent[before:]]
    size = len(fresh[0])
    assert len(fresh) == 8
    assert {len(one) for one in fresh[:-1]} == {size}
    buffer = bytearray(b"".join(fresh))
    world.acceptor.one.receive_burst(memoryview(buffer), size, "dialler", world.now)
    buffer[:] = bytes(len(buffer))
    world.there.up = True
    world.run(0.0)
    assert world.acceptor.got(4) == MEGABYTE + 10_000


def test_a_handshake_may_come_in_bursts_too() -> None:
    """A read that joined packets of the handshake is cut again."""
    world = World(*links(mtu=300))
    assert world.run(5.0, lambda: sum(letter.data[0] == HANDSHAKE for letter in world.acceptor.sent) > 1)
    world.back.up = False
    shaking = [letter.data for letter in world.acceptor.sent if letter.data[0] == HANDSHAKE]
    size = len(shaking[0])
    same = [one for one in shaking if len(one) == size]
    world.dialler.one.receive_burst(b"".join(same + shaking[len(same) :][:1]), size, "acceptor", world.now)
    assert world.dialler.one._handshake.heard
    world.back.up = True
    world.open()


def test_the_core_takes_a_handshake_that_has_failed_already() -> None:
    """An acceptor's first packet may hold a whole hello that TLS refuses."""
    world = World()
    world.run(0.09)
    source = world.acceptor.one._handshake
    assert isinstance(source, AcceptorHandshake)
    source.close(CloseCode.BUSY)
    assert source.state is State.FAILED
    core = UdpCore(source, "dialler", random=random.randbytes, token=lambda _: bytes(16), now=world.now)
    [closed] = core.take_events()
    assert isinstance(closed, Closed)
    assert (closed.code, closed.by) == (CloseCode.BUSY, "us")
    assert core.bursts_to_send(world.now) != []


def test_one_seed_gives_one_run() -> None:
    """Whatever keys are drawn: what a failing test shows can be looked at again."""
    sizes = []
    for _ in range(2):
        world = World(*links(loss=0.1), seed=5, handshake_timeout=60.0).open(60.0).transfer(50_000, 60.0)
        sizes.append(([len(letter) for letter in world.dialler.sent], world.now))
    assert sizes[0] == sizes[1]
