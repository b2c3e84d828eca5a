"""What all commands have in common: standard streams that whoever has started them has closed."""

import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, create_subprocess_exec
from pathlib import Path

import pytest
from cli_support import LISTEN, finish
from router_support import COMMAND, ENVIRONMENT, PATIENCE, node

from overlay.testing import ticket, until

CLOSED = {"input": "<&-", "output": ">&-", "errors": "2>&-", "all": "<&- >&- 2>&-"}


def shell(redirection: str) -> tuple[str, ...]:
    """What a command is to be appended to."""
    return "sh", "-c", f'exec "$@" {redirection}', "sh"


@pytest.mark.parametrize("closed", CLOSED)
async def test_it_runs_with_closed_streams_and_ends_in_order(closed: str) -> None:
    """None of the numbers goes to a socket: what is printed would go there."""
    async with node() as one:
        started = await create_subprocess_exec(
            *shell(CLOSED[closed]), *COMMAND, str(ticket(one.endpoint)),
            stdin=PIPE, stdout=PIPE, stderr=PIPE, env=ENVIRONMENT,
        )  # fmt: skip
        await until(one.driver.neighbours, seconds=PATIENCE)
        await one.router.broadcast(b"something to print")
        assert await one.driver.flush(PATIENCE)
        started.send_signal(signal.SIGINT)
        out, err = await started.communicate()
        assert started.returncode == 130
        assert out.startswith(b"overlay:") == (closed in {"input", "errors"})
        assert err.decode() in {"", f"{one.peer_id} is a neighbour\n"}


def test_a_daemon_without_standard_input_ends_in_order(tmp_path: Path) -> None:
    own = ("--identity", str(tmp_path / "key.pem"), "--book", str(tmp_path / "book"))
    command = [*shell("<&-"), sys.executable, "-m", "overlay.cli", "run", *own, *LISTEN]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("overlay:")
        assert finish(process, signal.SIGTERM) == (130, "", "")
