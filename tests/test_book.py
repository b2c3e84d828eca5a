"""The book of an endpoint: what users say outlives everything, what strangers say is bounded and counted."""

import asyncio
import functools
import gc
import time
import tracemalloc
from pathlib import Path

import pytest

from overlay import Address, Config, ConfigError, DialError, Endpoint, Identity, Limits, PeerId, RecordError, Ticket
from overlay.book import Book
from overlay.protocol.evidence import Source
from overlay.records import PeerRecord
from overlay.store import BookStore
from overlay.testing import raises, ticket, until

MEMORY = Config(transports=("memory",))
HERE = Address("tcp", "192.0.2.1", 1)
THERE = Address("tcp", "192.0.2.2", 2)


def tcp(**settings: object) -> Config:
    return Config(transports=("tcp",), **settings)  # type: ignore[arg-type]


@functools.cache
def key(_number: int) -> PeerId:
    """Always the same one for a number."""
    return Identity.generate().peer_id


# -------------------------------------------------------------------- what outlives a run


async def test_everything_the_user_has_said_is_there_after_a_restart(tmp_path: Path) -> None:
    """Who is kept, blocked, named; addresses with their evidence; the number of a record."""
    path, them = tmp_path / "book", Identity.generate()
    book = Book(tcp(book_path=path))
    await book.open()
    book.say(key(1), kept=True, name="one")
    book.say(key(2), blocked=True)
    book.learn(key(3), HERE, Source.TICKET)
    book.reached(key(3), HERE, 0.25)
    book.missed(key(3), HERE, "hello")
    book.learn(them.peer_id, THERE, Source.TICKET)
    book.learn_record(PeerRecord.make(them, [HERE], 7).encode())
    await book.aclose()

    again = Book(tcp(book_path=path))
    await again.open()
    assert again.kept == [key(1)]
    assert again.name(key(1)) == "one"
    assert again.is_blocked(key(2))
    assert not again.is_blocked(key(1))
    [status] = again.addresses(key(3))
    assert (status.address, status.source, status.rtt) == (HERE, "ticket", 0.25)
    assert (status.successes, status.failures, status.stage) == (1, 1, "hello")
    async with raises(RecordError):
        again.learn_record(PeerRecord.make(them, [HERE], 7).encode())
    assert again.refused["stale"] == 1
    again.learn_record(PeerRecord.make(them, [THERE], 8).encode())
    await again.aclose()


async def test_a_blocked_peer_stays_blocked_when_it_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "book"
    config = Config(transports=("memory",), book_path=path)
    async with Endpoint(Identity.generate(), config) as us:
        us.keep(Ticket(key(1), (HERE,)), name="one")
        us.block(key(1))
        us.remove(key(1))
        us.keep(Ticket(key(2), (HERE,)))
        us.remove(key(2))
        [status] = us.peers()
        assert (status.peer_id, status.blocked, status.kept, status.addresses) == (key(1), True, False, ())
    async with Endpoint(Identity.generate(), config) as us:
        assert [status.peer_id for status in us.peers()] == [key(1)]
        async with raises(DialError):
            await us.connect(Ticket(key(1), (HERE,)))
        us.unblock(key(1))
        us.remove(key(1))
        assert us.peers() == []


async def test_a_blocked_peer_of_the_configuration_stays_blocked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """To keep it by hand is to take the word back; what a file says, was said before."""
    there = Ticket(key(1), (HERE,))
    config = Config(transports=("memory",), book_path=tmp_path / "book", keep=(str(there),))
    async with Endpoint(Identity.generate(), config) as us:
        assert us.book.kept == [key(1)]
        us.block(key(1))
    async with Endpoint(Identity.generate(), config) as us:
        assert us.book.is_blocked(key(1))
        assert us.book.kept == []
        us.keep(there)
        assert not us.book.is_blocked(key(1))
        assert us.book.kept == [key(1)]
    assert "blocked" in caplog.text


async def test_who_is_kept_is_dialled_again_after_a_restart(tmp_path: Path) -> None:
    config = Config(transports=("memory",), book_path=tmp_path / "book")
    identity = Identity.generate()
    async with Endpoint(Identity.generate(), MEMORY) as them:
        async with Endpoint(identity, config) as us:
            us.keep(ticket(them))
            await until(lambda: us.sessions)
        async with Endpoint(identity, config) as us:
            await until(lambda: us.sessions)


# -------------------------------------------------------------------- the file


async def test_two_endpoints_with_one_book_are_told_so_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "book"
    async with Endpoint(Identity.generate(), Config(listen=("127.0.0.1:0",), book_path=path)):
        before = asyncio.all_tasks()
        second = Endpoint(Identity.generate(), Config(listen=("127.0.0.1:0",), book_path=path))
        async with raises(Exception) as caught:
            await second.__aenter__()
        assert type(caught[0]).__name__ == "StoreError"
        assert not second._transports
        assert not second._udp
        assert second.addresses == ()
        assert asyncio.all_tasks() == before


async def test_a_configuration_that_cannot_be_kept_closes_the_book_again(tmp_path: Path) -> None:
    path = tmp_path / "book"
    broken = Endpoint(Identity.generate(), Config(transports=("memory",), book_path=path, keep=("nonsense",)))
    async with raises(Exception) as caught:
        await broken.__aenter__()
    assert type(caught[0]).__name__ == "AddressError"
    assert asyncio.all_tasks() == {asyncio.current_task()}
    async with Endpoint(Identity.generate(), Config(transports=("memory",), book_path=path)):
        pass


async def test_a_store_that_hangs_does_not_keep_the_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody loses patience with the disk and cancels the closing: key and sockets are free nevertheless."""
    async with Endpoint(Identity.generate(), MEMORY) as them:
        us = await Endpoint(
            Identity.generate(), Config(transports=("memory",), book_path=tmp_path / "book")
        ).__aenter__()
        await us.connect(ticket(them))
        events = us.events()
        closes = BookStore.aclose
        stuck = asyncio.Event()

        async def hang(_store: BookStore) -> None:
            stuck.set()
            await asyncio.Event().wait()

        store = us.book._store
        assert store is not None
        monkeypatch.setattr(BookStore, "aclose", hang)
        closing = asyncio.create_task(us.aclose())
        await stuck.wait()
        closing.cancel()
        await asyncio.wait([closing])
        assert not us._transports
        assert not us._peers
        # Who listens is told that it is over.
        assert [event async for event in events]
        await closes(store)


@pytest.mark.parametrize("name", ["x" * 1025, "a\udc80b"])
async def test_a_name_that_no_file_holds_is_refused_at_once(tmp_path: Path, name: str) -> None:
    """Otherwise it would come up when it is written, and take with it what is written with it."""
    async with Endpoint(Identity.generate(), Config(transports=("memory",), book_path=tmp_path / "book")) as us:
        async with raises(ConfigError):
            us.keep(key(1), name=name)
        assert us.peers() == []
        us.keep(key(1), name="x" * 1024)


# -------------------------------------------------------------------- what others say


async def test_strangers_cannot_make_the_book_grow() -> None:
    """Neither what it knows nor what it would have to write: there is no file that asks for it."""
    book = Book(Config(transports=("tcp",), limits=Limits(known_peers=64)))
    await book.open()
    book.learn(key(1), HERE, Source.TICKET)
    book.say(key(2), kept=True)

    def flood(begin: int) -> None:
        for number in range(begin, begin + 2000):
            for port in range(1, 4):
                book.learn(key(number), Address("tcp", "192.0.2.9", port), Source.INBOUND)
                book.missed(key(number), Address("tcp", "192.0.2.9", port), "connect")
            book.forget(key(number)) if number % 2 else book.say(key(number), kept=False)

    for number in range(1000, 5000):
        key(number)
    flood(1000)
    gc.collect()
    tracemalloc.start()
    flood(3000)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(book.peers) <= 64 + 2
    assert book.addresses(key(1))
    assert book.kept == [key(2)]
    assert not book._said
    # 2,000 peers more, of which 64 replace 64 that were not traced.
    assert grown < 2000 * 100
    await book.aclose()


async def test_records_are_refused_by_kind_and_counted() -> None:
    """A flood of them costs nothing but the look at them, and teaches nothing."""
    async with Endpoint(Identity.generate(), Config(transports=("memory",))) as us:
        them, stranger = Identity.generate(), Identity.generate()
        us.book.learn(them.peer_id, HERE, Source.TICKET)
        good = PeerRecord.make(them, [THERE], 5).encode()
        assert us.learn(good) == them.peer_id
        bad = {
            "garbage": b"nonsense",
            "oversized": b"x" * 5000,
            "forged": good[:-1] + bytes([good[-1] ^ 1]),
            "stale": good,
            "foreign": PeerRecord.make(stranger, [THERE], 1).encode(),
        }
        for kind, data in bad.items():
            for _ in range(50):
                async with raises(RecordError):
                    us.learn(data)
            assert us.book.refused[kind] == 50, kind
        assert [status.peer_id for status in us.peers()] == [them.peer_id]


async def test_a_record_ends_the_pause_of_a_peer_that_is_kept() -> None:
    async with Endpoint(Identity.generate(), MEMORY) as us, Endpoint(Identity.generate(), MEMORY) as them:
        us.keep(them.peer_id)
        await until(lambda: us.keeper.next_dial(them.peer_id) is not None)
        us.book.learn(them.peer_id, *((ticket(them).addresses[0]), Source.RECORD))
        us.kick(them.peer_id)
        await until(lambda: us.sessions)


# -------------------------------------------------------------------- words


async def test_blocked_is_never_dialable_and_known_is_who_was_named() -> None:
    book = Book(tcp())
    await book.open()
    book.learn(key(1), HERE, Source.INBOUND)
    assert book.is_dialable(key(1))
    assert not book.is_known(key(1))
    book.say(key(1), blocked=True)
    assert not book.is_dialable(key(1))
    book.say(key(1), blocked=False)
    assert book.is_dialable(key(1))
    for number, source in ((2, Source.TICKET), (3, Source.STATIC)):
        book.learn(key(number), HERE, source)
        assert book.is_known(key(number))
    book.say(key(4), name="four")
    book.say(key(5), kept=True)
    assert book.is_known(key(4))
    assert book.is_known(key(5))
    assert not book.is_dialable(key(5))
    assert book.owners(HERE) == {key(1), key(2), key(3)}
    before = time.time()
    book.inbound(key(1))
    assert (book._book.seen(key(1).raw) or 0.0) >= before
    await book.aclose()
