"""The packet cipher and its keys."""

import itertools

import pytest

from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import ProtocolViolation
from overlay.protocol.udp.aead import SECRET_SIZE, Aead, Keys, expand
from overlay.protocol.udp.wire import KEY_PHASE


def test_the_limits_are_those_of_rfc_9001() -> None:
    assert (Aead.AES_128_GCM.confidentiality, Aead.AES_128_GCM.integrity) == (2**23, 2**52)
    assert (Aead.CHACHA20_POLY1305.confidentiality, Aead.CHACHA20_POLY1305.integrity) == (2**62, 2**36)


@pytest.mark.parametrize("aead", Aead)
def test_a_cipher_is_named_by_its_suite(aead: Aead) -> None:
    assert Aead.of_suite(aead.suite) is aead


@pytest.mark.parametrize("suite", ["TLS_AES_256_GCM_SHA384", "", None])
def test_another_suite_is_refused(suite: str | None) -> None:
    with pytest.raises(ProtocolViolation) as caught:
        Aead.of_suite(suite)
    assert caught.value.code is CloseCode.UNAUTHENTICATED


def test_the_fastest_is_measured() -> None:
    """On a clock that ticks with every look nothing differs, and the first one wins."""
    ticks = itertools.count()
    assert Aead.fastest(lambda: float(next(ticks))) is Aead.AES_128_GCM
    # Looks come in pairs, and the pairs belong to the two ciphers in turn.
    times = itertools.accumulate(itertools.cycle((0.0, 2.0, 0.0, 1.0)))
    assert Aead.fastest(lambda: next(times)) is Aead.CHACHA20_POLY1305


@pytest.mark.parametrize("aead", Aead)
def test_each_generation_has_its_own_keys_and_both_sides_find_them(aead: Aead) -> None:
    one, same, other = (Keys(aead, bytes([seed]) * SECRET_SIZE) for seed in (1, 1, 2))
    sealed = set()
    for generation in range(5):
        assert one.generation == generation
        assert one.phase == (KEY_PHASE if generation & 1 else 0)
        nonce = one.iv.to_bytes(12, "big")
        data = one.encrypt(nonce, b"data", b"header")
        assert same.decrypt(nonce, data, b"header") == b"data"
        sealed |= {data, other.encrypt(nonce, b"data", b"header")}
        one, same, other = one.following(), same.following(), other.following()
    assert len(sealed) == 10


def test_expansion_is_that_of_rfc_5869() -> None:
    from cryptography.hazmat.primitives.hashes import SHA384
    from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

    secret = bytes(range(SECRET_SIZE))
    for size in (12, 16, 32, 48):
        assert expand(secret, b"key", size) == HKDFExpand(SHA384(), size, b"overlay-udp/1 key").derive(secret)
