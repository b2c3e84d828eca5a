"""A flood of handshakes for raw UDP, from addresses that nobody has.

Half of the packets are KNOCKs, the others HANDSHAKEs with a made-up cookie: each costs whoever gets it a hash and an
answer. Each comes from another of the sixteen million addresses of loopback, with another connection id.

Usage: python flood.py PORT RATE. It says "true" when it has flooded for a second, and answers a line on its standard
input with the packets per second that it has sent so far; it ends with it.
"""

import json
import os
import random
import selectors
import socket
import sys
import time
from typing import Final

from overlay.protocol.udp.cookie import COOKIE_SIZE, knock
from overlay.protocol.udp.handshake_packets import OVERHEAD, Header
from overlay.protocol.udp.wire import ID_SIZE, TAG_SIZE
from overlay.transports.ancillary import IP_PKTINFO, Local

HOST: Final = "127.0.0.1"
FIRST_BYTES: Final = 244
"""Of the frames in a HANDSHAKE: about a ClientHello."""
TICK: Final = 0.001
"""Seconds between two bursts."""


def junk(chance: random.Random) -> bytes:
    """The next packet."""
    own = chance.randbytes(ID_SIZE)
    if chance.random() < 0.5:
        return knock(own)
    header = Header(chance.randbytes(ID_SIZE), own, chance.randbytes(COOKIE_SIZE))
    return header.write() + chance.randbytes(OVERHEAD - TAG_SIZE + FIRST_BYTES)


def source(chance: random.Random) -> Local:
    """An address to send from; a socket that is bound to none may name any that the host has."""
    return Local(socket.IPPROTO_IP, IP_PKTINFO, b"\x7f" + chance.randbytes(3), 0)


def main(port: int, rate: int) -> None:
    chance = random.Random(9330)
    packets = [junk(chance) for _ in range(4096)]
    stdin = selectors.DefaultSelector()
    stdin.register(sys.stdin, selectors.EVENT_READ)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        began, sent, told = time.perf_counter(), 0, False
        while True:
            due = int((time.perf_counter() - began) * rate)
            for number in range(sent, due):
                sock.sendmsg((packets[number % len(packets)],), (source(chance).control(),), 0, (HOST, port))
            sent = max(sent, due)
            if sent >= rate and not told:
                told = True
                print(json.dumps(told), flush=True)
            if not stdin.select(TICK):
                continue
            if not os.read(sys.stdin.fileno(), 4096):
                return
            print(json.dumps(sent / (time.perf_counter() - began)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
