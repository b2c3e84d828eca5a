"""The bounded table: who is displaced by whom, and what a store is told."""

import pytest

from overlay.protocol.evidence import Evidence, Place, Source
from overlay.protocol.place_table import PlaceTable, Standing


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def place(number: int, transport: str | None = "quic") -> Place:
    return transport, f"198.51.100.{number}", 9330


def put(table: PlaceTable, who: int, where: int, source: Source, now: float = 0.0) -> bool:
    return table.insert(key(who), place(where), Evidence(source, now))


@pytest.mark.parametrize("source", [source for source in Source if source not in {Source.STATIC, Source.TICKET}])
def test_strangers_displace_strangers_only_the_one_longest_unheard_of_first(source: Source) -> None:
    table = PlaceTable(8, 4)
    put(table, 0, 0, Source.TICKET)
    for who in (1, 2, 3):
        put(table, who, who, source)
    table.touch(key(1))
    assert put(table, 4, 4, source)
    assert set(table.peers) == {key(0), key(1), key(3), key(4)}
    for who in range(5, 50):
        assert put(table, who, 1, source)
    assert key(0) in table.peers
    assert len(table.peers) == 4


def test_chosen_peers_displace_strangers_before_one_another() -> None:
    table = PlaceTable(8, 2)
    put(table, 0, 0, Source.TICKET)
    put(table, 1, 1, Source.MDNS)
    assert put(table, 2, 2, Source.TICKET)
    assert set(table.peers) == {key(0), key(2)}
    assert not put(table, 3, 3, Source.RECORD)
    assert put(table, 4, 4, Source.TICKET)
    assert set(table.peers) == {key(2), key(4)}


def test_pinned_and_static_peers_take_no_room_and_are_never_displaced() -> None:
    table = PlaceTable(8, 2)
    table.pin(key(0))
    put(table, 0, 0, Source.OBSERVED)
    put(table, 1, 1, Source.STATIC)
    for who in range(2, 40):
        assert put(table, who, 5, Source.TICKET)
    assert set(table.peers) == {key(0), key(1), key(38), key(39)}
    table.unpin(key(0))
    assert set(table.peers) == {key(1), key(38), key(39)}


def test_standing_follows_what_is_known_and_not_what_was() -> None:
    table = PlaceTable(8, 2)
    assert table.standing(key(0)) is Standing.STRANGER
    put(table, 0, 0, Source.TICKET)
    put(table, 0, 1, Source.INBOUND)
    assert table.standing(key(0)) is Standing.CHOSEN
    table.remove(key(0), place(0))
    assert table.standing(key(0)) is Standing.STRANGER
    table.pin(key(0))
    assert table.standing(key(0)) is Standing.PROTECTED


def test_a_stranger_has_a_quarter_of_the_places() -> None:
    table = PlaceTable(16, 9)
    for where in range(20):
        put(table, 0, where, Source.MDNS, now=where)
        put(table, 1, where, Source.TICKET, now=where)
    assert len(table.entries(key(0))) == 4
    assert len(table.entries(key(1))) == 16


def test_within_a_peer_the_least_trusted_goes_first_then_what_fails_most_then_the_oldest() -> None:
    table = PlaceTable(4, 9)
    put(table, 0, 0, Source.TICKET, now=9)
    table.insert(key(0), place(1), Evidence(Source.MDNS, 1))
    table.insert(key(0), place(2), Evidence(Source.MDNS, 2, failures=1))
    put(table, 0, 3, Source.OBSERVED, now=3)
    for where, gone in ((4, 3), (5, 2), (6, 1)):
        assert put(table, 0, where, Source.MDNS, now=where)
        assert place(gone) not in table.entries(key(0))
    assert not put(table, 0, 7, Source.OBSERVED, now=7)
    assert set(table.entries(key(0))) == {place(0), place(4), place(5), place(6)}


def test_of_equals_named_at_once_the_first_ones_stay() -> None:
    table = PlaceTable(4, 9)
    assert [put(table, 0, where, Source.TICKET) for where in range(6)] == [True] * 4 + [False] * 2


def test_a_flood_of_claims_leaves_half_to_what_worked() -> None:
    table = PlaceTable(8, 9)
    table.pin(key(0))
    for where in range(8):
        table.insert(key(0), place(where), Evidence(Source.OBSERVED, 0, last_success=where))
    for where in range(100, 200):
        put(table, 0, where, Source.TICKET, now=where)
    worked = {one for one, entry in table.entries(key(0)).items() if entry.evidence.last_success is not None}
    assert worked == {place(where) for where in (4, 5, 6, 7)}
    assert len(table.entries(key(0))) == 8


def test_static_places_stay_and_the_bound_holds_even_among_them() -> None:
    table = PlaceTable(4, 9)
    for where in range(4):
        assert put(table, 0, where, Source.STATIC)
    assert not put(table, 0, 9, Source.TICKET)
    assert not put(table, 0, 9, Source.STATIC)
    assert set(table.entries(key(0))) == {place(where) for where in range(4)}


def test_an_owner_is_one_as_long_as_any_transport_of_the_place_is_left() -> None:
    table = PlaceTable(8, 9)
    table.pin(key(0))
    where = place(1)[1:]
    for transport in ("quic", "tcp"):
        table.insert(key(0), place(1, transport), Evidence(Source.MDNS, 0))
    table.remove(key(0), place(1))
    assert table.owners(where) == {key(0)}
    table.remove(key(0), place(1, "tcp"))
    assert table.owners(where) == set()


def test_a_store_is_told_of_removals_only_where_it_was_told_of_the_rest() -> None:
    table = PlaceTable(8, 1)
    for who in range(100):
        put(table, who, who, Source.MDNS)
    first = table.changed()
    assert [upsert[:2] for upsert in first.upserts] == [(key(99), place(99))]
    assert first.removed == []
    put(table, 100, 1, Source.MDNS)
    second = table.changed()
    assert set(second.removed) == {(key(99), place(99)), (key(99), None)}
    assert not table.changed().removed


def test_evidence_that_is_handed_to_a_store_is_a_copy() -> None:
    table = PlaceTable(8, 9)
    put(table, 0, 0, Source.MDNS)
    ((_, _, copied),) = table.changed().upserts
    table.entries(key(0))[place(0)].evidence.failed(1, "connect")
    assert copied.failures == 0


def test_a_pinned_peer_that_loses_its_last_place_is_not_forgotten_by_the_store() -> None:
    table = PlaceTable(8, 9)
    table.pin(key(0))
    put(table, 0, 0, Source.MDNS)
    table.changed()
    table.drop(key(0))
    assert table.changed().removed == [(key(0), place(0))]
