"""The config file of `overlay run`: TOML, with the settings of `Config` under their own names.

    [endpoint]   every plain setting of `Config`, and `identity`, `book`, `accept`
    [limits]     every setting of `Limits`
    [[peers]]    whom to know: `ticket`, `name`, `keep`

Whatever is not understood is refused, in one line that names the file, the table and the key. Names and kinds
come from `Config` itself: a setting that is added there can be set here, and is in the example.
"""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal

from overlay.addresses import Ticket
from overlay.cli.naming import check_peer_name, parse_target
from overlay.cli.output import UsageError
from overlay.config import Config, Limits
from overlay.errors import AddressError, ConfigError
from overlay.identity import PeerId

MAX_FILE_BYTES: Final = 4 * 1024 * 1024
"""Room for some ten thousand peers; beyond, it is some other file."""
MAX_NUMBER: Final = 2**63
"""TOML's integers end there; so do infinities and what is not a number."""

TABLES: Final = ("endpoint", "limits", "peers")
PATHS: Final = ("identity", "book")
PEER_KEYS: Final = ("ticket", "name", "keep")
ELSEWHERE: Final = frozenset({"keep"})
"""Of `Config`, but said by `[[peers]]` here."""

_NEEDED: Final[dict[Any, str]] = {
    tuple[str, ...]: "a list of strings",
    str: "a string",
    bool: "true or false",
    int: "a whole number, not negative",
    float: "a number, not negative",
}
"""The kinds of settings that a file can set, in words."""


class SettingsError(ConfigError):
    """What a config file says cannot work. The text names the file, the table and the key."""


@dataclass(frozen=True, slots=True)
class PeerSetting:
    """One `[[peers]]`."""

    target: Ticket | PeerId
    name: str = ""
    keep: bool = True
    """Stay connected; otherwise its addresses are known, for whoever asks for it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a config file says; what it does not say is not here, and stays as it is by default."""

    config: dict[str, Any]
    """Arguments of `Config`."""
    identity: Path | None = None
    book: Path | None = None
    peers: tuple[PeerSetting, ...] = ()


def read_settings(path: Path) -> Settings:
    """Read a config file. `~` and paths relative to the file's directory are understood in it.

    Raises:
        SettingsError: it cannot be read, or says what cannot work.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise SettingsError(f"{path}: no config file of ours: it has more than {MAX_FILE_BYTES} bytes")
    try:
        document = tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    except ValueError as error:
        # Python's limit on the digits of a number, besides what tomllib raises.
        raise SettingsError(f"{path}: not TOML: {error}") from error
    except RecursionError as error:
        raise SettingsError(f"{path}: nested too deeply") from error
    return _Reader(path).settings(document)


class _Reader:
    """Makes settings of a parsed document, and errors that say where."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def settings(self, document: dict[str, Any]) -> Settings:
        self._known("", document, TABLES, "table")
        endpoint = self._table(document, "endpoint")
        plain = plain_fields(Config)
        self._known("[endpoint]", endpoint, (*plain, *PATHS, "accept"), "key")
        config = {
            name: self._value("[endpoint]", name, plain[name], endpoint[name]) for name in plain & endpoint.keys()
        }
        if "accept" in endpoint:
            config["accept"] = self._accept(endpoint["accept"])
        self._check("[endpoint]", Config, config)
        limits = self._table(document, "limits")
        plain = plain_fields(Limits)
        self._known("[limits]", limits, plain, "key")
        if limits:
            bounds = {name: self._value("[limits]", name, plain[name], limits[name]) for name in limits}
            self._check("[limits]", Limits, bounds)
            config["limits"] = Limits(**bounds)
        paths = {name: self._place(name, endpoint[name]) for name in PATHS if name in endpoint}
        return Settings(config, peers=self._peers(document.get("peers", [])), **paths)

    def _peers(self, tables: Any) -> tuple[PeerSetting, ...]:
        if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
            raise self._error("peers", "write [[peers]], once for each peer")
        peers: list[PeerSetting] = []
        numbers: dict[PeerId | str, int] = {}
        for number, table in enumerate(tables, 1):
            where = f"[[peers]] number {number}"
            self._known(where, table, PEER_KEYS, "key")
            if "ticket" not in table:
                raise self._error(where, "has no ticket")
            try:
                target = parse_target(self._value(where, "ticket", str, table["ticket"]))
                name = check_peer_name(self._value(where, "name", str, table.get("name", "")))
            except (AddressError, UsageError) as error:
                key = "ticket" if isinstance(error, AddressError) else "name"
                raise self._error(f"{where}, {key}", str(error)) from error
            keep = self._value(where, "keep", bool, table.get("keep", True))
            peer_id = target.peer_id if isinstance(target, Ticket) else target
            if peer_id is target and not keep and not name:
                raise self._error(where, "says nothing: a bare key that is not kept needs a name")
            for unique in (peer_id, name):
                if unique and (first := numbers.setdefault(unique, number)) != number:
                    what = "name" if unique == name else "ticket"
                    raise self._error(f"{where}, {what}", f"{unique} is number {first} already")
            peers.append(PeerSetting(target, name, keep))
        return tuple(peers)

    def _accept(self, value: Any) -> Any:
        where = "[endpoint] accept"
        if value in ("all", "known"):
            return value
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self._error(where, f'needs "all", "known" or a list of keys, not {_shown(value)}')
        try:
            return frozenset(map(PeerId.parse, value))
        except AddressError as error:
            raise self._error(where, str(error)) from error

    def _place(self, name: str, value: Any) -> Path:
        text = self._value("[endpoint]", name, str, value)
        if not text or "\0" in text:
            raise self._error(f"[endpoint] {name}", "needs the path of a file")
        try:
            return self._path.parent / Path(text).expanduser()
        except RuntimeError as error:
            raise self._error(f"[endpoint] {name}", str(error)) from error

    def _value(self, table: str, name: str, kind: Any, value: Any) -> Any:
        if _fits(kind, value):
            return tuple(value) if isinstance(value, list) else value
        raise self._error(f"{table} {name}", f"needs {_NEEDED[kind]}, not {_shown(value)}")

    def _check(self, table: str, what: type[Config | Limits], values: dict[str, Any]) -> None:
        """Let the settings check themselves, and find out which one is at fault."""
        try:
            what(**values)
        except ConfigError as error:
            for name, value in values.items():
                try:
                    what(**{name: value})
                except ConfigError as alone:
                    raise self._error(f"{table} {name}", str(alone)) from error
            raise self._error(table, str(error)) from error

    def _table(self, document: dict[str, Any], name: str) -> dict[str, Any]:
        table = document.get(name, {})
        if not isinstance(table, dict):
            raise self._error(name, f"write [{name}], a table, once")
        return table

    def _known(self, table: str, given: Iterable[str], known: Iterable[str], what: Literal["table", "key"]) -> None:
        names = list(known)
        for name in given:
            if name not in names:
                near = get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "there are " + ", ".join(names)
                raise self._error(table, f"no {what} is called {_shown(name)}: {hint}")

    def _error(self, where: str, why: str) -> SettingsError:
        return SettingsError(": ".join(part for part in (str(self._path), where, why) if part))


def plain_fields(table: type[Config | Limits]) -> dict[str, Any]:
    """Settings that a file can set, each with its kind."""
    optional: dict[Any, Any] = {kind | None: kind for kind in (str, bool, int, float)}
    kinds = {field.name: optional.get(field.type, field.type) for field in fields(table)}
    return {name: kind for name, kind in kinds.items() if kind in _NEEDED and name not in ELSEWHERE}


def _fits(kind: Any, value: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MAX_NUMBER
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_NUMBER
    if kind in {str, bool}:
        return isinstance(value, kind)
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
