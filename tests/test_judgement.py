"""Who is at the other end? Views of one relation that differ: who has given up, who has restarted, who comes late."""

from pairs import Made, Wire, World, codes, endings, finish_all, talk

from overlay.protocol.actions import (
    Ending,
)
from overlay.protocol.codes import CloseCode
from overlay.protocol.links import Phase


def test_one_has_given_up_and_the_other_lingers() -> None:
    world = World()
    wire = world.connect()
    half, _ = talk(world)
    world.cut(wire)
    world.sides[1].core.close_session(world.session(1), world.now)
    world.pump(1)
    world.connect(0)
    assert endings(world, 0) == [Ending.GONE]
    assert codes(world, 1)[-1] is CloseCode.SESSION_GONE
    assert half.core.removed
    world.connect(0)
    talk(world)
    finish_all(world)


def test_restart_is_noticed_by_whoever_dials_the_new_process() -> None:
    world = World()
    wire = world.connect()
    half, _ = talk(world)
    world.restart(1)
    world.notice(wire, 0)
    wire.open[0] = False
    world.sides[0].core.connection_lost(wire.id, world.now, by_peer=False)
    world.pump(0)
    assert not endings(world, 0)
    world.connect(0)
    assert endings(world, 0) == [Ending.RESTARTED]
    assert codes(world, 1) == [CloseCode.RESTARTED]
    assert half.core.removed
    world.connect(0)
    talk(world)
    finish_all(world)


def test_who_dials_a_new_process_while_the_old_one_answers_changes_nothing() -> None:
    """Two living processes with one key, and an address of each."""
    world = World()
    old = world.connect()
    half, _ = talk(world)
    incumbent = world.sides[1]
    world.restart(1)
    old.lost, old.open[0], old.frozen = False, True, True
    world.connect(0)
    assert codes(world, 1) == [CloseCode.RESTARTED]
    world.sides[1], old.open[1] = incumbent, True
    assert not endings(world, 0)
    assert world.sides[0].core.attached == [old.id]
    assert not half.core.removed


def test_one_has_given_up_and_dials_the_one_that_lingers() -> None:
    world = World()
    wire = world.connect()
    talk(world)
    world.cut(wire)
    world.sides[1].core.close_session(world.session(1), world.now)
    world.pump(1)
    world.connect(1)
    assert endings(world, 0) == [Ending.GONE]
    talk(world)
    finish_all(world)


def test_restart_is_noticed_at_once_when_the_old_connections_are_gone() -> None:
    world = World()
    wire = world.connect()
    half, _ = talk(world)
    world.restart(1)
    world.notice(wire, 0)
    wire.open[0] = False
    world.sides[0].core.connection_lost(wire.id, world.now, by_peer=False)
    world.pump(0)
    world.connect(1)
    assert endings(world, 0) == [Ending.RESTARTED]
    assert half.core.removed
    talk(world)
    finish_all(world)


def test_restart_is_noticed_after_a_while_when_the_old_connections_are_silent() -> None:
    world = World()
    old = world.connect()
    talk(world)
    world.restart(1)
    old.open[0] = True
    world.connect(1)
    assert not endings(world, 0)
    world.tick(0.9)
    assert not endings(world, 0)
    world.tick(0.2)
    assert endings(world, 0) == [Ending.RESTARTED]
    world.settle()
    talk(world)


def test_two_living_processes_with_one_key_the_newcomer_is_refused() -> None:
    world = World()
    old = world.connect()
    half, other = talk(world)
    incumbent = world.sides[1]
    world.restart(1)
    newcomer = world.sides[1]
    old.lost, old.open[0], old.frozen = False, True, True
    wire = world.dial(1)
    for _ in range(3):
        world.settle()
        # Frames on the old wire belong to the process that is still there.
        world.sides[1], old.open[1] = incumbent, True
        world.pump(1)
        while old.queues[1]:
            world.deliver(old, 1)
        world.sides[1], old.open[1] = newcomer, False
        while old.queues[0]:
            world.deliver(old, 0)
    assert codes(world, 0) == [CloseCode.DUPLICATE_IDENTITY]
    assert not wire.open[1]
    assert not endings(world, 0)
    assert world.sides[0].core.attached == [old.id]
    assert not half.core.removed
    assert not other.core.removed


def late_hello(world: World) -> Wire:
    """A connection of side 1's process that dies before its HELLO has arrived."""
    wire = world.dial(1, "tcp")
    assert isinstance(wire.queues[0][0], Made)
    queue = list(wire.queues[0])
    world.restart(1)
    wire.queues[0][:] = queue
    wire.open[0] = True
    return wire


def test_late_hello_of_a_dead_process_does_not_replace_the_new_session() -> None:
    world = World()
    ghost = late_hello(world)
    ghost.frozen = True
    world.connect(1)
    session = world.session(0)
    half, _ = talk(world)
    ghost.frozen = False
    world.settle()
    assert world.sides[0].core._links.all[ghost.id].phase is Phase.CHALLENGED
    world.tick(25)
    world.settle()
    assert codes(world, 0) == [CloseCode.HANDSHAKE_TIMEOUT]
    assert world.session(0) is session
    assert not half.core.removed


def test_late_hello_that_comes_first_gives_way_to_the_living() -> None:
    world = World()
    ghost = late_hello(world)
    while ghost.queues[0]:
        world.deliver(ghost, 0)
    assert world.sides[0].core.attached == [ghost.id]
    world.connect(1)
    world.tick(1.1)
    world.settle()
    assert endings(world, 0) == [Ending.RESTARTED]
    talk(world)
    assert world.sides[0].core.session is not None


def test_late_hello_during_our_own_dial_gives_way_to_the_accept() -> None:
    world = World()
    ghost = late_hello(world)
    world.dial(0)
    half = world.open(0)
    assert half is not None
    while ghost.queues[0]:
        world.deliver(ghost, 0)
    world.write(0, half, 500)
    world.settle()
    assert endings(world, 0) in ([], [Ending.RESTARTED])
    talk(world)
