"""Two views of one relation that differ: who has given up, who has restarted, who is late, who is silent."""

from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import HEADER, Wire, World, attached, codes, endings, finish_all, talk

from overlay.protocol.actions import (
    Answered,
    Attached,
    Ending,
    Lingering,
    PeerSettings,
    Recovered,
    Suspected,
)
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import (
    Accept,
    Control,
    Event,
    Hello,
    Ping,
    Pong,
    ProtocolViolation,
    Retire,
    StreamData,
    Streams,
    Sync,
    Window,
)
from overlay.protocol.links import HELD_BYTES, MAY_COME, Link, Phase, SessionState
from overlay.protocol.liveness import Progress
from overlay.protocol.stream import StreamCore


def test_dial_attaches_both_sides_to_one_session() -> None:
    world = World()
    wire = world.connect()
    assert attached(world) == ([wire.id], [wire.id])
    assert world.session(0).mine == world.session(1).theirs
    assert world.session(1).mine == world.session(0).theirs
    talk(world)
    finish_all(world)


def test_stream_continues_over_the_next_connection() -> None:
    world = World()
    wire = world.connect()
    half, _ = talk(world)
    world.write(0, half, 3000)
    world.cut(wire)
    assert world.sides[0].seen(Lingering)
    world.write(0, half, 500)
    world.connect(1, "tcp")
    finish_all(world)
    assert not endings(world, 0)
    assert world.counts["complete"] == 2


def test_resume_time_is_the_smaller_of_both_and_ends_the_session() -> None:
    world = World()
    world.cut(world.connect())
    world.tick(119.9)
    assert not endings(world, 0)
    world.tick(0.2)
    assert endings(world, 0) == endings(world, 1) == [Ending.EXPIRED]
    assert world.sides[0].pool.used == 0
    assert world.sides[0].core.idle


def test_in_another_network_all_are_asked_and_those_without_an_address_are_left_at_once() -> None:
    world = World()
    old, other = world.connect(0, "quic"), world.connect(0, "tcp")
    core = world.sides[0].core
    assert core.selected == old.id
    core.check(world.now, {old.id})
    asked = [core._links.all[one.id].pings for one in (old, other)]
    assert all(asked)
    world.pump(0)
    assert world.sides[0].seen(Suspected) == [Suspected(old.id)]
    assert core.selected == other.id
    world.settle()
    assert not any(asked)


def test_last_acknowledgement_lost_with_its_connection() -> None:
    world = World()
    wire = world.connect()
    half, other = talk(world)
    world.finish(1, other)
    world.settle()
    world.finish(0, half)
    while wire.queues[1]:
        world.deliver(wire, 1)
    world.tick(0.1)
    world.cut(wire)
    assert not half.core.removed
    world.connect(1)
    assert half.core.removed
    finish_all(world)


def test_retired_connection_that_delivers_late_is_heard_until_it_is_closed() -> None:
    world = World()
    first = world.connect(1)
    half, other = talk(world)
    first.frozen = True
    world.write(1, other, 2000)
    second = world.connect(0)
    world.tick(0.1)
    first.frozen = False
    world.settle()
    world.tick(0.1)
    world.settle()
    assert attached(world) == ([second.id], [second.id])
    finish_all(world)
    assert half.read == 2000


@settings(max_examples=60, deadline=None)
@given(order=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), max_size=40), quic=st.booleans())
def test_simultaneous_dial_ends_with_one_connection_and_both_streams(order: list[tuple[int, int]], quic: bool) -> None:
    world = World(quic=quic)
    for side in (0, 1):
        world.sides[side].core.begin(early=True)
        assert world.open(side) is not None
    wires = [world.dial(0), world.dial(1)]
    for number, side in order:
        if ready := world.pieces(wires[number], side):
            world.deliver(wires[number], side, ready[0])
    world.settle()
    for _ in range(4):
        world.tick(0.1)
        world.settle()
    assert attached(world) == ([wires[0].id], [wires[0].id])
    assert len(world.sides[0].halves) == len(world.sides[1].halves) == 2
    assert not endings(world, 0)
    finish_all(world)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (Hello(1, 2, 0, 0, 0, 1), CloseCode.STATE_ERROR),
        (Accept(1, 2, 3, 0), CloseCode.STATE_ERROR),
        (Window(0, 10**6, 0), CloseCode.FLOW_CONTROL_ERROR),
    ],
)
def test_frame_out_of_place_closes_its_connection_and_nothing_else(frame: Control, code: CloseCode) -> None:
    world = World()
    good = world.connect(0, "quic")
    bad = world.connect(0, "tcp")
    talk(world)
    world.sides[1].core.receive(bad.id, frame, world.now)
    world.pump(1)
    world.settle()
    assert codes(world, 1) == [code]
    assert attached(world) == ([good.id], [good.id])
    finish_all(world)


@pytest.mark.parametrize("frame", [Accept(1, 2, 3, 0), Ping(1), Pong(1), Sync(), Retire(), Window(0, 0, 0)])
def test_frame_before_hello_closes_its_connection(frame: Control) -> None:
    world = World()
    world.connect(0)
    wire = world.dial(0, "tcp")
    world.deliver(wire, 1)
    world.sides[1].core.receive(wire.id, frame, world.now)
    world.pump(1)
    assert codes(world, 1) == [CloseCode.STATE_ERROR]
    assert len(attached(world)[1]) == 1


def test_less_received_than_acknowledged_before_is_refused_at_attach() -> None:
    world = World()
    world.cut(world.connect())
    world.connect(0)
    talk(world)
    world.tick(0.1)
    world.settle()
    wire = world.dial(0, "tcp")
    while not any(isinstance(event, Sync) for event in wire.queues[0]):
        world.deliver(wire, 1)
    place = next(n for n, event in enumerate(wire.queues[0]) if isinstance(event, Window))
    wire.queues[0][place] = Window(0, HEADER, 10_000)
    world.settle()
    assert codes(world, 0) == [CloseCode.FLOW_CONTROL_ERROR]
    assert len(attached(world)[0]) == 1


@pytest.mark.parametrize(("piece", "count"), [(4096, HELD_BYTES // 4096), (1, 1024)])
def test_early_bytes_are_held_up_to_their_bound(piece: int, count: int) -> None:
    world = World()
    wire = world.dial(0)
    world.deliver(wire, 1)
    core = world.sides[1].core
    for number in range(count):
        core.receive(wire.id, StreamData(0, number * piece, bytes(piece)), world.now)
    assert not core.take_actions()
    core.receive(wire.id, StreamData(0, 0, b"x"), world.now)
    world.pump(1)
    assert codes(world, 1) == [CloseCode.FLOW_CONTROL_ERROR]


def test_early_bytes_that_overtake_hello_arrive() -> None:
    world = World(quic=True)
    world.sides[0].core.begin(early=True)
    half = world.open(0)
    assert half is not None
    world.write(0, half, 2000)
    wire = world.dial(0)
    world.deliver(wire, 1)
    place = next(n for n in world.pieces(wire, 1) if isinstance(wire.queues[1][n], StreamData))
    world.deliver(wire, 1, place)
    world.settle()
    assert len(world.read(1, world.sides[1].halves[0], 5000)) == 2000


def test_acceptor_sends_no_more_than_can_be_held_before_sync() -> None:
    world = World()
    wire = world.connect(0)
    half, other = talk(world)
    world.cut(wire)
    world.write(1, other, 3000)
    second = world.dial(0)
    world.deliver(second, 1)
    world.sides[1].core._links.all[second.id].early_bytes = HELD_BYTES - 500
    while second.queues[1]:
        world.deliver(second, 1)
    assert sum(len(event.data) for event in second.queues[0] if isinstance(event, StreamData)) == 500
    finish_all(world)
    assert half.read == 3000


def test_silent_connection_is_suspected_and_its_bytes_go_over_a_living_one() -> None:
    world = World()
    quic = world.connect(0, "quic")
    half, other = talk(world)
    world.connect(0, "tcp")
    world.tick(0.1)
    world.settle()
    quic.frozen = True
    world.write(0, half, 3000)
    assert world.sides[0].core.selected == quic.id
    for _ in range(10):
        world.tick(0.1)
        world.settle()
    assert world.sides[0].seen(Suspected)
    assert len(world.read(1, other, 5000)) == 3000
    quic.frozen = False
    world.settle()
    assert world.sides[0].seen(Recovered)
    assert world.sides[0].core.selected == quic.id
    finish_all(world)


def test_one_that_only_reads_notices_a_dead_connection_too() -> None:
    """Its credit went into the dead one: without it the writer would stand still."""
    world = World()
    quic = world.connect(0, "quic")
    half, other = talk(world)
    world.connect(0, "tcp")
    world.write(0, half, 8000)
    world.settle()
    quic.frozen = True
    world.read(1, other, 4000)
    for _ in range(20):
        world.tick(0.1)
        world.settle()
        world.read(1, other, 4000)
    assert other.read == half.written


def test_dead_connection_is_closed_and_the_session_lingers() -> None:
    world = World()
    wire = world.connect()
    half, _ = talk(world)
    wire.frozen = True
    world.write(0, half, 10)
    world.tick(32)
    assert CloseCode.SILENT in codes(world, 0)
    assert world.sides[0].seen(Lingering)


def test_ping_is_answered_with_its_time() -> None:
    world = World()
    world.connect()
    nonce = world.sides[0].core.ping(world.now)
    world.pump(0)
    world.now += 0.25
    world.settle()
    assert [(one.nonce, one.seconds) for one in world.sides[0].log if isinstance(one, Answered)] == [(nonce, 0.25)]


def test_close_acknowledges_first_and_tells_the_peer() -> None:
    world = World()
    world.connect()
    half = world.open(0)
    assert half is not None
    world.write(0, half, 100)
    world.settle()
    world.sides[1].core.close_session(world.session(1), world.now, reason="done")
    world.pump(1)
    world.settle()
    assert endings(world, 0) == [Ending.CLOSED_BY_PEER]
    assert half.core.sending.acked == HEADER + 100
    assert world.sides[0].core.idle


@pytest.mark.parametrize("act", [lambda world: world.tick(121), lambda world: None])
def test_challenger_is_judged_anew_when_the_session_ends(act: Callable[[World], None]) -> None:
    """A verdict was awaited from connections of a session that is no more."""
    world = World(settings=PeerSettings(linger=0.5))
    old = world.connect()
    world.restart(1)
    old.open[0] = True
    world.connect(1)
    state: SessionState = world.session(0)
    world.sides[0].core.close_session(state, world.now)
    world.pump(0)
    world.settle()
    assert world.sides[0].core.session is not state
    assert world.sides[0].core.session is not None
    act(world)
    world.check()


def test_one_peer_cannot_open_connections_without_end() -> None:
    world = World()
    for _ in range(40):
        wire = world.dial(0)
        world.deliver(wire, 1)
    assert codes(world, 1) == [CloseCode.BUSY] * 8


def test_no_memory_for_a_session_is_busy() -> None:
    world = World()
    world.sides[1].pool.limit = 1000
    world.connect(0)
    assert codes(world, 1) == [CloseCode.BUSY]
    assert world.sides[1].core.idle
    assert not [one for one in world.sides[0].log if isinstance(one, Attached)]


class Walked(dict[int, StreamCore]):
    """A session's table of streams that counts how often it is walked."""

    walks = 0

    def values(self) -> Any:
        self.walks += 1
        return super().values()


def test_many_syncs_walk_the_streams_once() -> None:
    """A SYNC has two bytes, and a session a thousand streams."""
    world = World()
    wire = world.connect()
    talk(world)
    session = world.session(1)
    streams = session.core.streams = Walked(session.core.streams)
    for _ in range(1000):
        world.sides[1].core.receive(wire.id, Sync(), world.now)
    assert streams.walks == 0
    assert world.sides[1].core.frames_to_send(wire.id)
    assert streams.walks == 1


def test_dial_that_comes_late_begins_no_session() -> None:
    """The user has closed the session while the dial was under way: nobody asked for another one."""
    world = World()
    core = world.sides[0].core
    world.connect()
    core.close_session(world.session(0), world.now)
    world.pump(0)
    late = Wire(9, "tcp", 0)
    world.wires.append(late)
    world._made(late, 0)
    world.pump(0)
    assert core.session is None
    assert codes(world, 0) == [CloseCode.SESSION_CLOSED, CloseCode.LOST_RACE]
    assert core.idle


def test_silent_connection_is_forsaken_when_another_becomes_the_selected_one() -> None:
    world = World()
    silent = world.connect(0, "tcp")
    half, other = talk(world)
    silent.frozen = True
    world.write(0, half, 3000)
    world.tick(1)
    better = world.dial(0, "quic")
    while world.sides[0].core.selected != better.id:
        ready = [side for side in (0, 1) if better.queues[side]]
        world.deliver(better, ready[0])
    better.frozen = True
    third = world.dial(0, "relay")
    world.settle()
    assert third.id in world.sides[0].core.attached
    world.cut(better)
    world.settle()
    assert len(world.read(1, other, 5000)) == 3000


@pytest.mark.parametrize(("phase", "kind"), [(phase, kind) for phase in Phase for kind in get_args(Event)])
def test_frame_comes_only_in_its_phases(phase: Phase, kind: type[Event]) -> None:
    link = Link(1, ("tcp", 4), 0, True, lambda: Progress(0.0, None), phase)
    event = object.__new__(kind)
    if kind in MAY_COME[phase]:
        link.expect(event)
        return
    with pytest.raises(ProtocolViolation) as caught:
        link.expect(event)
    assert caught.value.code is CloseCode.STATE_ERROR


@pytest.mark.parametrize("frame", [Streams(5), Ping(3), Retire()])
def test_repeated_frame_looks_at_no_other_connection(frame: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer may send a hundred thousand of them in one go."""
    world = World()
    wire = world.connect()
    half, _ = talk(world)
    core = world.sides[0].core
    wire.frozen = True
    world.write(0, half, 100)
    core.receive(wire.id, Retire(), world.now)
    assert core._links.all[wire.id].phase is Phase.DRAINING
    for name in ("_settle", "_judge_again"):
        monkeypatch.setattr(core, name, lambda _: pytest.fail("nothing was due"))
    for _ in range(10):
        core.receive(wire.id, frame, world.now)
