"""The end is told ever more rarely."""

from overlay.protocol.udp.goodbye import LASTS, Goodbye


def test_it_is_due_after_the_first_second_fourth_eighth_packet() -> None:
    goodbye = Goodbye()
    assert not goodbye.is_due
    due: list[int] = []
    for number in range(1, 101):
        goodbye.receive_packet()
        if goodbye.is_due:
            due.append(number)
            goodbye.is_due = False
    assert due == [1, 2, 4, 8, 16, 32, 64]


def test_its_time_runs_from_the_first_call() -> None:
    goodbye = Goodbye()
    assert goodbye.over_at is None
    goodbye.begin(10.0, 0.5)
    goodbye.begin(11.0, 2.0)
    assert goodbye.over_at == 10.0 + LASTS * 0.5
