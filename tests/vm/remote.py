"""The host's end of a process in a guest: `remote.py ADDRESS PORT COMMAND...` says and ends what that one does.

So everything that the lab can do with a process of its own (wait for a line, for the end, show what it said) it can do
with one in a guest. If this one is killed, that one is. It imports little, as it is started for each.
"""

import json
import socket
import sys

CONNECT_SECONDS = 10.0


def main() -> None:
    """Run the command of the command line; whoever started us keeps the time."""
    address, port, *command = sys.argv[1:]
    with socket.create_connection((address, int(port)), CONNECT_SECONDS) as connection:
        connection.settimeout(None)
        connection.sendall(json.dumps(command).encode() + b"\n")
        for line in connection.makefile(encoding="utf-8"):
            match json.loads(line):
                case {"line": str(text)}:
                    sys.stdout.write(f"{text}\n")
                    sys.stdout.flush()
                case {"exit": int(code)}:
                    # As shells have it: 128 + the number of the signal that ended it.
                    sys.exit(code if code >= 0 else 128 - code)
    sys.exit(f"the guest at {address} hung up: its console says why")


if __name__ == "__main__":
    main()
