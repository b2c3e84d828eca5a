"""The config file that `overlay run --print-config` prints: every setting, its default and what it is for.

All of it comes from `Config` itself, and so cannot fall behind, but for what `overlay run` does otherwise.
"""

import ast
import inspect
import json
import textwrap
from typing import Any, Final

from overlay.cli.options import RUN_LISTEN, RUN_PORT, default_book, default_identity
from overlay.cli.settings import plain_fields
from overlay.config import Config, Limits

WIDTH: Final = 100
OWN_DEFAULTS: Final[dict[str, tuple[Any, str]]] = {
    "listen": (
        RUN_LISTEN,
        f"`overlay run` has a fixed port, {RUN_PORT}, so that its ticket stays good over restarts.",
    )
}
"""What `overlay run` does otherwise than an endpoint, and why."""


def example() -> str:
    """A config file with all defaults and what each is for; it parses back."""
    lines = [
        "# Settings of `overlay run --config FILE`. Times are in seconds, sizes in bytes.",
        "# What is set here is the default; what is commented out has none, or is an example.",
        "",
        "[endpoint]",
        *_comment("The file of our key. Paths are relative to this file's directory."),
        f"# identity = {_toml(str(default_identity()))}",
        *_comment("The address book: what has been learnt about peers, kept over restarts."),
        f"# book = {_toml(str(default_book()))}",
        *_comment(
            'Who may connect to us: "all", "known" (whom this file names, or `overlay peers add`), or a list of keys '
            'such as ["abc..."]. It is decided when the key is proven, before any state exists.'
        ),
        'accept = "all"',
    ]
    for table in (Config, Limits):
        if table is Limits:
            lines += ["", "[limits]", *_comment("Bounds on memory and work.")]
        said = _field_docs(table)
        for name, kind in plain_fields(table).items():
            value = OWN_DEFAULTS[name][0] if name in OWN_DEFAULTS else getattr(table(), name)
            setting = f"# {name} = {_toml('' if kind is str else 1)}" if value is None else f"{name} = {_toml(value)}"
            lines += [*_comment(said[name]), *_comment(OWN_DEFAULTS.get(name, ("", ""))[1]), setting]
    key = "aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypq"
    lines += [
        "",
        *_comment("Whom to know from the start. One table for each peer:"),
        "# [[peers]]",
        f'# ticket = "overlay:{key}@198.51.100.7:9330"',
        *_comment("What you call it, in `overlay peers` for example."),
        '# name = "alice"',
        *_comment("Stay connected to it, for ever; false: know its addresses only."),
        "# keep = true",
    ]
    return "\n".join(lines) + "\n"


def _field_docs(table: type[Config | Limits]) -> dict[str, str]:
    """What stands under each field of a dataclass: Python keeps it in the source only."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(table))).body
    said: dict[str, str] = {}
    name = ""
    for node in definition.body if isinstance(definition, ast.ClassDef) else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            said[name] = ""
        elif name and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            said[name] = inspect.cleandoc(str(node.value.value))
    return said


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ") if text else []


def _toml(value: Any) -> str:
    """Strings, numbers, booleans and lists of strings are written alike in JSON and TOML."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
