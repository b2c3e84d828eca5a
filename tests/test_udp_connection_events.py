"""Events are values: two that say the same are equal, and none can be changed."""

import dataclasses

import pytest

from overlay.protocol.codes import CloseCode
from overlay.protocol.udp import connection, connection_events
from overlay.protocol.udp.connection_events import AddressChanged, Closed, Confirmed, IdsChanged, Outgoing, Proven


@pytest.mark.parametrize(
    "event",
    [
        Proven("somebody"),
        Confirmed(),
        Closed(CloseCode.NO_ERROR, "", "us"),
        IdsChanged((b"12345678",), ()),
        AddressChanged(("198.51.100.7", 9330)),
        Outgoing(b"data", 4, "there"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_event_is_a_value(event: object) -> None:
    assert dataclasses.is_dataclass(event)
    assert not isinstance(event, type)
    assert dataclasses.replace(event) == event
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        setattr(event, "code", 1)  # noqa: B010 - a plain assignment is refused by the type checker already


def test_all_are_to_be_had_where_the_connection_is() -> None:
    for name in connection.__all__:
        assert getattr(connection, name) is getattr(connection_events, name, getattr(connection, name))
