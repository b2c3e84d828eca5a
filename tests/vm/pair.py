"""Two guests on one bridge, and files that go from alice to bob by `overlay send` and `overlay receive`."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from lab import Host, LabError, Network, Process
from lab.kernel import wait_until

from vm.guest import Guest

OVERLAY: Final = (sys.executable, "-m", "overlay.cli")
START_SECONDS: Final = 60.0
"""For a program with all its imports: eight times what an emulated machine takes."""
TRANSFER_SECONDS: Final = 90.0

MAKE_FILE: Final = 'head -c "$1" /dev/urandom > "$0"'
WRITE_KEY: Final = 'umask 077; echo "$0" > key.pem'
COUNT_ARRIVED: Final = "cat inbox/.*.part 2>/dev/null | wc -c"
SEND_IN_HALVES: Final = """
file=$0 half=$1
shift
{
    head -c "$half" "$file"
    until [ -e "$file.rest" ]; do sleep 0.1; done
    tail -c "+$((half + 1))" "$file"
} | "$@"
"""


class Pair:
    """Alice, who sends, and bob, who receives. `boot` them first, and `kill` them in the end.

    Args:
        network: whose processes they become.
        make: makes a guest, from a name, a number, and the host that has the bridges.

    Attributes:
        alice, bob: the guests.
        ticket: bob's.
    """

    def __init__(self, network: Network, make: Callable[[str, int, Host], Guest]) -> None:
        switch = network.host("switch")
        for bridge in ("net0", "net1"):
            switch.ip(f"link add {bridge} type bridge", f"link set {bridge} up")
        switch.ip("addr add 10.2.0.254/24 dev net0")
        self.alice = make("alice", 1, switch)
        self.bob = make("bob", 2, switch)
        self.ticket = ""
        self._key = ""
        self._receiver: Process | None = None

    def boot(self) -> None:
        """Boot both at once, and let bob receive with a new key."""
        for guest in (self.alice, self.bob):
            guest.boot()
        for guest in (self.alice, self.bob):
            guest.wait_until_ready()
        self._receive()
        self._key = self.bob.run("cat", "key.pem")

    def boot_bob(self) -> None:
        """Boot bob again, after his power was cut, and let him receive with his key, which a disk would have kept."""
        self.bob.boot()
        self.bob.wait_until_ready()
        self.bob.run("sh", "-c", WRITE_KEY, self._key)
        self._receive()

    def kill(self) -> None:
        """Cut the power of both."""
        self.alice.kill()
        self.bob.kill()

    @contextmanager
    def impaired(self, netem: str) -> Iterator[None]:
        """Let both kernels spoil what they send on the data network, as tc-netem(8) has it."""
        with ExitStack() as stack:
            for guest in (self.alice, self.bob):
                stack.enter_context(guest.impaired(netem))
            yield

    def send(self, name: str, size: int, *options: str) -> Process:
        """Make a random file of `size` bytes in alice, and begin to send it."""
        self._make_file(name, size)
        return self.alice.start(*OVERLAY, "send", "--json", *options, name, self.ticket)

    def send_half(self, name: str, size: int) -> Process:
        """The same, through a pipe that stops after one half of the file; wait until most of that has arrived.

        So what comes next happens in the midst of a transfer, however slow or fast the machines are.
        """
        self._make_file(name, size)
        send = (*OVERLAY, "send", "--json", f"--name={name}", "-", self.ticket)
        sender = self.alice.start("sh", "-c", SEND_IN_HALVES, name, str(size // 2), *send)

        def here() -> bool:
            if sender.code is not None:
                raise LabError(f"{name} was not sent\n{sender.report()}")
            return int(self.bob.run("sh", "-c", COUNT_ARRIVED)) >= size // 4

        wait_until(here, f"a quarter of {name} to arrive", START_SECONDS)
        return sender

    def send_rest(self, name: str) -> None:
        """Let the other half follow."""
        self.alice.run("touch", f"{name}.rest")

    def finish(self, name: str, sender: Process) -> dict[str, Any]:
        """Wait until a file is there, and compare.

        Returns:
            What the sender has reported.

        Raises:
            LabError: it failed, or bob has got something else.
        """
        if sender.wait(TRANSFER_SECONDS) != 0:
            raise LabError(f"{name} was not sent\n{sender.report()}\n{self.receiver.report()}")
        sent: dict[str, Any] = json.loads(sender.line("{"))
        received = json.loads(self.receiver.line(f'"name": "{name}"'))
        digests = {
            "alice's file": self.alice.run("sha256sum", name).split()[0],
            "bob's file": self.bob.run("sha256sum", f"inbox/{name}").split()[0],
            "what alice says": sent["files"][0]["sha256"],
            "what bob says": received["sha256"],
        }
        if len(set(digests.values())) != 1:
            raise LabError(f"{name} is not the same everywhere: {digests}")
        return sent

    @property
    def receiver(self) -> Process:
        """The `overlay receive --json` in bob."""
        if self._receiver is None:
            raise LabError("bob does not receive yet: boot the pair first")
        return self._receiver

    def _make_file(self, name: str, size: int) -> None:
        self.alice.run("sh", "-c", MAKE_FILE, name, str(size))

    def _receive(self) -> None:
        self.bob.run("mkdir", "inbox")
        listen = f"--listen={self.bob.data}:9330"
        self._receiver = self.bob.start(*OVERLAY, "receive", "inbox", "--json", "--identity=key.pem", listen)
        self.ticket = json.loads(self._receiver.line('"ready"', timeout=START_SECONDS))["ticket"]
