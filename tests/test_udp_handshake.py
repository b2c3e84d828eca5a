"""The handshake with real TLS over bad networks, and against who is not part of it."""

import heapq
import itertools
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from udp_tls import accepting, dialling, profile

from overlay.errors import HandshakeError, IdentityMismatch, SelfDial
from overlay.identity import Identity, PeerId
from overlay.protocol.codes import CloseCode
from overlay.protocol.udp.aead import Aead
from overlay.protocol.udp.cookie import CookieJar, knock, read_cookie
from overlay.protocol.udp.handshake import AcceptorHandshake, DiallerHandshake, Handshake
from overlay.protocol.udp.handshake_packets import Header, Seal
from overlay.protocol.udp.handshake_states import TRANSITIONS, Event, HandshakeClosed, State
from overlay.protocol.udp.payload import encode_close
from overlay.protocol.udp.wire import COOKIE, HANDSHAKE, KNOCK
from overlay.transports import tls

DIALLER, ACCEPTOR = Identity.generate(), Identity.generate()
HOME = b"\xc6\x33\x64\x07\x24\x72"
OWN = bytes(range(8))
Fate = Callable[[int, bytes], list[float]]
"""What becomes of the n-th datagram: with which delays it arrives."""


class World:
    """A dialler and an acceptor's socket, joined by a link, on a stepped clock."""

    def __init__(
        self,
        *,
        fate: Fate = lambda *_: [0.05],
        mtu: int = 300,
        dialler: tls.Profile | None = None,
        acceptor: tls.Profile | None = None,
        expected: PeerId | None = ACCEPTOR.peer_id,
        settings_size: int | None = None,
    ) -> None:
        self.now = 1000.0
        self.mtu = mtu
        self.fate = fate
        self.jar = CookieJar(random.Random(2).randbytes)
        self.begun = 0
        self.dialler = DiallerHandshake(OWN, dialling(dialler or profile(DIALLER), expected))
        self.accepted: dict[bytes, AcceptorHandshake[PeerId]] = {}
        self.dialler.datagram_size = settings_size or mtu
        self._size = settings_size or mtu
        self._profile = acceptor or profile(ACCEPTOR)
        self._under_way: list[tuple[float, int, bytes, bytes]] = []
        self._order = itertools.count()
        self.trace: list[tuple[str, float, bytes]] = []
        self.hostile: Callable[[bytes, bytes], Iterator[bytes]] | None = None

    @property
    def acceptor(self) -> AcceptorHandshake[PeerId]:
        [one] = self.accepted.values()
        return one

    def _begin(self) -> tls.Handshake:
        self.begun += 1
        return accepting(self._profile)()

    def _send(self, to: bytes, datagrams: list[bytes]) -> None:
        for datagram in datagrams:
            assert len(datagram) <= self.mtu
            number = len(self.trace)
            self.trace.append((to.decode(), self.now, datagram))
            for delay in self.fate(number, datagram):
                heapq.heappush(self._under_way, (self.now + delay, next(self._order), to, datagram))

    def arrive(self, to: bytes, datagram: bytes, source: bytes = HOME) -> bytes | None:
        """What a socket does with a datagram; returns a stateless answer."""
        if to == b"dialler":
            self.dialler.receive_datagram(datagram, self.now)
            return None
        if datagram[:1] == bytes([KNOCK]):
            return self.jar.answer_knock(datagram, source, self.now)
        header = Header.read(datagram)
        if header is None:
            return None
        known = self.accepted.get(header.destination)
        if known is not None:
            if source == HOME:
                known.receive_datagram(datagram, self.now)
            return None
        if not self.jar.accepts(header.cookie, header.source, header.destination, source, self.now):
            return self.jar.answer(header.source, source, self.now)
        one = AcceptorHandshake(header, self._begin)
        one.datagram_size = self._size
        one.receive_datagram(datagram, self.now)
        if one.heard:
            self.accepted[header.destination] = one
        return None

    def flush(self) -> None:
        self._send(b"acceptor", self.dialler.datagrams_to_send(self.now))
        for one in self.accepted.values():
            self._send(b"dialler", one.datagrams_to_send(self.now))

    def run(self, seconds: float = 60.0) -> "World":
        """Until nothing happens any more."""
        end = self.now + seconds
        self.flush()
        while True:
            timeouts = [one.next_timeout() for one in (self.dialler, *self.accepted.values())]
            due = min((one for one in timeouts if one is not None), default=None)
            arrival = self._under_way[0][0] if self._under_way else None
            times = [one for one in (due, arrival) if one is not None]
            if not times or min(times) > end:
                return self
            self.now = max(self.now, min(times))
            if arrival is None or arrival > self.now:
                for one in (self.dialler, *self.accepted.values()):
                    one.handle_timeout(self.now)
            # What arrives at once is read at once, before anything is answered.
            while self._under_way and self._under_way[0][0] <= self.now:
                _, _, to, datagram = heapq.heappop(self._under_way)
                if self.hostile is not None:
                    for bad in self.hostile(to, datagram):
                        self.arrive(to, bad)
                        self.arrive(to, bad, b"elsewhere")
                answer = self.arrive(to, datagram)
                if answer is not None:
                    self._send(b"dialler", [answer])
            self.flush()

    def check_complete(self) -> None:
        """Both have proven each other, and have the same keys."""
        assert self.dialler.state is self.acceptor.state is State.PROVEN
        assert self.dialler.peer == ACCEPTOR.peer_id
        assert self.acceptor.peer == DIALLER.peer_id
        one, other = self.dialler.protection, self.acceptor.protection
        assert one is not None
        assert other is not None
        assert other.open(one.seal_burst(0, [b"to acceptor"]), -1, self.now) == (0, b"to acceptor")
        assert one.open(other.seal_burst(0, [b"to dialler"]), -1, self.now) == (0, b"to dialler")
        for side in (self.dialler, self.acceptor):
            assert side.next_timeout() is None
            side.confirm()
            assert side.state is State.CONFIRMED
            assert not side.datagrams_to_send(self.now)

    def shape(self) -> list[tuple[str, float, int, int]]:
        """What an observer sees but for the bytes, which TLS draws anew each time."""
        return [(to, time, datagram[0], len(datagram)) for to, time, datagram in self.trace]


def bad_luck(seed: int, loss: float = 0.3, delay: float = 0.05) -> Fate:
    chance = random.Random(seed)

    def fate(_number: int, _datagram: bytes) -> list[float]:
        copies = 0 if chance.random() < loss else 1 + (chance.random() < 0.2)
        return [delay * chance.uniform(0.5, 2.0) for _ in range(copies)]

    return fate


@pytest.mark.parametrize("mtu", [200, 272, 300, 1400, 65_507])
def test_it_completes_in_packets_no_larger_than_the_path(mtu: int) -> None:
    world = World(mtu=mtu).run()
    world.check_complete()
    # Knock, cookie, hello, answer, proof, acknowledgement: without loss nothing is sent twice.
    assert len(world.trace) == {200: 15, 272: 12, 300: 12, 1400: 6, 65_507: 6}[mtu]
    assert world.now == pytest.approx(1000.3)


@pytest.mark.parametrize("seed", range(30))
def test_it_completes_over_a_link_that_loses_doubles_and_reorders(seed: int) -> None:
    world = World(fate=bad_luck(seed)).run()
    world.check_complete()
    assert world.now < 1025.0
    assert len(world.trace) < 120


@pytest.mark.parametrize("delay", [0.0005, 0.5, 2.5])
def test_it_completes_from_one_millisecond_to_five_seconds(delay: float) -> None:
    """Round trips of 5 s, first with no loss, then with 20 %."""
    world = World(fate=lambda *_: [delay]).run()
    world.check_complete()
    assert world.now <= 1000.0 + 6 * delay + 2 * 2.5
    assert len(world.trace) < 60
    world = World(fate=bad_luck(1, 0.2, delay)).run(120)
    world.check_complete()


HONEST = len(World().run().trace)


@pytest.mark.parametrize("position", range(HONEST))
def test_each_packet_may_be_lost(position: int) -> None:
    world = World(fate=lambda number, _: [] if number == position else [0.05]).run()
    world.check_complete()
    assert world.now < 1003.0


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(range(HONEST), 2)))
def test_any_two_packets_may_be_lost(first: int, second: int) -> None:
    world = World(fate=lambda number, _: [] if number in {first, second} else [0.05]).run()
    world.check_complete()
    assert world.now < 1006.0


def test_every_packet_may_be_delivered_twice_and_backwards() -> None:
    world = World(fate=lambda number, _: [0.05 - number * 0.0005, 0.06]).run()
    world.check_complete()


def test_a_blackout_is_survived() -> None:
    world = World(fate=lambda number, _: [] if 4 <= number < 30 else [0.05])
    world.run(600)
    world.check_complete()


# --- who is not part of it


def flips(_to: bytes, datagram: bytes) -> Iterator[bytes]:
    chance = random.Random(len(datagram))
    for position in range(len(datagram)):
        changed = bytearray(datagram)
        changed[position] ^= 1 << chance.randrange(8)
        yield bytes(changed)


def cuts(_to: bytes, datagram: bytes) -> Iterator[bytes]:
    yield from (datagram[:size] for size in range(1, len(datagram)))
    yield datagram + b"\0"


def garbage(_to: bytes, datagram: bytes) -> Iterator[bytes]:
    chance = random.Random(len(datagram))
    for kind, size in itertools.product((KNOCK, COOKIE, HANDSHAKE, 0x83, 0xA0, 0x00, 0xFF), (0, 5, 20, 45, 300)):
        yield bytes([kind]) + chance.randbytes(size)


class Replays:
    """Everything that was ever seen, again, in both directions."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def __call__(self, _to: bytes, datagram: bytes) -> Iterator[bytes]:
        yield from self.seen
        self.seen.append(datagram)


def forgeries(_to: bytes, datagram: bytes) -> Iterator[bytes]:
    """Made by somebody who knows both ids, and not the cookie."""
    header = Header.read(datagram)
    if header is None:
        return
    seal = Seal.of_dialler(header.source, header.destination, b"guessed cookie!!")
    other = Seal.of_acceptor(header.destination, header.source, b"guessed cookie!!")
    for one, number in itertools.product((seal, other), (0, 1, 5, 2**32 - 1)):
        yield one.seal(header, number, encode_close(CloseCode.REFUSED, "forged"))
        yield one.seal(header, number, b"\x0c\x00\x05world")


def expected_of(hostile: Callable[[bytes, bytes], Iterator[bytes]]) -> tuple[World, World]:
    pair = World(), World()
    pair[1].hostile = hostile
    return pair


@pytest.mark.parametrize("hostile", [flips, cuts, garbage, Replays(), forgeries], ids=str)
def test_what_strangers_send_at_any_stage_changes_nothing(hostile: Callable[[bytes, bytes], Iterator[bytes]]) -> None:
    """The same packets at the same times as without them, the same result, and no second state."""
    alone, disturbed = expected_of(hostile)
    alone.run()
    disturbed.run()
    assert disturbed.shape() == alone.shape()
    assert disturbed.begun == 1
    disturbed.check_complete()


def test_false_cookies_do_not_keep_the_true_one_out() -> None:
    """Somebody who saw the KNOCK is faster than the acceptor."""
    world = World()
    world.flush()
    for seed in range(3):
        world.arrive(b"dialler", CookieJar(random.Random(seed + 10).randbytes).answer(OWN, HOME, 0.0))
    world.run()
    world.check_complete()


def test_a_cookie_that_comes_twice_is_used_once() -> None:
    world = World()
    world.flush()
    cookie = world.jar.answer(OWN, HOME, world.now)
    for _ in range(3):
        world.arrive(b"dialler", cookie)
    assert len(world.dialler.datagrams_to_send(world.now)) == 2


def test_an_acceptor_that_is_done_repeats_nothing() -> None:
    """The dialler's acknowledgement was lost, but its answer shows that it has everything."""
    acknowledgement = [to for to, _, _ in World().run().trace].index("acceptor", 4)
    world = World(fate=lambda number, _: [] if number == acknowledgement else [0.05]).run()
    world.check_complete()
    assert sum(to == "dialler" and len(datagram) > 80 for to, _, datagram in world.trace) == 4


def test_the_cookies_that_a_dialler_tries_are_bounded() -> None:
    world = World()
    world.flush()
    for seed in range(100):
        world.arrive(b"dialler", CookieJar(random.Random(seed + 10).randbytes).answer(OWN, HOME, 0.0))
    assert len(world.dialler.datagrams_to_send(world.now)) <= 8


def test_a_spoofed_source_gets_less_than_its_own_bytes_and_no_state() -> None:
    world = World()
    for number in range(1000):
        datagram = knock(number.to_bytes(8, "big"))
        answer = world.arrive(b"acceptor", datagram, b"victim")
        assert answer is not None
        assert len(answer) < len(datagram)
    assert not world.accepted
    assert not world.begun


def test_without_a_good_cookie_there_is_no_state_no_tls_and_a_smaller_answer() -> None:
    world = World()
    hello = bytes(200)
    for number in range(200):
        dialler = number.to_bytes(8, "big")
        for cookie in (b"", bytes(16), bytes(255)):
            header = Header(bytes(8), dialler, cookie)
            packet = Seal.of_dialler(dialler, bytes(8), cookie).seal(header, 0, b"\x0c\x00\x40\xc8" + hello)
            answer = world.arrive(b"acceptor", packet, b"victim")
            assert answer is not None
            assert len(answer) < len(packet)
    assert not world.accepted
    assert not world.begun


def test_a_cookie_for_another_address_opens_nothing() -> None:
    world = World()
    found = read_cookie(world.jar.answer(OWN, b"here", world.now), OWN)
    assert found is not None
    acceptor, cookie = found
    packet = Seal.of_dialler(OWN, acceptor, cookie).seal(Header(acceptor, OWN, cookie), 0, b"\x0c\x00\x01x")
    assert world.arrive(b"acceptor", packet, b"there") is not None
    assert not world.accepted
    assert world.arrive(b"acceptor", packet, b"here") is None
    assert world.accepted


def test_a_good_cookie_on_a_packet_that_does_not_open_makes_no_state() -> None:
    world = World()
    found = read_cookie(world.jar.answer(OWN, HOME, world.now), OWN)
    assert found is not None
    acceptor, cookie = found
    packet = Seal.of_dialler(OWN, acceptor, cookie).seal(Header(acceptor, OWN, cookie), 0, b"\x0c\x00\x01x")
    for bad in (packet[:-1] + b"\0", packet[:-1]):
        world.arrive(b"acceptor", bad)
    assert not world.accepted
    assert not world.begun


def test_an_acceptor_that_starts_anew_is_found_with_another_cookie() -> None:
    """The hello arrives after a restart: its cookie is worth nothing, and the answer is a new one."""
    world = World()
    world.run(0.12)
    assert world.dialler.state is State.SHAKING
    world.jar = CookieJar(random.Random(5).randbytes)
    world.accepted.clear()
    world.run()
    world.check_complete()


# --- endings


def failed(world: World) -> tuple[Exception, Exception]:
    """Both sides have failed, soon, and say why."""
    world.run()
    assert world.now < 1001.0
    for side in (world.dialler, world.acceptor):
        assert side.state is State.FAILED
        assert side.protection is None
        assert side.peer is None or side is world.dialler
    assert world.dialler.error is not None
    assert world.acceptor.error is not None
    return world.dialler.error, world.acceptor.error


def test_another_key_than_the_dialled_one_fails_on_both_sides() -> None:
    ours, theirs = failed(World(expected=Identity.generate().peer_id))
    assert isinstance(ours, IdentityMismatch)
    assert isinstance(theirs, HandshakeError | HandshakeClosed)


def test_our_own_key_is_a_self_dial() -> None:
    ours, _ = failed(World(acceptor=profile(DIALLER), expected=None))
    assert isinstance(ours, SelfDial)


def test_an_acceptor_that_refuses_the_dialler_is_heard_after_the_dialler_was_done() -> None:
    """TLS 1.3: the dialler has proven the acceptor and may have sent already."""
    strict = profile(ACCEPTOR)
    wrong = profile(DIALLER)
    handshake = strict.handshake

    def refusing(role: object, expected: PeerId | None = None) -> tls.Handshake:
        return handshake(role, Identity.generate().peer_id)  # type: ignore[arg-type]

    strict.handshake = refusing  # type: ignore[method-assign]
    ours, theirs = failed(World(dialler=wrong, acceptor=strict))
    assert isinstance(ours, HandshakeClosed)
    assert ours.by_peer
    assert ours.code == CloseCode.UNAUTHENTICATED
    assert isinstance(theirs, IdentityMismatch)
    assert "UNAUTH" not in str(ours) or "peer" in str(ours)


def test_another_protocol_is_refused() -> None:
    ours, theirs = failed(World(acceptor=profile(ACCEPTOR, alpn=b"overlay-tcp/1")))
    assert isinstance(ours, HandshakeError)
    assert isinstance(theirs, HandshakeError | HandshakeClosed)


@pytest.mark.parametrize("position", range(HONEST))
def test_a_refusal_survives_the_loss_of_any_packet(position: int) -> None:
    world = World(expected=Identity.generate().peer_id, fate=lambda number, _: [] if number == position else [0.05])
    world.run()
    assert world.dialler.state is State.FAILED
    # The acceptor learns it, or keeps trying until its caller's deadline.
    assert world.acceptor.state in {State.FAILED, State.SHAKING}


@pytest.mark.parametrize("steps", [0, 3, 8, 14, 19, 24, 40])
def test_either_side_may_give_up_at_any_time_and_the_other_hears_it(steps: int) -> None:
    for name in ("dialler", "acceptor"):
        world = World().run(steps / 100)
        if name == "acceptor" and not world.accepted:
            continue
        one: Handshake[PeerId] = getattr(world, name)
        one.close(CloseCode.BUSY)
        assert one.state is State.FAILED
        assert isinstance(one.error, HandshakeClosed)
        assert not one.error.by_peer
        one.close(CloseCode.BUSY)
        world.run()
        assert one.next_timeout() is None
        if name == "acceptor":
            assert isinstance(world.dialler.error, HandshakeClosed)
            assert world.dialler.error.code == CloseCode.BUSY


def test_goodbyes_are_not_repeated_for_ever() -> None:
    world = World().run(0.17)
    world.acceptor.close(CloseCode.BUSY)
    world.flush()
    sent = 0
    number = 50
    found = read_cookie(world.jar.answer(OWN, HOME, world.now), OWN)
    assert found is not None
    acceptor, cookie = found
    seal = Seal.of_dialler(OWN, acceptor, cookie)
    for number in range(50, 1074):
        world.arrive(b"acceptor", seal.seal(Header(acceptor, OWN, b""), number, b"\x01"))
        sent += len(world.acceptor.datagrams_to_send(world.now))
    assert sent <= 11


def test_a_goodbye_is_not_believed_by_an_acceptor_that_has_the_diallers_key() -> None:
    """Then there are keys that only the two have."""
    world = World().run()
    found = read_cookie(world.jar.answer(OWN, HOME, world.now), OWN)
    assert found is not None
    acceptor, cookie = found
    seal = Seal.of_dialler(OWN, acceptor, cookie)
    world.arrive(b"acceptor", seal.seal(Header(acceptor, OWN, b""), 99, encode_close(CloseCode.REFUSED, "")))
    assert world.acceptor.state is State.PROVEN


def test_a_late_repetition_is_acknowledged_and_a_confirmed_one_is_silent() -> None:
    world = World(fate=lambda number, _: [] if number == HONEST - 1 else [0.05]).run()
    world.check_complete()
    for _, _, datagram in world.trace:
        world.dialler.receive_datagram(datagram, world.now)
        world.acceptor.receive_datagram(datagram, world.now)
    assert not world.dialler.datagrams_to_send(world.now)
    assert not world.acceptor.datagrams_to_send(world.now)


# --- the packet cipher


@pytest.mark.parametrize(("one", "other"), list(itertools.product(Aead, Aead)))
def test_the_cipher_is_the_weaker_sides(one: Aead, other: Aead) -> None:
    world = World(dialler=profile(DIALLER, one), acceptor=profile(ACCEPTOR, other)).run()
    world.check_complete()
    assert world.dialler.protection is not None
    wanted = Aead.AES_128_GCM if one is other is Aead.AES_128_GCM else Aead.CHACHA20_POLY1305
    assert world.dialler.protection._aead is wanted


def test_two_handshakes_of_the_same_two_have_different_keys() -> None:
    worlds = World().run(), World().run()
    one, other = worlds[0].dialler.protection, worlds[1].acceptor.protection
    assert one is not None
    assert other is not None
    assert other.open(one.seal_burst(0, [b"x"]), -1, 0.0) is None


# --- the table, and noise


@given(st.lists(st.sampled_from(Event), max_size=10))
def test_what_is_over_stays_over(events: list[Event]) -> None:
    state = State.KNOCKING
    for event in events:
        following = TRANSITIONS[state].get(event)
        if following is None:
            continue
        assert state is not State.FAILED
        assert state is not State.CONFIRMED or following is State.CONFIRMED
        state = following


def test_what_cannot_happen_is_a_mistake_of_the_callers() -> None:
    with pytest.raises(RuntimeError, match="KNOCKING"):
        World().dialler.confirm()


@settings(max_examples=50)
@given(st.lists(st.binary(min_size=1, max_size=400), max_size=5), st.sampled_from([0.0, 0.08, 0.14, 0.2]))
def test_noise_raises_nothing(datagrams: list[bytes], when: float) -> None:
    world = World().run(when)
    for datagram in datagrams:
        world.arrive(b"dialler", datagram)
        world.arrive(b"acceptor", datagram)
        world.flush()


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=200), max_size=5), st.sampled_from([0.08, 0.14, 0.2, 0.3]))
def test_noise_under_the_seal_raises_nothing(payloads: list[bytes], when: float) -> None:
    """Of somebody who has seen all; it may end the handshake, and no more."""
    world = World().run(when)
    found = read_cookie(world.jar.answer(OWN, HOME, world.now), OWN)
    assert found is not None
    acceptor, cookie = found
    ours, theirs = Seal.of_dialler(OWN, acceptor, cookie), Seal.of_acceptor(OWN, acceptor, cookie)
    for number, payload in enumerate(payloads, 100):
        world.arrive(b"acceptor", ours.seal(Header(acceptor, OWN, cookie), number, payload))
        world.arrive(b"dialler", theirs.seal(Header(OWN, acceptor, b""), number, payload))
        world.flush()
    for one in (world.dialler, *world.accepted.values()):
        assert one.state is not State.PROVEN or one.peer in {ACCEPTOR.peer_id, DIALLER.peer_id}
