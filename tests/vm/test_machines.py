"""The library between two machines with kernels of their own: weather in those kernels, sleep, and power cuts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import vm
from overlay.cli.output import ExitCode
from vm.pair import OVERLAY, START_SECONDS
from vm.weather import WEATHER

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]
"""Emulated machines are slow, and slower on a slow host; each wait has a limit of its own."""

KiB = 2**10
Tell = Callable[[str], None]


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    def tell(text: str) -> None:
        vm.report.append(f"{request.node.name}: {text}")

    return tell


def test_each_machine_has_a_kernel_of_its_own(pair: vm.Pair, tell: Tell) -> None:
    boot_id = "/proc/sys/kernel/random/boot_id"
    boots = {Path(boot_id).read_text(encoding="ascii").strip()}
    for guest in (pair.alice, pair.bob):
        boots.add(guest.run("cat", boot_id))
        assert guest.run("uname", "-r") in guest.kernel_line
        tell(f"console of {guest.name}: {guest.kernel_line}")
    assert len(boots) == 3


@pytest.mark.parametrize("transport", ["quic", "udp", "tcp"])
def test_a_file_goes_over_each_transport(pair: vm.Pair, transport: str) -> None:
    """Each alone: an emulated machine's QUIC handshake takes as long as the head start that it has over TCP."""
    sent = pair.finish(transport, pair.send(transport, 1024 * KiB, f"--transport={transport}"))
    assert sent["bytes_by_transport"][transport] > 1024 * KiB
    assert list(sent["bytes_by_transport"]) == [transport]


@pytest.mark.parametrize("name", WEATHER)
def test_a_file_arrives_whole_in_bad_weather(pair: vm.Pair, name: str, tell: Tell) -> None:
    weather = WEATHER[name]
    with pair.impaired(weather.netem):
        sent = pair.finish(name, pair.send(name, 512 * KiB))
        seen = weather.shows(pair)
    tell(f"512 KiB in {sent['seconds']} s, bytes by transport: {sent['bytes_by_transport']}; {seen}")


def test_a_transfer_goes_on_when_a_suspended_receiver_wakes(pair: vm.Pair, tell: Tell) -> None:
    sender = pair.send_half("asleep", 1024 * KiB)
    with pair.bob.suspended():
        pair.send_rest("asleep")
        # It takes its time, and shows what anybody could see of bob meanwhile: nothing.
        ping = pair.alice.start(*OVERLAY, "ping", "--json", "--timeout=6", pair.ticket)
        assert ping.wait(START_SECONDS) == ExitCode.UNREACHABLE, ping.report()
        assert sender.code is None, sender.report()
    sent = pair.finish("asleep", sender)
    assert sent["seconds"] > 6
    tell(f"1 MiB in {sent['seconds']} s, bytes by transport: {sent['bytes_by_transport']}")


def test_a_power_cut_ends_a_transfer_and_the_same_ticket_works_again(pair: vm.Pair, tell: Tell) -> None:
    sender, ticket = pair.send_half("cut", 1024 * KiB), pair.ticket
    pair.bob.kill()
    pair.send_rest("cut")
    pair.boot_bob()
    assert pair.ticket == ticket
    assert sender.wait(START_SECONDS) == ExitCode.LOST, sender.report()
    tell(json.loads(sender.line("{"))["error"])
    pair.finish("again", pair.send("again", 512 * KiB))
