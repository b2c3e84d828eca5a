"""A line between two namespaces that delays, loses, reorders and duplicates: a process, with a TAP device at each end.

The kernel's own emulator (netem) is not on every machine that runs these tests; TAP devices are. `Line` is the
parent's side: it starts this file as a process, changes the weather while packets are under way, and reads counters.
The process opens both TAPs, reads frames from the one, and writes them to the other when they are due.

They talk over a pair of sockets that keep messages apart. A request is a JSON object with new impairments for none,
one or both directions ("up", "down"), the answer one with the counters of both. The first answer means that the TAPs
are up. The process ends when the pair closes, so also when its parent is killed, and the TAPs vanish with it.
"""

import contextlib
import errno
import fcntl
import json
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from lab import kernel
from lab.impairment import Counters, Direction, Impairment

ANSWER_SECONDS = 10.0
"""An answer takes milliseconds; this is for a machine that is busy with other things."""
BURST = 64
"""Frames read from a TAP in one go. More would make the packets that are due meanwhile late."""
FRAME_SIZE = 65_535 + 18
"""The largest IP packet, an Ethernet header and a VLAN tag: interfaces may get another MTU while the line runs."""
MESSAGE_SIZE = 64 * 1024
RING = 10_000
"""Frames that the kernel keeps for us in a TAP. What it drops there nobody counts: of 1,000 datagrams sent at once its
default of 500 lost half."""

# linux/if_tun.h
TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000


class LineError(kernel.LabError):
    """A line could not be made, or its process ended before its time."""


class Line:
    """A line between two namespaces.

    Args:
        lower: the namespace of the one end and the name of the interface to make there.
        upper: the same for the other end. "Up" is from lower to upper.
        mtu: of both interfaces, in bytes.
        impairment: of both directions, or of up and of down.
        seed: the same seed and the same packets make the same weather.
    """

    def __init__(
        self,
        lower: tuple[str, str],
        upper: tuple[str, str],
        *,
        mtu: int,
        impairment: Impairment | tuple[Impairment, Impairment],
        seed: int = 0,
    ) -> None:
        self._namespace = lower[0]
        self._name = f"{lower[0]}/{lower[1]} - {upper[0]}/{upper[1]}"
        self._arguments = (*lower, *upper, str(mtu), str(seed))
        self._impairment = impairment
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """Of the process that carries the packets."""
        if self._process is None:
            raise LineError(f"the line {self._name} is not running: call start()")
        return self._process.pid

    def start(self) -> None:
        """Make both interfaces, and set them up. They have no addresses.

        Raises:
            LabError: they cannot be made, and why.
        """
        if self._process is not None:
            raise LineError(f"the line {self._name} is running already")
        tests = str(Path(__file__).resolve().parents[1])
        # Inside one of its namespaces it is found and ended with them, should this process not come to it.
        with kernel.inside(self._namespace):
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(
                    # -P: the folder of this file must not come before the standard library.
                    [sys.executable, "-P", __file__, *self._arguments],
                    env=os.environ | {"PYTHONPATH": tests},
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    # An interrupt from the keyboard is for the parent, which closes the line when it is done with it.
                    start_new_session=True,
                )
        self._control.settimeout(ANSWER_SECONDS)
        self.impair(self._impairment)

    def impair(self, impairment: Impairment | tuple[Impairment, Impairment]) -> None:
        """Change the weather, for both directions or for (up, down). On return it has changed.

        Raises:
            LineError: the process is gone.
        """
        up, down = impairment if isinstance(impairment, tuple) else (impairment, impairment)
        self._ask({"up": up, "down": down})

    def counters(self) -> dict[str, Counters]:
        """What became of the packets so far, for "up" and for "down".

        Raises:
            LineError: the process is gone.
        """
        return self._ask({})

    def close(self) -> None:
        """End the process; the interfaces vanish. Again is fine.

        Raises:
            LineError: it had ended before, by an error of its own, or it had to be killed.
        """
        if self._process is not None and (trouble := self._end()):
            raise LineError(f"the line {self._name} failed: {trouble}")

    def _ask(self, request: dict[str, Impairment]) -> dict[str, Counters]:
        if self._control is None:
            raise LineError(f"the line {self._name} is not running: call start()")
        message = json.dumps({direction: asdict(impairment) for direction, impairment in request.items()})
        answer = b""
        # Silence is judged below: whether the process is gone or hangs, its end tells why.
        with contextlib.suppress(ConnectionError, TimeoutError):
            self._control.send(message.encode())
            answer = self._control.recv(MESSAGE_SIZE)
        if not answer:
            trouble = self._end() or f"it gave no answer in {ANSWER_SECONDS:g} s"
            raise LineError(f"the line {self._name} failed: {trouble}")
        return {direction: Counters(**counters) for direction, counters in json.loads(answer).items()}

    def _end(self) -> str:
        """End the process, by force if need be; what was wrong with it, nothing if it ended as it should."""
        assert self._process is not None
        assert self._control is not None
        process, self._process = self._process, None
        control, self._control = self._control, None
        control.close()
        try:
            said = process.communicate(timeout=ANSWER_SECONDS)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return f"it hung for {ANSWER_SECONDS:g} s and was killed"
        if process.returncode == 0:
            return ""
        return said.strip().rpartition("\n")[2] or f"it ended with {process.returncode}"


def open_tap(namespace: str, name: str, mtu: int) -> int:
    """Make a TAP device in a namespace and set it up.

    Returns:
        Its file descriptor. The device is gone when it closes.

    Raises:
        LabError: there is no such namespace, or the interface cannot be made as asked.
    """
    with kernel.inside(namespace):
        try:
            tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
        except OSError as error:
            raise kernel.LabError(f"cannot make the interface {name} in {namespace}: {error}") from error
    command = ["ip", "link", "set", "dev", name, "mtu", str(mtu), "txqueuelen", str(RING), "up"]
    kernel.run(command, namespace=namespace)
    return tap


def read_frames(tap: int, direction: Direction) -> None:
    """Take what waits in a TAP, up to a bound."""
    for _ in range(BURST):
        try:
            frame = os.read(tap, FRAME_SIZE)
        except BlockingIOError:
            return
        # One look at the clock for a whole burst would let its last frames arrive before their time.
        direction.push(frame, time.monotonic())


def write_frames(tap: int, direction: Direction) -> None:
    """Hand a TAP what is due."""
    for frame in direction.due(time.monotonic()):
        try:
            os.write(tap, frame)
        except OSError as error:
            # So says an interface that is down; like a cable's, its packets are lost.
            if error.errno != errno.EIO:
                raise
            direction.counters.refused += 1


def carry(lower: int, upper: int, directions: dict[str, Direction], control: socket.socket) -> None:
    """Move frames between two TAPs, and answer requests, until the other end of `control` closes."""
    up, down = directions["up"], directions["down"]
    inlets = [lower, upper, control.fileno()]
    while True:
        deadlines = [when for when in (up.next_due, down.next_due) if when is not None]
        wait = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        # select takes microseconds; the other calls of its kind round to milliseconds.
        ready = select.select(inlets, [], [], wait)[0]
        if lower in ready:
            read_frames(lower, up)
        if upper in ready:
            read_frames(upper, down)
        write_frames(upper, up)
        write_frames(lower, down)
        if control.fileno() in ready:
            message = control.recv(MESSAGE_SIZE)
            if not message:
                return
            for name, impairment in json.loads(message).items():
                directions[name].impair(Impairment(**impairment))
            answer = {name: asdict(direction.counters) for name, direction in directions.items()}
            control.send(json.dumps(answer).encode())


def main(arguments: list[str]) -> None:
    """The process: its arguments are those of a `Line`, its standard input is its end of the pair of sockets."""
    lower_namespace, lower_name, upper_namespace, upper_name, mtu, seed = arguments
    directions = {
        # Two sources of chance: what happens in the one direction does not change the other.
        name: Direction(Impairment(), random.Random(f"{seed} {name}"))
        for name in ("up", "down")
    }
    with socket.socket(fileno=sys.stdin.fileno()) as control:
        try:
            lower = open_tap(lower_namespace, lower_name, int(mtu))
            upper = open_tap(upper_namespace, upper_name, int(mtu))
            carry(lower, upper, directions, control)
        except kernel.LabError as error:
            raise SystemExit(str(error)) from error
        except ConnectionError:
            # The parent has gone without waiting for its answer: an end like any other.
            return
        except OSError as error:
            raise SystemExit(f"an interface has been taken away: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
