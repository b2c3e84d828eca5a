"""A guest in QEMU: a whole machine, emulated, with the kernel of `images.py`.

Emulated (TCG) and not accelerated, because virtual machines that run tests seldom offer KVM to their guests. The
machine is q35: with `microvm` every third boot hung.
"""

import json
import shlex
import socket
from collections.abc import Sequence
from typing import IO, Any, Final

from lab import Host, LabError

from vm.guest import Guest
from vm.images import Image

MEMORY: Final = "384M"
VIRTIOFSD: Final = "/usr/lib/qemu/virtiofsd"
MONITOR_SECONDS: Final = 10.0


class Qemu(Guest):
    """A machine of QEMU's.

    Args:
        image: what it boots. The others: see `Guest`.
    """

    interfaces = "eth"

    def __init__(self, name: str, number: int, switch: Host, *, image: Image) -> None:
        super().__init__(name, number, switch)
        self._image = image
        self._monitor_port = 4000 + number

    def script(self, init: Sequence[str]) -> str:
        """See `Guest`."""
        command = [
            "qemu-system-x86_64",
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
            *("-machine", "q35,memory-backend=memory", "-accel", "tcg", "-cpu", "max", "-m", MEMORY),
            # Shared, so that virtiofsd can read the guest's requests where they are.
            *("-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on"),
            *("-chardev", "socket,id=files,path=files", "-device", "vhost-user-fs-pci,chardev=files,tag=root"),
            *("-qmp", f"tcp:127.0.0.1:{self._monitor_port},server=on,wait=off"),
            *self._card(0),
            *self._card(1),
            *("-kernel", str(self._image.kernel), "-initrd", str(self._image.initramfs)),
            *("-append", f"console=ttyS0 panic=-1 -- {' '.join(init)}"),
        ]
        files = f"{VIRTIOFSD} --socket-path=files -o source=/run/root -o sandbox=chroot -o cache=always"
        # If virtiofsd ends early, `kill` fails, and with it the script.
        return f"{files} &\nwhile [ ! -S files ]; do kill -0 $!; sleep 0.02; done\nexec {shlex.join(command)}"

    def suspend(self) -> None:
        """See `Guest`."""
        self._tell("stop")

    def resume(self) -> None:
        """See `Guest`."""
        self._tell("cont")

    def _card(self, network: int) -> tuple[str, ...]:
        tap = f"tap,id=net{network},ifname={self.tap(network)},script=no,downscript=no"
        # Without a ROM there is nothing that the machine could boot over the network.
        card = f"virtio-net-pci,netdev=net{network},mac={self.mac(network)},romfile="
        return "-netdev", tap, "-device", card

    def _tell(self, command: str) -> None:
        """Give its monitor a command (QMP: JSON documents, of which the answer has the key `return`)."""
        with self._switch.inside():
            connection = socket.create_connection(("127.0.0.1", self._monitor_port), MONITOR_SECONDS)
        with connection, connection.makefile("rw", encoding="utf-8") as stream:
            for one in ("qmp_capabilities", command):
                stream.write(json.dumps({"execute": one}) + "\n")
                stream.flush()
                _answer(stream, one)


def _answer(stream: IO[str], command: str) -> None:
    """Read over the greeting and events, up to the answer."""
    for line in stream:
        document: dict[str, Any] = json.loads(line)
        if "return" in document:
            return
        if "error" in document:
            raise LabError(f"QEMU's monitor refused {command}: {document['error']}")
    raise LabError(f"QEMU's monitor hung up at {command}: see the console")
