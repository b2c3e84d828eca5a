"""The lab by hand: `sudo python tests/lab` lists the scenarios, `sudo python tests/lab run "UDP blocked"` runs some."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

HERE = Path(__file__).parent
# Started as a folder, Python looks for modules inside of it, and not beside it.
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])

from lab import LabError, Network  # noqa: E402 - only now they are found
from lab.matrix import Row, run  # noqa: E402
from lab.report import table  # noqa: E402
from lab.scenarios import Scenario, scenarios  # noqa: E402
from lab.topology import Site  # noqa: E402

# Typer brings its own copy of click; the base of its usage errors has no public name there.
CLICK_ERROR: Final[type[BaseException]] = typer.BadParameter.__mro__[2]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")

Names = Annotated[list[str] | None, typer.Argument(help="Parts of scenarios' names; none: all of them.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@app.callback(invoke_without_command=True)
def lab(context: typer.Context) -> None:
    """Networks that block, lose, delay and change, in namespaces of this machine. Needs root."""
    if context.invoked_subcommand is None:
        list_()


@app.command("list")
def list_(json_: Json = False) -> None:
    """List the scenarios."""
    found = scenarios()
    if json_:
        typer.echo(
            json.dumps([{"scenario": one.name, "dialler": one.dialler, "expected": list(one.first)} for one in found])
        )
        return
    for one in found:
        typer.echo(f"{one.title}: {' or '.join(one.first) or 'no connection'}")


@app.command("run")
def run_(names: Names = None, json_: Json = False) -> None:
    """Run scenarios; the exit code is 1 if one of them does not end as expected.

    Example: `sudo python tests/lab run "all UDP blocked" CGNAT`
    """
    rows: list[Row] = []
    for scenario in _chosen(names):
        typer.echo(f"{scenario.title} ...", err=True)
        rows.append(run(scenario))
        if json_:
            typer.echo(json.dumps(rows[-1].document))
    if not json_:
        typer.echo("\n".join(table(rows)))
    for row in rows:
        for fault in row.faults:
            typer.echo(f"{row.scenario.title}: {fault}", err=True)
    if any(row.faults for row in rows):
        raise typer.Exit(1)


@app.command("shell")
def shell_(name: Annotated[str, typer.Argument(help="A part of one scenario's name.")]) -> None:
    """Build a scenario's network and open a shell in its host a; the network goes when the shell ends."""
    [scenario, *_] = _chosen([name])
    with Network(scenario.plan.families) as network:
        site = Site(network, scenario.plan)
        scenario.wrong(site)
        for host in network.hosts.values():
            typer.echo(f"{host.name}: {host.address(scenario.plan.families[0])}, ip netns exec {host.namespace} ...")
        with site.hosts["a"].inside():
            os.spawnlp(os.P_WAIT, os.environ.get("SHELL", "sh"), "sh")


def _chosen(names: list[str] | None) -> list[Scenario]:
    found = scenarios()
    unknown = [name for name in names or () if not any(name in one.title for one in found)]
    if unknown:
        raise LabError(f"no scenario has {unknown[0]!r} in its name: `python tests/lab list` shows all")
    return [one for one in found if not names or any(name in one.title for name in names)]


def main() -> int:
    """Run the command; the exit code."""
    try:
        return int(app(standalone_mode=False) or 0)
    except KeyboardInterrupt:
        return 130
    except LabError as error:
        sys.stderr.write("".join(f"lab: {line}\n" for line in str(error).splitlines()))
        return 2
    except CLICK_ERROR as error:
        usage: Any = error
        sys.stderr.write(f"lab: {usage.format_message().rstrip('.')}; `python tests/lab --help` shows what there is\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
