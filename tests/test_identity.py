"""Keys, their files, their certificates."""

import contextlib
import copy
import errno
import os
import pickle
import runpy
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import AddressError, HandshakeError, IdentityError
from overlay.identity import Identity, PeerId, peer_id_of
from overlay.protocol.codes import CloseCode

ROOT = Path(__file__).parent.parent
P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
SIGN = 1 << 255

# RFC 8032 section 7.1, test 1: secret and public key.
SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
PRINTED = "25njqamcweflpvkl73j4szahhihoc4xt3ktcgjnpaingr5yhkena"


def test_a_known_key_has_its_known_peer_id() -> None:
    """The vector of RFC 8032 in base32."""
    identity = Identity(ed25519.Ed25519PrivateKey.from_private_bytes(SECRET))
    assert identity.peer_id.raw == PUBLIC
    assert str(identity.peer_id) == PRINTED
    assert identity.peer_id.short == "25njqamc"
    assert repr(identity) == "<Identity 25njqamc>"
    assert repr(identity.peer_id) == f"PeerId.parse('{PRINTED}')"


@given(st.binary(min_size=32, max_size=32))
def test_every_key_reads_back_as_printed(secret: bytes) -> None:
    """Print, parse, in both cases; order and hash are those of the bytes."""
    peer = Identity(ed25519.Ed25519PrivateKey.from_private_bytes(secret)).peer_id
    text = str(peer)
    assert len(text) == 52
    assert text.isascii()
    assert text == text.lower()
    assert PeerId.parse(text) == PeerId.parse(text.upper()) == peer == PeerId(peer.raw)
    assert hash(PeerId.parse(text)) == hash(peer)
    other = PeerId(PUBLIC)
    assert (peer < other) == (peer.raw < PUBLIC)
    assert copy.copy(peer) == pickle.loads(pickle.dumps(peer)) == peer


def test_the_bytes_of_a_peer_id_are_its_own() -> None:
    """A buffer that changes later does not change the key."""
    buffer = bytearray(PUBLIC)
    peer = PeerId(buffer)  # type: ignore[arg-type]
    buffer[0] ^= 1
    assert peer.raw == PUBLIC
    assert hash(peer) == hash(PeerId(PUBLIC))


def points_of_small_order() -> list[bytes]:
    """All eight, found by arithmetic: multiples of a point of order 8."""

    def add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        (x1, y1), (x2, y2) = a, b
        k = D * x1 * x2 * y1 * y2
        return (
            (x1 * y2 + x2 * y1) * pow(1 + k, -1, P) % P,
            (y1 * y2 + x1 * x2) * pow(1 - k, -1, P) % P,
        )

    order = 2**252 + 27742317777372353535851937790883648493
    for y in range(2, 100):
        square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
        x = pow(square, (P + 3) // 8, P)
        x = x if x * x % P == square else x * pow(2, (P - 1) // 4, P) % P
        if x * x % P != square:
            continue
        # The point times the order of the large subgroup has an order that divides 8.
        total, addend, bits = (0, 1), (x, y), order
        while bits:
            total = add(total, addend) if bits & 1 else total
            addend, bits = add(addend, addend), bits >> 1
        points = [(0, 1)]
        while (point := add(points[-1], total)) != (0, 1):
            points.append(point)
        if len(points) == 8:
            return [(y | (x & 1) << 255).to_bytes(32, "little") for x, y in points]
    raise AssertionError("no point of order 8")


def test_the_eight_points_of_small_order_are_refused() -> None:
    """Anybody can sign for them. The list is computed here, not copied."""
    points = points_of_small_order()
    assert len(set(points)) == 8
    for raw in points:
        with pytest.raises(IdentityError, match="small order"):
            PeerId(raw)


@pytest.mark.parametrize("sign", [0, SIGN])
@pytest.mark.parametrize("y", range(P, 2**255))
def test_encodings_that_are_not_canonical_are_refused(y: int, sign: int) -> None:
    """All 19 values of y from p on, with both sign bits (RFC 8032 section 5.1.3)."""
    with pytest.raises(IdentityError, match="canonical"):
        PeerId((y | sign).to_bytes(32, "little"))


@pytest.mark.parametrize("y", [1, P - 1])
def test_zero_with_a_sign_is_refused(y: int) -> None:
    """x = 0 has no sign bit (RFC 8032 section 5.1.3 step 4)."""
    with pytest.raises(IdentityError):
        PeerId((y | SIGN).to_bytes(32, "little"))


def test_what_is_no_point_of_the_curve_is_refused() -> None:
    """y = 2 has no x."""
    with pytest.raises(IdentityError, match="no point"):
        PeerId((2).to_bytes(32, "little"))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_other_lengths_are_refused(length: int) -> None:
    """32 bytes, nothing else."""
    with pytest.raises(IdentityError, match="32 bytes"):
        PeerId(PUBLIC[:1] * length)


@given(st.binary(min_size=32, max_size=32))
def test_any_32_bytes_are_a_key_or_an_identity_error(raw: bytes) -> None:
    """Never another exception; and what passes prints and reads back."""
    try:
        peer = PeerId(raw)
    except IdentityError:
        return
    assert PeerId.parse(str(peer)) == peer


@given(st.text(max_size=60) | st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=52, max_size=52))
def test_any_text_is_a_peer_id_or_an_address_error(text: str) -> None:
    """Never another exception."""
    with contextlib.suppress(AddressError):
        assert str(PeerId.parse(text)) == text.lower()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "52 characters, not 0"),
        (PRINTED[:-1], "52 characters, not 51"),
        (PRINTED + "=", "52 characters, not 53"),
        ("x" * 100_000, "52 characters, not 100000"),
        ("0" + PRINTED[1:], "'0' is not used"),
        ("\u0131" + PRINTED[1:], "is not used"),
        ("\u017f" + PRINTED[1:], "is not used"),
        (PRINTED[:-1] + "b", "bits beyond the key"),
        ("a" * 52, "small order"),
    ],
)
def test_a_wrong_peer_id_says_what_is_wrong(text: str, why: str) -> None:
    """One short sentence each."""
    with pytest.raises(AddressError, match=why) as caught:
        PeerId.parse(text)
    assert len(str(caught.value)) < 300


def test_a_new_key_gets_a_private_file_in_private_directories(tmp_path: Path) -> None:
    """Mode 0600 below 0700, PKCS#8 PEM, and nothing else left there."""
    path = tmp_path / "one" / "two" / "identity.pem"
    identity = Identity.load_or_create(path)
    assert identity.path == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [stat.S_IMODE(p.stat().st_mode) for p in (path.parent, path.parent.parent)] == [0o700, 0o700]
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert list(path.parent.iterdir()) == [path]


def test_the_second_start_has_the_same_key(tmp_path: Path) -> None:
    """The file is read, and not touched."""
    path = tmp_path / "identity.pem"
    first = Identity.load_or_create(path)
    before = path.stat()
    assert Identity.load_or_create(str(path)).peer_id == first.peer_id
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_relative_path_still_holds_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is made absolute at once."""
    monkeypatch.chdir(tmp_path)
    identity = Identity.load_or_create("identity.pem")
    assert identity.path == tmp_path / "identity.pem"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_file_that_others_can_open_is_refused_with_the_mending_command(tmp_path: Path, mode: int) -> None:
    """The command works as printed, with a space in the name too."""
    path = tmp_path / "my key.pem"
    Identity.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(IdentityError, match="Mend it with: chmod 600 ") as caught:
        Identity.load_or_create(path)
    subprocess.run(["/bin/sh", "-c", str(caught.value).rpartition("Mend it with: ")[2]], check=True)
    Identity.load_or_create(path)


def written(path: Path, content: bytes) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(content)
    return path


def test_damaged_files_are_refused_and_stay_as_they_are(tmp_path: Path) -> None:
    """Every truncation of a key file, an empty one, garbage, a giant."""
    good = Identity.load_or_create(tmp_path / "good.pem").path
    assert good is not None
    content = good.read_bytes()
    for bad in (*(content[:cut] for cut in range(0, len(content) - 1, 7)), os.urandom(200), bytes(70_000)):
        path = written(tmp_path / "bad.pem", bad)
        with pytest.raises(IdentityError, match=r"bad\.pem"):
            Identity.load_or_create(path)
        assert path.read_bytes() == bad


def test_keys_of_another_kind_are_refused(tmp_path: Path) -> None:
    """An ECDSA key, and a locked Ed25519 one."""
    pkcs8 = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    ecdsa = ec.generate_private_key(ec.SECP256R1()).private_bytes(*pkcs8, serialization.NoEncryption())
    with pytest.raises(IdentityError, match="another kind"):
        Identity.load_or_create(written(tmp_path / "ecdsa.pem", ecdsa))
    locked = Identity.generate().private_key.private_bytes(*pkcs8, serialization.BestAvailableEncryption(b"secret"))
    with pytest.raises(IdentityError, match="encrypted"):
        Identity.load_or_create(written(tmp_path / "locked.pem", locked))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A directory, a FIFO (which must not block), a link into nothing, a path through a file."""
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    file = written(tmp_path / "file", b"x")
    for path, why in (
        (tmp_path, "a directory"),
        (tmp_path / "fifo", "no regular file"),
        (tmp_path / "dangling", "symbolic link"),
        (file / "identity.pem", "Not a directory"),
    ):
        with pytest.raises(IdentityError, match=why):
            Identity.load_or_create(path)
    assert not (tmp_path / "nothing").exists()


def test_a_link_to_a_good_file_is_followed(tmp_path: Path) -> None:
    """Configuration managers link."""
    target = Identity.load_or_create(tmp_path / "target.pem")
    (tmp_path / "link.pem").symlink_to("target.pem")
    assert Identity.load_or_create(tmp_path / "link.pem").peer_id == target.peer_id


@pytest.mark.parametrize("hard_links", [True, False])
def test_of_two_creators_one_loads_the_others_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    """The other one's file appears while ours is being written; ours gives way and leaves nothing."""
    path = tmp_path / "identity.pem"
    theirs = Identity.load_or_create(tmp_path / "theirs.pem")
    link, fsync = os.link, os.fsync

    def fsync_and_lose_the_race(descriptor: int) -> None:
        fsync(descriptor)
        if not path.exists():
            (tmp_path / "theirs.pem").rename(path)

    def refused_link(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "fsync", fsync_and_lose_the_race)
    monkeypatch.setattr(os, "link", link if hard_links else refused_link)
    assert Identity.load_or_create(path).peer_id == theirs.peer_id
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the sandbox of Android."""

    def refused_link(*_: object) -> None:
        raise OSError(errno.EACCES, "no hard links here")

    monkeypatch.setattr(os, "link", refused_link)
    path = tmp_path / "identity.pem"
    identity = Identity.load_or_create(path)
    assert Identity.load_or_create(path).peer_id == identity.peer_id
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is typed, the half-written file gone."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(IdentityError, match="No space left"):
        Identity.load_or_create(tmp_path / "identity.pem")
    assert list(tmp_path.iterdir()) == []


def test_processes_that_start_together_agree_on_one_key(tmp_path: Path) -> None:
    """Six real processes, one file."""
    code = "import sys; from overlay.identity import *; print(Identity.load_or_create(sys.argv[1]).peer_id)"
    command = [sys.executable, "-c", code, str(tmp_path / "new" / "identity.pem")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) for _ in range(6)]
    printed = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 6
    assert len(printed) == 1


def test_a_key_file_serves_one_endpoint_at_a_time(tmp_path: Path) -> None:
    """Held within this process, and again free afterwards."""
    path = tmp_path / "identity.pem"
    first, second = Identity.load_or_create(path), Identity.load_or_create(path)
    with first.lock():
        for identity in (first, second):
            with pytest.raises(IdentityError, match="in use"):
                identity.lock().__enter__()
    with second.lock():
        pass


def test_a_key_file_is_locked_for_other_processes(tmp_path: Path) -> None:
    """And free again when the holder was killed."""
    path = tmp_path / "identity.pem"
    identity = Identity.load_or_create(path)
    code = (
        "import sys; from overlay.identity import *\n"
        "with Identity.load_or_create(sys.argv[1]).lock(): print('held', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(IdentityError, match="in use"):
            identity.lock().__enter__()
        holder.kill()
        holder.wait()
        with identity.lock():
            pass


def test_the_lock_is_freed_by_an_exception_and_leaks_nothing(tmp_path: Path) -> None:
    """The body's own error comes through."""
    identity = Identity.load_or_create(tmp_path / "identity.pem")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), identity.lock():
            raise ZeroDivisionError


def test_a_key_file_that_is_gone_cannot_be_locked(tmp_path: Path) -> None:
    """A typed error."""
    identity = Identity.load_or_create(tmp_path / "identity.pem")
    (tmp_path / "identity.pem").unlink()
    with pytest.raises(IdentityError, match="cannot lock"):
        identity.lock().__enter__()


def test_a_key_without_a_file_has_nothing_to_lock() -> None:
    """Twice at once, if one wants."""
    identity = Identity.generate()
    assert identity.path is None
    with identity.lock(), identity.lock():
        pass


def test_the_certificate_shows_the_key_and_is_made_once() -> None:
    """Self-signed, named after the key, valid as long as X.509 can say."""
    identity = Identity.generate()
    certificate = identity.certificate
    assert identity.certificate is certificate
    assert peer_id_of(certificate) == identity.peer_id
    assert certificate.subject == certificate.issuer
    assert certificate.subject.rfc4514_string() == f"CN={identity.peer_id}"
    certificate.verify_directly_issued_by(certificate)
    assert certificate.not_valid_before_utc.year == 1970
    assert certificate.not_valid_after_utc.year == 9999
    other = Identity(identity.private_key).certificate
    assert other.serial_number != certificate.serial_number


def with_key(raw: bytes) -> x509.Certificate:
    """A certificate for a key that nobody needs to hold; its own signature is not looked at."""
    identity = Identity.generate()
    der = identity.certificate.public_bytes(serialization.Encoding.DER)
    return x509.load_der_x509_certificate(der.replace(identity.peer_id.raw, raw))


def test_a_certificate_with_an_unacceptable_key_is_refused() -> None:
    """Small order, not canonical, off the curve."""
    for raw in (*points_of_small_order(), b"\xff" * 32, (2).to_bytes(32, "little")):
        with pytest.raises(HandshakeError) as caught:
            peer_id_of(with_key(raw))
        assert caught.value.code is CloseCode.UNAUTHENTICATED
    assert peer_id_of(with_key(PUBLIC)).raw == PUBLIC


def test_certificates_of_another_kind_are_refused(tmp_path: Path) -> None:
    """RSA and ECDSA as `certs/make.py` makes them; their files are as its README says."""
    made = runpy.run_path(str(ROOT / "certs" / "make.py"))["make"](tmp_path / "certs")
    for leaf, kind in ((made.rsa, "RSA"), (made.ecdsa, "EC")):
        certificate = x509.load_pem_x509_certificate(leaf.certificate.read_bytes())
        with pytest.raises(HandshakeError, match=kind) as caught:
            peer_id_of(certificate)
        assert caught.value.code is CloseCode.UNAUTHENTICATED
        key = serialization.load_pem_private_key(leaf.key.read_bytes(), None)
        assert key.public_key() == certificate.public_key()
        assert stat.S_IMODE(leaf.key.stat().st_mode) == 0o600
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(made.ca.read_bytes()))
    assert {path.name for path in (tmp_path / "certs").iterdir()} == {
        "ca.pem",
        "rsa.pem",
        "rsa-key.pem",
        "ecdsa.pem",
        "ecdsa-key.pem",
    }


@given(st.data())
def test_a_mutated_certificate_is_a_peer_or_a_handshake_error(data: st.DataObject) -> None:
    """Never another exception from the key of what still parses as a certificate."""
    der = bytearray(FUZZED)
    for position in data.draw(st.lists(st.integers(0, len(der) - 1), min_size=1, max_size=4)):
        der[position] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        # The library's warnings about odd certificates are not what this test is about.
        warnings.simplefilter("ignore")
        try:
            certificate = x509.load_der_x509_certificate(bytes(der))
        except (ValueError, x509.InvalidVersion):
            return
        with contextlib.suppress(HandshakeError):
            peer_id_of(certificate)


FUZZED = Identity(ed25519.Ed25519PrivateKey.from_private_bytes(SECRET)).certificate.public_bytes(
    serialization.Encoding.DER
)
