"""For authors of a transport, and for tests of programs that use this library: a conformance suite, and fakes.

A transport is done when it passes `Conformance`, on asyncio and on uvloop. The suite is a class of coroutine methods
without a constructor, which pytest (with pytest-asyncio) collects from a subclass; nothing here needs pytest:

    class TestTcp(Conformance):
        transport = "tcp"

Each method makes its own two endpoints in this process, speaks from one to the other over nothing but that transport,
and looks at what is left. What a user sees is asserted through the public names; what must not leak is counted inside.

`overlay.testing.router` is a small mesh router over `overlay.Driver`, to read and to type into; see there.

The fakes: `Recorder` stands in for a session behind a connection, `Weather` for a network that loses what it carries.
"""

from overlay.testing.conformance import Conformance
from overlay.testing.fakes import (
    LOOPBACK,
    PATIENCE,
    KiB,
    MiB,
    Pair,
    Recorder,
    Weather,
    connections,
    containers,
    crash,
    echo,
    exchange,
    interrupted,
    pair,
    raises,
    read_to_end,
    settled,
    sink,
    ticket,
    together,
    until,
)

__all__ = [
    "LOOPBACK",
    "PATIENCE",
    "Conformance",
    "KiB",
    "MiB",
    "Pair",
    "Recorder",
    "Weather",
    "connections",
    "containers",
    "crash",
    "echo",
    "exchange",
    "interrupted",
    "pair",
    "raises",
    "read_to_end",
    "settled",
    "sink",
    "ticket",
    "together",
    "until",
]
