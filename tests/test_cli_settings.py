"""The config file of `overlay run`: the example is true, and every mistake is named in one line."""

import re
import tomllib
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cli_support import overlay
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlay import Config, Identity, Limits, PeerId, Ticket
from overlay.cli.example import example
from overlay.cli.options import RUN_LISTEN, default_book, default_identity
from overlay.cli.settings import MAX_FILE_BYTES, PeerSetting, Settings, SettingsError, read_settings

KEY = Identity.generate().peer_id
TICKET = f"overlay:{KEY}@198.51.100.7:9330"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "overlay.toml"


def read(file: Path, text: str) -> Settings:
    file.write_text(text, encoding="utf-8")
    return read_settings(file)


def refusal(file: Path, text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        read(file, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- the example


def test_the_example_parses_back_to_the_defaults(file: Path) -> None:
    """All of them: a default that is not what is shown would be a lie."""
    read_back = read(file, example())
    assert Config(**read_back.config) == Config(listen=RUN_LISTEN)
    assert (read_back.identity, read_back.book, read_back.peers) == (None, None, ())
    assert RUN_LISTEN == ("0.0.0.0:9330", "[::]:9330")
    assert "fixed port, 9330" in example()


def test_what_is_commented_out_in_the_example_parses_too(file: Path) -> None:
    """Each line that is a setting can be used by removing its "# "."""
    text = re.sub(r"^# (?=\w+ = |\[\[)", "", example(), flags=re.MULTILINE)
    read_back = read(file, text)
    assert (read_back.identity, read_back.book) == (default_identity(), default_book())
    assert read_back.config["fwmark"] == 1
    [peer] = read_back.peers
    assert isinstance(peer.target, Ticket)
    assert (peer.name, peer.keep) == ("alice", True)


def test_the_example_explains_every_setting() -> None:
    """A comment stands before each; whatever is not here is set in another way, by name."""
    lines = example().splitlines()
    shown = set()
    for before, line in pairwise(lines):
        if found := re.match(r"(?:# )?(\w+) = ", line):
            assert before.startswith("# "), line
            shown.add(found[1])
    wanted = {field.name for table in (Config, Limits) for field in fields(table)}
    assert wanted - shown == {"book_path", "limits"}
    assert shown - wanted == {"book", "identity", "ticket", "name"}


def test_the_command_prints_the_example() -> None:
    """And nothing else, whatever else is asked."""
    result = overlay("run", "--print-config", "--listen", "nonsense")
    assert (result.code, result.err) == (0, "")
    assert result.out == example()
    assert tomllib.loads(result.out)["endpoint"]["accept"] == "all"


# ---------------------------------------------------------------- what is read


def test_settings_are_read_under_their_own_names(file: Path) -> None:
    """Numbers may be written as integers; lists become what `Config` wants."""
    read_back = read(
        file,
        f"""
        [endpoint]
        listen = ["127.0.0.1:0"]
        keepalive = 5
        fwmark = 0x10
        transports = ["tcp"]
        accept = ["{KEY}"]
        [limits]
        live_streams = 7
        [[peers]]
        ticket = "{TICKET}"
        name = "alice"
        [[peers]]
        ticket = "{Identity.generate().peer_id}"
        name = "bob"
        keep = false
        """,
    )
    config = Config(**read_back.config)
    assert (config.listen, config.keepalive, config.fwmark) == (("127.0.0.1:0",), 5, 16)
    assert (config.transports, config.limits) == (("tcp",), Limits(live_streams=7))
    assert read_back.config["accept"] == {KEY}
    first, second = read_back.peers
    assert first == PeerSetting(Ticket.parse(TICKET), "alice", keep=True)
    assert (type(second.target), second.name, second.keep) == (PeerId, "bob", False)


@pytest.mark.parametrize("value", ["all", "known"])
def test_admission_by_word(file: Path, value: str) -> None:
    """As `Config` has it."""
    assert read(file, f'[endpoint]\naccept = "{value}"').config == {"accept": value}


def test_an_empty_file_changes_nothing(file: Path) -> None:
    """It is a file with all defaults."""
    assert read(file, "# nothing\n") == Settings({})


def test_paths_are_relative_to_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon is started in any directory; `~` is our home."""
    monkeypatch.setenv("HOME", "/somewhere")
    read_back = read(file, '[endpoint]\nbook = "data/book"\nidentity = "~/key.pem"')
    assert read_back.book == file.parent / "data" / "book"
    assert read_back.identity == Path("/somewhere/key.pem")
    assert read(file, '[endpoint]\nbook = "/absolute"').book == Path("/absolute")


# ---------------------------------------------------------------- what is refused

WRONG: list[tuple[str, str]] = [
    ("[endpiont]", "no table is called 'endpiont': did you mean 'endpoint'?"),
    ("x = 1", "no table is called 'x': there are endpoint, limits, peers"),
    ("endpoint = 5", "endpoint: write [endpoint], a table, once"),
    ("[[endpoint]]", "endpoint: write [endpoint], a table, once"),
    ("[peers]", "peers: write [[peers]], once for each peer"),
    ("peers = [1]", "peers: write [[peers]], once for each peer"),
    ("[endpoint]\nkeepalvie = 1", "[endpoint]: no key is called 'keepalvie': did you mean 'keepalive'?"),
    ("[endpoint]\nlive_streams = 1", "[endpoint]: no key is called 'live_streams': "),
    ("[endpoint]\nbook_path = 'x'", "[endpoint]: no key is called 'book_path': did you mean 'book'?"),
    ("[endpoint]\nkeep = []", "[endpoint]: no key is called 'keep': "),
    ("[limits]\nlive_stream = 1", "[limits]: no key is called 'live_stream': did you mean 'live_streams'?"),
    ("[endpoint]\nkeepalive = '5 s'", "[endpoint] keepalive: needs a number, not negative, not '5 s'"),
    ("[endpoint]\nkeepalive = true", "[endpoint] keepalive: needs a number, not negative, not True"),
    ("[endpoint]\nkeepalive = nan", "[endpoint] keepalive: needs a number, not negative, not nan"),
    ("[endpoint]\nkeepalive = inf", "[endpoint] keepalive: needs a number, not negative, not inf"),
    ("[endpoint]\nkeepalive = -1.0", "[endpoint] keepalive: needs a number, not negative, not -1.0"),
    ("[endpoint]\nkeepalive = 0", "[endpoint] keepalive: keepalive must be above 0"),
    ("[endpoint]\nkeepalive = 1" + "0" * 400, "[endpoint] keepalive: needs a number, not negative, not 1000"),
    ("[endpoint]\nkeepalive = 1" + "0" * 5000, "not TOML: "),
    ("[endpoint]\nfwmark = 0x8000000000000000", "[endpoint] fwmark: needs a whole number"),
    ("[endpoint]\nfwmark = 1.5", "[endpoint] fwmark: needs a whole number, not negative, not 1.5"),
    ("[endpoint]\nfwmark = -1", "[endpoint] fwmark: needs a whole number, not negative, not -1"),
    ("[endpoint]\nlisten = '0.0.0.0:0'", "[endpoint] listen: needs a list of strings, not '0.0.0.0:0'"),
    ("[endpoint]\nlisten = [1]", "[endpoint] listen: needs a list of strings, not [1]"),
    ("[endpoint]\nresume_timeout = 5\ntransports = ['pigeon']", "[endpoint] transports: unknown transport 'pigeon'"),
    ("[endpoint]\nnever_dial = ['fe80::/200']", "[endpoint] never_dial: "),
    ("[endpoint]\nlargest_datagram = 5", "[endpoint] largest_datagram: "),
    ("[endpoint]\naccept = 'none'", '[endpoint] accept: needs "all", "known" or a list of keys, not \'none\''),
    ("[endpoint]\naccept = {}", "[endpoint] accept: needs "),
    ("[endpoint]\naccept = ['me']", "[endpoint] accept: 'me': a peer id has 52 characters"),
    ("[endpoint]\nbook = 5", "[endpoint] book: needs a string, not 5"),
    ("[endpoint]\nbook = ''", "[endpoint] book: needs the path of a file"),
    ('[endpoint]\nidentity = "a\\u0000b"', "[endpoint] identity: needs the path of a file"),
    ("[endpoint]\nidentity = '~nobody-has-this-name/x'", "[endpoint] identity: "),
    ("[limits]\nlive_streams = '5'", "[limits] live_streams: needs a whole number, not negative, not '5'"),
    ("[[peers]]\nname = 'x'", "[[peers]] number 1: has no ticket"),
    ("[[peers]]\nticket = 'x'", "[[peers]] number 1, ticket: 'x': a peer id has 52 characters"),
    ("[[peers]]\nticket = 'KEY'\nkeep = false", "number 1: says nothing: a bare key that is not kept needs a name"),
    ("[[peers]]\nticket = 5", "[[peers]] number 1 ticket: needs a string, not 5"),
    ("[[peers]]\nticket = 'TICKET'\nkeep = 'yes'", "[[peers]] number 1 keep: needs true or false, not 'yes'"),
    (
        "[[peers]]\nticket = 'TICKET'\nname = ' x'",
        "[[peers]] number 1, name: ' x': a peer's name is one printable line",
    ),
    ("[[peers]]\nticket = 'TICKET'\nnmae = 'x'", "[[peers]] number 1: no key is called 'nmae': did you mean 'name'?"),
    ("[[peers]]\nticket = 'TICKET'\n[[peers]]\nticket = 'KEY'", f"number 2, ticket: {KEY} is number 1 already"),
    (
        "[[peers]]\nticket = 'TICKET'\nname = 'a'\n[[peers]]\nticket = 'OTHER'\nname = 'a'",
        "number 2, name: a is number 1 already",
    ),
    ("[endpoint", "not TOML: "),
    ("[endpoint]\nkeepalive = 1\nkeepalive = 2", "not TOML: "),
    ("x = " + "[" * 5000, "nested too deeply"),
]


@pytest.mark.parametrize(("text", "part"), WRONG, ids=range(len(WRONG)))
def test_a_mistake_is_one_line_that_says_where(file: Path, text: str, part: str) -> None:
    """File, table, key, and what it should be."""
    for word, value in (("TICKET", TICKET), ("KEY", str(KEY)), ("OTHER", str(Identity.generate().peer_id))):
        text = text.replace(word, value)
    said = refusal(file, text)
    assert said.startswith(f"{file}: ")
    assert part in said


def test_files_that_are_none_are_named(tmp_path: Path, file: Path) -> None:
    """Missing, a directory, too big, no text."""
    with pytest.raises(SettingsError, match="No such file"):
        read_settings(file)
    with pytest.raises(SettingsError, match="Is a directory"):
        read_settings(tmp_path)
    file.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(SettingsError, match="more than"):
        read_settings(file)
    file.write_bytes(b"# \xff")
    with pytest.raises(SettingsError, match="not UTF-8: invalid start byte at byte 2"):
        read_settings(file)


def test_the_command_line_says_it_as_wrong_usage(file: Path) -> None:
    """Exit code 2, before a key or a book is made."""
    file.write_text("[endpoint]\nkeepalvie = 1\n")
    result = overlay("run", "--config", file, "--identity", file.parent / "key.pem", "--book", file.parent / "book")
    assert (result.code, result.out) == (2, "")
    assert result.err == f"overlay: {file}: [endpoint]: no key is called 'keepalvie': did you mean 'keepalive'?\n"
    assert [path.name for path in file.parent.iterdir()] == ["overlay.toml"]


VALUES: Any = st.recursive(
    st.integers(-5, 5) | st.booleans() | st.floats() | st.text(max_size=8) | st.sampled_from([TICKET, "all", str(KEY)]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
KEYS = st.sampled_from(
    [field.name for field in fields(Config)] + ["book", "identity", "ticket", "name", "live_streams"]
)
TABLE = st.sampled_from(["[endpoint]", "[limits]", "[[peers]]", "[x]", ""])


def toml(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return '"' + "".join(f"\\U{ord(one):08x}" for one in value) + '"'
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case _:
            return str(value)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TABLE, st.dictionaries(KEYS, VALUES, max_size=2)), max_size=3))
def test_any_document_gives_settings_or_one_line(file: Path, tables: list[tuple[str, dict[str, Any]]]) -> None:
    """Never another error, and never settings that `Config` would refuse."""
    lines = [line for name, table in tables for line in (name, *(f"{key} = {toml(table[key])}" for key in table))]
    try:
        read_back = read(file, "\n".join(lines))
    except SettingsError as error:
        assert str(error).startswith(f"{file}: ")
        assert "\n" not in str(error)
    else:
        Config(**read_back.config)
