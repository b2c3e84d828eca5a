"""Who a node is: an Ed25519 key pair, its file, and the certificate that shows it.

A `PeerId` *is* the 32-byte public key (RFC 8032 section 5.1.5); there is no name, no authority and no lookup
between the two. Whoever holds a `PeerId` holds a point that a signature can be checked against, because its
constructor refuses what cannot be a key:

- an encoding that is not canonical (y >= p, or x = 0 with the sign bit set): two strings for one key would be
  two peers for everybody who compares bytes;
- the eight points of small order: a signature that holds under them can be made without any private key;
- bytes that are no point of the curve: no signature ever verifies under them. The test costs one modular
  power, about 100 microseconds of a handshake that takes milliseconds, and tells one in two mistyped tickets
  at once.
"""

import base64
import contextlib
import datetime as dt
import errno
import os
import shlex
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from overlay.errors import AddressError, HandshakeError, IdentityError
from overlay.files import sync_directory

if sys.platform != "win32":
    import fcntl

PEER_ID_BYTES = 32
PEER_ID_CHARACTERS = 52
"""Of base32 (RFC 4648 section 6) for 32 bytes, without the padding."""

# RFC 8032 section 5.1: the field's prime and the constant of the curve -x^2 + y^2 = 1 + d x^2 y^2.
_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P

_ORDER_8_Y = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
# y = 1 is the neutral element, -1 has order 2, 0 order 4, the last two order 8. Each with either sign bit:
# for y = 1 and y = -1 the one with the bit set is x = 0 with a sign, which RFC 8032 section 5.1.3 refuses
# too.
_SMALL_ORDER_Y = frozenset({0, 1, _P - 1, _ORDER_8_Y, _P - _ORDER_8_Y})

# Where an endpoint keeps the bytes of its peers, by the thousand, the test is not to be paid with each event.
_POINT_CACHE_ENTRIES = 16_384

# A PKCS#8 file of ours has 119 bytes; other tools may add comments. Something larger is not a key.
_MAX_KEY_FILE_BYTES = 64 * 1024

# What file systems without hard links, and Android's sandbox, answer to link(2).
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK})


@dataclass(frozen=True, slots=True, order=True, repr=False)
class PeerId:
    """An Ed25519 public key: the name of a peer. Ordered by its bytes.

    Args:
        raw: the 32 bytes of RFC 8032 section 5.1.2.

    Raises:
        IdentityError: bytes that are no acceptable key; this module's head says which and why.
    """

    raw: bytes

    def __post_init__(self) -> None:
        """Refuse what cannot be a key."""
        # A copy: the key of a table must not change under it.
        object.__setattr__(self, "raw", bytes(self.raw))
        if len(self.raw) != PEER_ID_BYTES:
            raise IdentityError(f"a peer id has {PEER_ID_BYTES} bytes, not {len(self.raw)}")
        _check_point(self.raw)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the printed form, in either case.

        Raises:
            AddressError: it is none, or not of an acceptable key.
        """
        if len(text) != PEER_ID_CHARACTERS:
            shown = text if len(text) <= 2 * PEER_ID_CHARACTERS else text[: 2 * PEER_ID_CHARACTERS] + "…"
            why = f"a peer id has {PEER_ID_CHARACTERS} characters, not {len(text)}"
            raise AddressError(shown, shown, why)
        for character in text:
            # ASCII first: str.upper makes an "I" of U+0131 and an "S" of U+017F.
            if not character.isascii() or character.upper() not in "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567":
                raise AddressError(text, text, f"{character!r} is not used in a peer id (base32: a-z, 2-7)")
        raw = base64.b32decode(text.upper() + "====")
        if _base32(raw) != text.lower():
            raise AddressError(text, text, f"the last character {text[-1]!r} carries bits beyond the key")
        try:
            return cls(raw)
        except IdentityError as error:
            raise AddressError(text, text, str(error)) from error

    @property
    def short(self) -> str:
        """The first 8 characters, for logs and tables only: anybody can make a key that shares them."""
        return str(self)[:8]

    def __str__(self) -> str:
        """52 lower-case characters of base32."""
        return _base32(self.raw)

    def __repr__(self) -> str:
        return f"PeerId.parse({str(self)!r})"


class Identity:
    """An Ed25519 key pair, in memory or in a file.

    Attributes:
        private_key: the key.
        peer_id: its public half.
        path: its file as an absolute path, or None for a key that lives in memory only.
    """

    def __init__(self, private_key: Ed25519PrivateKey, path: Path | None = None) -> None:
        self.private_key = private_key
        self.peer_id = PeerId(private_key.public_key().public_bytes_raw())
        self.path = path

    def __repr__(self) -> str:
        return f"<Identity {self.peer_id.short}>"

    @classmethod
    def generate(cls) -> Self:
        """Make a new key that is stored nowhere."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load_or_create(cls, path: str | os.PathLike[str]) -> Self:
        """Read the key from a file, or make a key and the file.

        The file is an unencrypted PKCS#8 PEM (RFC 5958, RFC 8410) of mode 0600; missing directories above it
        are made with mode 0700. It appears complete or not at all, and an existing file is never overwritten:
        of two processes that create it in the same moment, one loads the other's key. A symbolic link is
        followed. Blocks for some milliseconds of disk access.

        Raises:
            IdentityError: the file cannot be read or made, is readable by group or others (with the command
                that mends it), is damaged, or holds another kind of key.
        """
        where = Path(path).absolute()
        try:
            key = _load(where) or _create(where) or _load(where)
        except OSError as error:
            raise IdentityError(f"cannot use the key file {where}: {error.strerror or error}") from error
        if key is None:
            raise IdentityError(f"{where} is a symbolic link to a file that does not exist")
        return cls(key, where)

    @cached_property
    def certificate(self) -> x509.Certificate:
        """The self-signed certificate whose key is this identity, made at the first use.

        Peers look at its key only. Names and dates are filled because X.509 has them: the common name is the
        peer id, and the dates are the widest that RFC 5280 section 4.1.2.5 can say, because devices of a mesh
        have wrong clocks.
        """
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, str(self.peer_id))])
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.private_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(dt.datetime(1970, 1, 1, tzinfo=dt.UTC))
            .not_valid_after(dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC))
            .sign(self.private_key, None)
        )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the key file for the life of an endpoint: two with one key would take each other's sessions.

        An advisory `flock` on the key file itself, so nothing stays behind after a crash. Does nothing for a
        key without a file, and on platforms without `fcntl`; there the peers notice (`DuplicateIdentity`).

        Raises:
            IdentityError: another endpoint, of this process or another one, holds it; or it cannot be locked.
        """
        if self.path is None or sys.platform == "win32":
            yield
            return
        try:
            # NFS turns flock into a lock that needs a writable descriptor; a read-only medium offers none.
            descriptor = os.open(self.path, os.O_RDWR if os.access(self.path, os.W_OK) else os.O_RDONLY)
        except OSError as error:
            raise IdentityError(f"cannot lock the key file {self.path}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise IdentityError(
                    f"the key file {self.path} is in use by another endpoint: give each its own key"
                ) from error
            except OSError as error:
                raise IdentityError(f"cannot lock the key file {self.path}: {error.strerror}") from error
            try:
                yield
            finally:
                # Closing alone would leave the lock to a forked child that inherited the descriptor.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)


def peer_id_of(certificate: x509.Certificate) -> PeerId:
    """Read the peer id that a certificate claims. TLS's CertificateVerify has to prove it.

    Raises:
        HandshakeError: with code UNAUTHENTICATED: its key is not an acceptable Ed25519 key.
    """
    try:
        key = certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise HandshakeError(f"the certificate's key cannot be read: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        kind = type(key).__name__.lstrip("_").removesuffix("PublicKey")
        raise HandshakeError(f"the certificate's key is not Ed25519 but {kind}")
    try:
        return PeerId(key.public_bytes_raw())
    except IdentityError as error:
        raise HandshakeError(f"the certificate's key is refused: {error}") from error


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=").lower()


def _load(path: Path) -> Ed25519PrivateKey | None:
    """Read the key; None when there is no file.

    Raises:
        IdentityError: there is one that cannot be used.
        OSError: it cannot be read.
    """
    # Checked on the open descriptor: between a stat and an open the file could be another one. Non-blocking:
    # the open of a FIFO would wait for its writer.
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise IdentityError(f"{path} is {kind}; name a file for the key")
        mode = stat.S_IMODE(status.st_mode)
        # Windows reports 0666 for every writable file; its access lists protect the user's directory.
        if os.name == "posix" and mode & 0o077:
            raise IdentityError(
                f"the key file {path} is open to group or others (mode {mode:04o}). "
                f"Mend it with: chmod 600 {shlex.quote(str(path))}"
            )
        content = os.read(descriptor, _MAX_KEY_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > _MAX_KEY_FILE_BYTES:
        raise IdentityError(f"{path} is no key file: it has more than {_MAX_KEY_FILE_BYTES} bytes")
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"the key file {path} is damaged or encrypted; expected: PKCS#8 PEM") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityError(f"the key file {path} holds another kind of key than Ed25519")
    return key


def _create(path: Path) -> Ed25519PrivateKey | None:
    """Make a key and its file; None when somebody else's file appeared there first.

    Raises:
        OSError: the file cannot be made.
    """
    key = Ed25519PrivateKey.generate()
    content = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _make_directories(path.parent)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        try:
            _publish(temporary, path)
        except FileExistsError:
            return None
    finally:
        temporary.unlink(missing_ok=True)
    # Others may already know this identity when the power is cut.
    sync_directory(path.parent)
    return key


def _make_directories(path: Path) -> None:
    """Like `Path.mkdir(parents=True)`, which gives the mode to the last directory only."""
    if path.is_dir():
        return
    _make_directories(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


def _publish(temporary: Path, path: Path) -> None:
    """Give a complete file its name unless the name is taken; rename(2) would overwrite.

    Raises:
        FileExistsError: it is taken.
    """
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
    else:
        return
    # Claim the name, then fill it in one step. Whoever reads between the two finds an empty file and gets an
    # error, never another key.
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    temporary.replace(path)


@lru_cache(maxsize=_POINT_CACHE_ENTRIES)
def _check_point(raw: bytes) -> None:
    y = int.from_bytes(raw, "little") & ((1 << 255) - 1)
    if y >= _P:
        raise IdentityError("the key is not in canonical form")
    if y in _SMALL_ORDER_Y:
        raise IdentityError("the key is a point of small order, under which anybody can forge signatures")
    # x^2 = u/v has a solution if u v is a square (Euler's criterion); v is never 0, as -1/d is no square.
    u, v = y * y - 1, _D * y * y + 1
    if pow(u * v, (_P - 1) // 2, _P) != 1:
        raise IdentityError("the key is no point of the curve")
