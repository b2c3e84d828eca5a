"""The address book: what is learnt, in which order it is dialled, when again, and what is forgotten."""

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from overlay.protocol.address_book import LONGEST_PAUSE, OURSELVES, RENEWAL, AddressBook
from overlay.protocol.evidence import CONFIRMED_LIFE, DAY, UNCONFIRMED_LIFE, Evidence, Place, Source
from overlay.protocol.place_table import Change

KEY, OTHER = b"k" * 32, b"o" * 32
ANY: Place = (None, "198.51.100.1", 9330)
QUIC: Place = ("quic", "198.51.100.1", 9330)
TCP: Place = ("tcp", "198.51.100.1", 9330)
AWAY: Place = ("quic", "2001:db8::1", 9330)
NAME: Place = ("quic", "host.example", 9330)


def longest() -> float:
    """The end of the random range, so that pauses are as long as they get."""
    return 1.0 - 2**-53


def book_with(*places: Place, source: Source = Source.TICKET, random: Callable[[], float] = longest) -> AddressBook:
    book = AddressBook(random)
    for place in places:
        assert book.learn(KEY, place, source, 0)
    return book


# -------------------------------------------------------------------- learning


def test_case_11_learning_again_changes_nothing() -> None:
    book = book_with(QUIC)
    before = book.places(KEY)
    book.changed()
    for now in range(100):
        assert not book.learn(KEY, QUIC, Source.TICKET, now)
        assert not book.learn(KEY, QUIC, Source.MDNS, now)
    assert book.places(KEY) == before
    assert book.changed() == Change([], [], {})


def test_a_place_that_is_named_for_hours_is_written_down_once_an_hour() -> None:
    book = book_with(QUIC, source=Source.MDNS)
    book.changed()
    written = 0
    for minute in range(1, 24 * 60 + 1):
        book.learn(KEY, QUIC, Source.MDNS, minute * 60)
        written += len(book.changed().upserts)
    assert written == DAY / RENEWAL
    book.expire(DAY + UNCONFIRMED_LIFE)
    assert book.places(KEY)


def test_a_better_source_counts_and_a_worse_one_does_not() -> None:
    book = book_with(QUIC, source=Source.MDNS)
    book.learn(KEY, QUIC, Source.STATIC, 1)
    book.learn(KEY, QUIC, Source.OBSERVED, 2)
    assert book.places(KEY)[QUIC].source is Source.STATIC


def test_case_23_many_keys_share_one_address() -> None:
    book = book_with(QUIC)
    book.learn(OTHER, ANY, Source.INBOUND, 0)
    assert book.owners(QUIC) == book.owners(ANY) == {KEY, OTHER}
    assert book.owners(TCP) == {OTHER}
    assert book.owners(("quic", "198.51.100.1", 9331)) == set()
    book.failed(KEY, QUIC, 1, stage="connect")
    assert book.places(OTHER)[ANY].failures == 0
    book.forget(OTHER)
    assert book.owners(TCP) == set()
    assert book.owners(QUIC) == {KEY}


def test_what_is_handed_out_is_a_copy() -> None:
    book = book_with(QUIC)
    book.places(KEY)[QUIC].failures = 9
    assert book.places(KEY)[QUIC].failures == 0


def test_a_peer_is_chosen_if_somebody_here_has_named_it() -> None:
    book = AddressBook(longest)
    for source in Source:
        key = str(source).encode().ljust(32)
        book.learn(key, QUIC, source, 0)
        assert book.is_chosen(key) is (source in {Source.STATIC, Source.TICKET})
    assert not book.is_chosen(KEY)
    book.pin(KEY)
    assert book.is_chosen(KEY)


# -------------------------------------------------------------------- dialling


def test_candidates_come_in_the_order_of_their_evidence() -> None:
    book = book_with(NAME)
    book.learn(KEY, TCP, Source.MDNS, 0)
    book.learn(KEY, AWAY, Source.OBSERVED, 0)
    assert book.candidates(KEY, 1) == [NAME, TCP, AWAY]
    book.succeeded(KEY, AWAY, 2, network="cafe")
    assert book.candidates(KEY, 3) == [AWAY, NAME, TCP]
    book.succeeded(KEY, TCP, 4, network="home")
    assert book.candidates(KEY, 5, network="cafe") == [AWAY, TCP, NAME]
    assert book.candidates(KEY, 5, network="home") == [TCP, AWAY, NAME]


def test_what_has_just_failed_comes_last_and_is_never_left_out() -> None:
    book = book_with(QUIC, AWAY)
    book.failed(KEY, QUIC, 1, stage="connect")
    assert book.candidates(KEY, 1.5) == [AWAY, QUIC]
    assert book.candidates(KEY, 2) == [AWAY, QUIC]
    book.failed(KEY, AWAY, 2, stage="connect")
    assert book.candidates(KEY, 2.5) == [QUIC, AWAY]
    book.failed(KEY, QUIC, 2.5, stage="connect")
    assert set(book.candidates(KEY, 2.6)) == {QUIC, AWAY}


@pytest.mark.parametrize(("draw", "share"), [(longest, 1.0), (lambda: 0.5, 0.5), (lambda: 0.0, 0.0)])
def test_case_8_pauses_double_from_one_second_to_two_minutes_with_full_jitter(
    draw: Callable[[], float], share: float
) -> None:
    book = book_with(QUIC, AWAY, random=draw)
    book.succeeded(KEY, QUIC, 0)
    now, pauses = 1.0, []
    for _ in range(1200):
        book.failed(KEY, QUIC, now, stage="connect")
        low, high = now, now + 2 * LONGEST_PAUSE
        while high - low > 0.001:
            middle = (low + high) / 2
            low, high = (middle, high) if book.candidates(KEY, middle)[0] == AWAY else (low, middle)
        pauses.append(high - now)
        now = high
    assert pauses[:9] == pytest.approx([share * one for one in (1, 2, 4, 8, 16, 32, 64, 120, 120)], abs=0.01)
    assert pauses[-1] == pytest.approx(share * 120, abs=0.01)


def test_case_8_success_inbound_and_a_change_of_the_network_end_the_pause_and_start_it_anew() -> None:
    def success(book: AddressBook) -> None:
        book.succeeded(KEY, QUIC, 21)

    def inbound(book: AddressBook) -> None:
        book.inbound(KEY, 21)

    for end in (success, inbound, AddressBook.network_changed):
        book = book_with(QUIC, AWAY)
        book.succeeded(KEY, QUIC, 0)
        for now in range(10, 20):
            book.failed(KEY, QUIC, now, stage="connect")
        assert book.candidates(KEY, 22) == [AWAY, QUIC]
        end(book)
        assert book.candidates(KEY, 22) == [QUIC, AWAY]
        book.failed(KEY, QUIC, 23, stage="connect")
        assert book.candidates(KEY, 23.9) == [AWAY, QUIC]
        assert book.candidates(KEY, 24.1) == [QUIC, AWAY]


def test_a_failure_on_another_network_of_ours_pauses_nothing_on_this_one() -> None:
    book = book_with(QUIC, AWAY)
    book.failed(KEY, QUIC, 1, stage="connect", network="cafe")
    assert book.candidates(KEY, 1.5, network="cafe") == [AWAY, QUIC]
    # Failures do count in the order among what is due, but a success outweighs them.
    book.succeeded(KEY, QUIC, 1.5, network="home")
    book.failed(KEY, QUIC, 1.6, stage="connect", network="cafe")
    assert book.candidates(KEY, 1.7, network="home") == [QUIC, AWAY]


def test_a_clock_that_jumps_back_leaves_nothing_waiting() -> None:
    book = book_with(QUIC, AWAY)
    book.succeeded(KEY, QUIC, 1e9)
    book.failed(KEY, QUIC, 1e9, stage="connect")
    assert book.candidates(KEY, 1e9 + 0.5) == [AWAY, QUIC]
    assert book.candidates(KEY, 5) == [QUIC, AWAY]


def test_case_13_a_place_for_all_transports_keeps_evidence_for_each() -> None:
    book = book_with(ANY, AWAY)
    both = ("quic", "tcp")
    assert book.candidates(KEY, 1) == [ANY, AWAY]
    assert book.candidates(KEY, 1, transports=both) == [QUIC, TCP, AWAY]
    book.failed(KEY, QUIC, 1, stage="connect")
    assert book.candidates(KEY, 1.5, transports=both) == [TCP, AWAY, QUIC]
    book.succeeded(KEY, TCP, 2)
    assert book.candidates(KEY, 2.5, transports=both) == [TCP, AWAY, QUIC]
    assert book.candidates(KEY, 2.5, transports=("quic",)) == [AWAY, QUIC]
    places = book.places(KEY)
    assert places.keys() == {ANY, AWAY, QUIC, TCP}
    assert (places[QUIC].failures, places[TCP].successes, places[ANY].successes) == (1, 1, 1)
    assert places[QUIC].source is Source.TICKET


def test_a_transports_own_evidence_counts_whatever_was_learnt_first() -> None:
    book = book_with(QUIC, ANY, AWAY)
    book.failed(KEY, QUIC, 1, stage="connect")
    assert book.candidates(KEY, 1.5, transports=("quic", "tcp")) == [TCP, AWAY, QUIC]


def test_an_outcome_at_a_place_that_was_forgotten_meanwhile_brings_nothing_back() -> None:
    book = book_with(QUIC)
    book.forget(KEY)
    book.succeeded(KEY, QUIC, 1)
    book.failed(KEY, QUIC, 1, stage="connect")
    book.inbound(KEY, 1)
    assert book.keys() == []
    assert book.candidates(KEY, 2) == []


def test_signs_of_life_and_round_trip_times_are_known() -> None:
    book = book_with(QUIC, AWAY)
    assert (book.seen(KEY), book.rtt(KEY)) == (None, None)
    book.succeeded(KEY, QUIC, 3, rtt=0.2)
    book.succeeded(KEY, AWAY, 4, rtt=0.3)
    assert (book.seen(KEY), book.rtt(KEY)) == (4, 0.2)
    book.inbound(KEY, 9)
    assert book.seen(KEY) == 9
    assert (book.seen(OTHER), book.rtt(OTHER), book.sequence(OTHER)) == (None, None, 0)


# -------------------------------------------------------------------- ourselves


def test_case_2_a_dial_that_reaches_oneself_forgets_the_address_at_every_key() -> None:
    book = book_with(QUIC, AWAY)
    book.learn(OTHER, ANY, Source.MDNS, 0)
    book.ourselves(QUIC)
    assert book.candidates(KEY, 1) == [AWAY]
    assert book.keys() == [KEY]
    assert not book.learn(OTHER, TCP, Source.TICKET, 1)
    assert book.owners(QUIC) == set()
    book.network_changed()
    assert book.learn(OTHER, TCP, Source.TICKET, 2)


def test_a_static_place_that_leads_to_ourselves_is_left_out_until_the_network_changes() -> None:
    book = book_with(QUIC, source=Source.STATIC)
    book.ourselves(QUIC)
    assert book.learn(OTHER, QUIC, Source.STATIC, 1)
    assert book.candidates(KEY, 1) == book.candidates(OTHER, 1) == []
    book.network_changed()
    assert book.candidates(KEY, 1) == book.candidates(OTHER, 1) == [QUIC]


def test_places_that_lead_to_ourselves_are_bounded() -> None:
    book = AddressBook(longest)
    for port in range(1, OURSELVES + 2):
        book.ourselves(("quic", "192.0.2.1", port))
    assert book.learn(KEY, ("quic", "192.0.2.1", 1), Source.TICKET, 0)
    assert not book.learn(KEY, ("quic", "192.0.2.1", 2), Source.TICKET, 0)


# -------------------------------------------------------------------- records


def test_a_record_replaces_the_one_before_and_nothing_else() -> None:
    book = book_with(QUIC)
    assert book.record(KEY, 5, [TCP, AWAY], 1)
    assert set(book.candidates(KEY, 1)) == {QUIC, TCP, AWAY}
    book.succeeded(KEY, AWAY, 2)
    assert book.record(KEY, 6, [QUIC, NAME], 3)
    places = book.places(KEY)
    assert places.keys() == {QUIC, NAME}
    assert (places[QUIC].source, places[NAME].source) == (Source.TICKET, Source.RECORD)


@pytest.mark.parametrize("sequence", [5, 4, 0])
def test_a_stale_record_changes_nothing(sequence: int) -> None:
    book = AddressBook(longest)
    book.record(KEY, 5, [TCP], 1)
    assert not book.record(KEY, sequence, [QUIC], 2)
    assert book.candidates(KEY, 3) == [TCP]
    assert book.sequence(KEY) == 5


def test_a_record_that_names_a_place_again_keeps_its_evidence() -> None:
    book = AddressBook(longest)
    book.record(KEY, 1, [ANY, AWAY], 1)
    book.succeeded(KEY, TCP, 2)
    book.record(KEY, 2, [ANY], 3)
    places = book.places(KEY)
    assert places.keys() == {ANY, TCP}
    assert places[ANY].successes == places[TCP].successes == 1


def test_the_number_of_a_record_outlives_a_restart() -> None:
    book = AddressBook(longest)
    book.record(KEY, 5, [TCP], 1)
    change = book.changed()
    assert change.sequences == {KEY: 5}
    again = AddressBook(longest)
    again.restore(change.upserts, change.sequences)
    assert not again.record(KEY, 5, [QUIC], 2)
    assert again.record(KEY, 6, [QUIC], 2)


def test_a_record_of_a_peer_that_was_forgotten_before_it_was_saved_is_not_saved() -> None:
    book = AddressBook(longest)
    book.record(KEY, 5, [TCP], 1)
    book.forget(KEY)
    assert book.changed() == Change([], [], {})


def test_a_record_of_nothing_but_ourselves_leaves_no_peer_behind() -> None:
    book = AddressBook(longest)
    book.ourselves(QUIC)
    assert book.record(KEY, 1, [QUIC], 0)
    assert book.keys() == []
    assert book.changed() == Change([], [], {})


# -------------------------------------------------------------------- time


def test_unconfirmed_places_go_after_a_week_confirmed_ones_after_a_season() -> None:
    book = book_with(QUIC, AWAY)
    book.learn(KEY, NAME, Source.STATIC, 0)
    book.succeeded(KEY, AWAY, DAY)
    book.expire(UNCONFIRMED_LIFE + 1)
    assert set(book.candidates(KEY, 0)) == {AWAY, NAME}
    for day in range(9, 92):
        book.expire(day * DAY + 2)
    assert book.candidates(KEY, 0) == [NAME]


def test_a_peer_of_which_nothing_is_left_is_gone() -> None:
    book = book_with(QUIC)
    book.changed()
    book.expire(UNCONFIRMED_LIFE + 1)
    assert book.keys() == []
    assert set(book.changed().removed) == {(KEY, QUIC), (KEY, None)}


def test_a_kept_peer_is_not_left_without_a_place_because_time_has_passed() -> None:
    book = book_with(QUIC, TCP)
    book.pin(KEY)
    book.expire(CONFIRMED_LIFE * 2)
    assert set(book.candidates(KEY, 0)) == {QUIC, TCP}
    book.succeeded(KEY, TCP, CONFIRMED_LIFE * 2)
    book.expire(CONFIRMED_LIFE * 2)
    assert book.candidates(KEY, 0) == [TCP]


def test_a_clock_that_was_ahead_makes_nothing_immortal() -> None:
    book = book_with(QUIC)
    book.learn(KEY, AWAY, Source.MDNS, 1e12)
    book.expire(1)
    for day in range(1, 10):
        book.expire(day * DAY)
    assert book.keys() == []


def test_a_clock_that_is_set_ahead_by_years_gives_a_week_to_be_confirmed() -> None:
    book = book_with(QUIC, AWAY)
    years = 55 * 365 * DAY
    book.expire(0)
    book.expire(years)
    assert set(book.candidates(KEY, 0)) == {QUIC, AWAY}
    book.succeeded(KEY, AWAY, years + DAY)
    for day in range(1, 9):
        book.expire(years + day * DAY)
    assert book.candidates(KEY, 0) == [AWAY]


# -------------------------------------------------------------------- any sequence


class Machine(RuleBasedStateMachine):
    """Everything that may happen to a small book, beside a store that follows it and survives restarts."""

    PER_PEER, PEERS = 8, 4
    keys = st.sampled_from([bytes([number]) * 32 for number in range(8)])
    places = st.tuples(
        st.sampled_from([None, "quic", "tcp"]), st.sampled_from(["192.0.2.1", "192.0.2.2"]), st.integers(1, 6)
    )
    steps = st.sampled_from([0.0, 0.5, 30.0, DAY, 8 * DAY, 100 * DAY, -1.0, -DAY, -300 * DAY])

    @initialize()
    def begin(self) -> None:
        self.book = AddressBook(lambda: 0.9, per_peer=self.PER_PEER, peers=self.PEERS)
        self.now = 1e9
        self.pinned: set[bytes] = set()
        self.static: set[tuple[bytes, Place]] = set()
        self.store: dict[tuple[bytes, Place], Evidence] = {}

    def known(self) -> list[bytes]:
        return self.book.keys()

    @rule(key=keys, place=places, source=st.sampled_from(Source))
    def learn(self, key: bytes, place: Place, source: Source) -> None:
        known = place in self.book.places(key)
        news = self.book.learn(key, place, source, self.now)
        assert not (known and news)
        if source is Source.STATIC and place in self.book.places(key):
            self.static.add((key, place))

    @rule(key=keys, place=places)
    def succeeded(self, key: bytes, place: Place) -> None:
        known = place in self.book.places(key)
        self.book.succeeded(key, place, self.now)
        if known:
            assert self.book.places(key)[place].last_success == self.now

    @rule(key=keys, place=places)
    def failed(self, key: bytes, place: Place) -> None:
        before = set(self.book.places(key))
        self.book.failed(key, place, self.now, stage="connect")
        assert before or not self.book.places(key)

    @rule(key=keys)
    def inbound(self, key: bytes) -> None:
        self.book.inbound(key, self.now)

    @rule(place=places)
    def ourselves(self, place: Place) -> None:
        self.book.ourselves(place)
        for key in self.known():
            assert all(one[1:] != place[1:] for one in self.book.candidates(key, self.now))

    @rule()
    def network_changed(self) -> None:
        self.book.network_changed()
        for key in self.known():
            assert set(self.book.candidates(key, self.now)) == set(self.book.places(key))

    @rule(key=keys, sequence=st.integers(0, 9), named=st.lists(places, max_size=12))
    def record(self, key: bytes, sequence: int, named: list[Place]) -> None:
        last = self.book.sequence(key)
        assert self.book.record(key, sequence, named, self.now) is (sequence > last)

    @rule(key=keys)
    def pin(self, key: bytes) -> None:
        self.book.pin(key)
        self.pinned.add(key)

    @rule(key=keys)
    def unpin(self, key: bytes) -> None:
        self.book.unpin(key)
        self.pinned.discard(key)

    @rule(key=keys)
    def forget(self, key: bytes) -> None:
        self.book.forget(key)
        self.pinned.discard(key)
        self.static = {one for one in self.static if one[0] != key}
        assert not self.book.places(key)

    @rule(step=steps)
    def clock(self, step: float) -> None:
        self.now = max(0.0, self.now + step)

    @rule()
    def expire(self) -> None:
        before = {key for key in self.pinned if self.book.places(key)}
        self.book.expire(self.now)
        assert all(self.book.places(key) for key in before)
        assert all(one.learnt <= self.now for key in self.known() for one in self.book.places(key).values())

    @rule()
    def save(self) -> None:
        change = self.book.changed()
        for key, place in change.removed:
            for one in [one for one in self.store if one[0] == key and place in {None, one[1]}]:
                del self.store[one]
        for key, place, evidence in change.upserts:
            self.store[key, place] = evidence
        held = {(key, place): known for key in self.known() for place, known in self.book.places(key).items()}
        assert self.store == held
        assert not any(self.book.changed().upserts)

    @rule()
    def restart(self) -> None:
        """What was saved is all that is left, and all of that is left."""
        self.book = AddressBook(lambda: 0.9, per_peer=self.PER_PEER, peers=self.PEERS)
        for key in self.pinned:
            self.book.pin(key)
        self.book.restore((key, place, evidence) for (key, place), evidence in self.store.items())
        self.static = {(key, place) for (key, place), known in self.store.items() if known.source is Source.STATIC}

    @invariant()
    def tables_are_bounded(self) -> None:
        static = {key for key, _ in self.static}
        assert len(set(self.known()) - static - self.pinned) <= self.PEERS
        for key in self.known():
            assert 0 < len(self.book.places(key)) <= self.PER_PEER

    @invariant()
    def what_the_user_has_configured_is_there(self) -> None:
        for key, place in self.static:
            assert self.book.places(key)[place].source is Source.STATIC

    @invariant()
    def owners_are_those_that_have_the_place(self) -> None:
        for host in ("192.0.2.1", "192.0.2.2"):
            for port in range(1, 7):
                having = {
                    key for key in self.known() if any(place[1:] == (host, port) for place in self.book.places(key))
                }
                assert self.book.owners((None, host, port)) == having

    @invariant()
    def nothing_is_left_out_but_ourselves(self) -> None:
        for key in self.known():
            missing = set(self.book.places(key)) - set(self.book.candidates(key, self.now))
            assert all(place[1:] in self.book._ourselves for place in missing)


def test_any_sequence_of_events() -> None:
    """Bounds, the user's own entries, the reverse lookup and the store hold whatever happens in whichever order."""
    run_state_machine_as_test(Machine, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))
