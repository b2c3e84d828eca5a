"""The first and only program of a guest: it sets the machine up, then runs what the host asks for.

It listens on the control network. One connection is one process: the host sends a JSON list of arguments on one line,
and gets a JSON document per line of output, `{"line": ...}`, and at the end `{"exit": ...}`. If the connection ends
first, so does the process. The host's half is `remote.py`.

Of Python's standard library alone, and of few modules: under emulation each import is felt.
"""

import json
import os
import subprocess
import sys
import threading
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Final

PORT: Final = 7
READY: Final = "overlay guest is ready"
"""Written to the console when the host may connect."""
SCRATCH: Final = "/run"
"""A tmpfs, the only place of a guest that can be written; every distribution has this directory."""

SETUP: Final = """
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
ip link set lo up
ip address add {control}/24 dev {interfaces}0
ip link set {interfaces}0 up
ip address add {data}/24 dev {interfaces}1
ip link set {interfaces}1 up
"""


class OneProcess(StreamRequestHandler):
    """Serves one connection."""

    def handle(self) -> None:
        """Run what the first line says, until it ends or the host hangs up."""
        command = json.loads(self.rfile.readline())
        with subprocess.Popen(
            command,
            cwd=SCRATCH,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process:
            threading.Thread(target=self._end_with_caller, args=(process,), daemon=True).start()
            assert process.stdout is not None
            for line in process.stdout:
                self._tell({"line": line.removesuffix("\n")})
        self._tell({"exit": process.returncode})

    def _end_with_caller(self, process: "subprocess.Popen[str]") -> None:
        self.rfile.read()
        process.kill()

    def _tell(self, document: dict[str, object]) -> None:
        self.wfile.write(json.dumps(document).encode() + b"\n")


class Agent(ThreadingTCPServer):
    """Serves any number of connections at once."""

    daemon_threads = True


def main() -> None:
    """Be the guest's init.

    The arguments: how the names of the network interfaces begin, our addresses on the control and on the data network,
    and the directory of the library.
    """
    interfaces, control, data, library = sys.argv[1:]
    os.environ |= {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": SCRATCH,
        "TMPDIR": SCRATCH,
        "PYTHONPATH": library,
        "PYTHONUNBUFFERED": "1",
    }
    for line in SETUP.format(interfaces=interfaces, control=control, data=data).strip().splitlines():
        subprocess.run(line.split(), check=True)
    with Agent((control, PORT), OneProcess) as agent:
        sys.stdout.write(f"{READY}\n")
        sys.stdout.flush()
        agent.serve_forever()


if __name__ == "__main__":
    main()
