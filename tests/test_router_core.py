"""The example router, one node without a network: what it floods, forwards, stores and tells its neighbours."""

from itertools import pairwise

from overlay import Identity, PeerId
from overlay.testing.router_core import KEPT_PACKETS, KEPT_SECONDS, Message, RouterCore, Send
from overlay.testing.router_wire import (
    MAX_HOPS,
    Packet,
    Route,
    decode,
    encode_packet,
    encode_routes,
)

KEYS = [Identity.generate().peer_id for _ in range(10)]
US, NEAR, OTHER, FAR = KEYS[:4]
PERIOD = 1.0

# ---------------------------------------------------------------- packets


def core_with(*neighbours: PeerId, reaches: PeerId | None = None) -> RouterCore:
    core = RouterCore(US, period=PERIOD, sequence=1, number=1, now=0.0)
    for neighbour in neighbours:
        core.neighbour_up(neighbour, 0.0)
    if reaches is not None:
        core.received(encode_routes([Route(reaches, 1, 1)])[0], neighbours[0], 0.0)
    core.take_actions()
    return core


def packets_in(core: RouterCore) -> list[tuple[Packet, PeerId | None, PeerId | None]]:
    """What is to be sent now, routes left out: the packet as it arrives, to whom, and to whom not."""
    sends = [one for one in core.take_actions() if isinstance(one, Send) and not one.routing]
    return [(decode(one.frame), one.neighbour, one.exclude) for one in sends]  # type: ignore[misc]


def test_a_flood_goes_to_all_but_its_origin_once_and_to_our_user_once() -> None:
    core = core_with(NEAR, OTHER)
    packet = Packet(FAR, 7, None, 2, b"to all")
    core.received(encode_packet(packet), NEAR, 0.0)
    assert core.take_actions() == [
        Message(b"to all", FAR, broadcast=True, hops=3),
        Send(encode_packet(packet._replace(hops=3)), None, NEAR, routing=False, patience=4 * PERIOD),
    ]
    core.received(encode_packet(packet), OTHER, 0.0)
    assert core.take_actions() == []
    assert core.duplicates == 1


def test_our_own_flood_that_comes_back_after_a_restart_is_not_ours_to_read() -> None:
    core = core_with(NEAR)
    core.received(encode_packet(Packet(US, 7, None, 2, b"before")), NEAR, 0.0)
    assert core.take_actions() == []


def test_a_neighbour_that_comes_later_is_given_the_recent_floods() -> None:
    core = core_with()
    core.send(b"early", None, 0.0)
    core.send(b"late", None, 30.0)
    core.received(encode_packet(Packet(NEAR, 7, None, 1, b"its own")), OTHER, 30.0)
    core.take_actions()
    core.neighbour_up(NEAR, KEPT_SECONDS + 1)
    assert [(packet.payload, to) for packet, to, _ in packets_in(core)] == [(b"late", NEAR)]


def test_a_message_without_a_route_waits_for_one() -> None:
    core = core_with(NEAR)
    core.send(b"wait", FAR, 0.0)
    assert packets_in(core) == []
    assert core.waiting == 1
    core.received(encode_routes([Route(FAR, 1, 1)])[0], NEAR, 1.0)
    assert packets_in(core) == [(Packet(US, 1, FAR, 1, b"wait"), NEAR, None)]
    assert core.waiting == 0


def test_a_message_to_ourselves_arrives_without_a_network() -> None:
    core = core_with()
    core.send(b"me", US, 0.0)
    assert core.take_actions() == [Message(b"me", US, broadcast=False, hops=0)]


def test_what_comes_back_goes_another_way_when_there_is_one() -> None:
    core = core_with(NEAR, OTHER, reaches=FAR)
    core.send(b"again", FAR, 0.0)
    [send] = core.take_actions()
    assert isinstance(send, Send)
    core.returned(send.frame, NEAR, 1.0)
    assert core.waiting == 1
    core.received(encode_routes([Route(FAR, 2, 0 + 1)])[0], OTHER, 1.0)
    core.neighbour_down(NEAR, 1.0)
    assert packets_in(core) == [(Packet(US, 1, FAR, 1, b"again"), OTHER, None)], "the link is counted once"


def test_what_comes_back_is_tried_again_with_the_next_announcement() -> None:
    core = core_with(NEAR)
    core.send(b"flood", None, 0.0)
    [send] = core.take_actions()
    assert isinstance(send, Send)
    core.returned(send.frame, NEAR, 0.5)
    core.handle_timeout(1.0)
    assert packets_in(core) == [(Packet(US, 1, None, 1, b"flood"), NEAR, None)]
    core.returned(send.frame, NEAR, 1.5)
    core.neighbour_down(NEAR, 1.5)
    core.handle_timeout(2.5)
    assert packets_in(core) == [], "when it is back, it is given all floods"
    assert core.waiting == 0


def test_a_packet_that_cannot_go_is_given_up_in_the_end_however_often_it_comes_back() -> None:
    core = core_with(NEAR, reaches=FAR)
    core.send(b"again", FAR, 0.0)
    under_way: list[tuple[float, bytes]] = []
    tries: list[float] = []
    for now in range(round(3 * KEPT_SECONDS)):
        core.received(encode_routes([Route(FAR, 1 + now, 1)])[0], NEAR, now)
        for frame in [frame for due, frame in under_way if due <= now]:
            under_way.clear()
            core.returned(frame, NEAR, now)
        core.handle_timeout(now)
        for send in core.take_actions():
            if isinstance(send, Send) and not send.routing:
                tries.append(now)
                under_way.append((now + send.patience, send.frame))
    assert 4 <= len(tries) <= 6
    pauses = [after - before for before, after in pairwise(tries)]
    assert all(2 * before <= after for before, after in pairwise(pauses)), "the link may only be slow"
    assert (core.waiting, core.dropped) == (0, 1)


def test_what_waits_is_bounded_and_what_can_never_go_does_not_wait() -> None:
    core = core_with(NEAR)
    for number in range(KEPT_PACKETS + 3):
        core.send(str(number).encode(), FAR, 0.0)
    assert (core.waiting, core.dropped) == (KEPT_PACKETS, 3)
    core.returned(encode_packet(Packet(US, 1, FAR, 0, b"too long")), NEAR, 0.0, hopeless=True)
    assert (core.waiting, core.dropped) == (KEPT_PACKETS, 4)


def test_what_has_gone_too_far_goes_no_farther() -> None:
    core = core_with(NEAR, OTHER, reaches=FAR)
    core.received(encode_packet(Packet(OTHER, 1, FAR, MAX_HOPS - 1, b"")), OTHER, 0.0)
    core.received(encode_packet(Packet(OTHER, 2, None, MAX_HOPS - 1, b"")), OTHER, 0.0)
    assert packets_in(core) == []
    assert core.dropped == 1


def test_a_message_whose_way_leads_back_over_us_goes_on() -> None:
    core = core_with(NEAR, OTHER, reaches=FAR)
    core.send(b"round", FAR, 0.0)
    assert [to for _, to, _ in packets_in(core)] == [NEAR]
    core.received(encode_packet(Packet(US, 1, FAR, 3, b"round")), OTHER, 0.0)
    assert packets_in(core) == [(Packet(US, 1, FAR, 5, b"round"), NEAR, None)]
    for hops in (0, 3):
        core.received(encode_packet(Packet(US, 1, FAR, hops, b"round")), OTHER, 0.0)
    assert packets_in(core) == [], "those are copies of what has gone on"
    assert core.duplicates == 2


def test_of_two_copies_that_wait_the_one_goes_on_that_has_travelled_farther() -> None:
    """The other one has been where it goes next: it would be taken for a duplicate there."""
    for returned_first in (True, False):
        core = core_with(NEAR, OTHER, reaches=FAR)
        core.send(b"round", FAR, 0.0)
        [send] = core.take_actions()
        assert isinstance(send, Send)
        core.neighbour_down(NEAR, 0.0)
        if returned_first:
            core.returned(send.frame, NEAR, 0.0)
        core.received(encode_packet(Packet(US, 1, FAR, 3, b"round")), OTHER, 0.0)
        if not returned_first:
            core.returned(send.frame, NEAR, 0.0)
        assert core.waiting == 1
        core.received(encode_routes([Route(FAR, 2, 1)])[0], OTHER, 0.0)
        assert packets_in(core) == [(Packet(US, 1, FAR, 5, b"round"), OTHER, None)]


def test_a_new_neighbour_is_told_all_routes_at_once() -> None:
    core = core_with(NEAR, reaches=FAR)
    core.handle_timeout(0.5)
    core.take_actions()
    core.neighbour_up(OTHER, 0.5)
    told = [decode(one.frame) for one in core.take_actions() if isinstance(one, Send) and one.neighbour == OTHER]
    assert [[(route.destination, route.metric) for route in some] for some in told] == [[(US, 0), (FAR, 2)]]  # type: ignore[union-attr]


def test_a_change_is_told_at_once_and_those_that_follow_in_one_frame() -> None:
    core = core_with(NEAR)
    core.handle_timeout(0.5)
    core.take_actions()

    def told() -> list[list[Route] | Packet]:
        return [decode(one.frame) for one in core.take_actions() if isinstance(one, Send) and one.routing]

    for count in range(1, 5):
        core.received(encode_routes([Route(KEYS[3 + count], 1, 1)])[0], NEAR, 0.9)
    assert told() == [[Route(KEYS[4], 1, 2)]]
    assert 0.9 < core.next_timeout() < 1.0
    core.handle_timeout(core.next_timeout())
    assert told() == [[Route(KEYS[3 + count], 1, 2) for count in range(2, 5)]]
    assert core.next_timeout() == 1.5, "the announcement"
