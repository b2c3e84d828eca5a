"""The messages of `file/1`: what is written is read back, and nothing else is accepted."""

import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay import Stream, StreamTruncated
from overlay.cli.transfer import (
    MAX_ANSWER_BYTES,
    MAX_HEADER_BYTES,
    Gap,
    Header,
    Receipt,
    Refused,
    TransferError,
    check_name,
    read_answer,
)


class Bytes:
    """The reading side of a stream that has all its bytes already."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.taken = 0

    async def readexactly(self, size: int) -> bytes:
        part, self.data = self.data[:size], self.data[size:]
        self.taken += len(part)
        if len(part) < size:
            raise StreamTruncated(part, size)
        return part


def stream(data: bytes) -> Stream:
    return cast("Stream", Bytes(data))


def message(value: Any) -> bytes:
    text = json.dumps(value).encode()
    return len(text).to_bytes(4) + text


RECEIPT: dict[str, Any] = {"ok": True, "bytes": 1, "sha256": "00", "seconds": 0.5, "bytes_by_transport": {}, "gaps": []}


@pytest.mark.parametrize("size", [None, 0, 2**63 - 1])
async def test_a_header_is_read_back(size: int | None) -> None:
    """Byte for byte as the module's head shows it."""
    assert Header("a", 1).encode() == b'\0\0\0\x18{"name": "a", "size": 1}'
    header = Header("Grüße \U0001f600.txt", size)
    assert await Header.read(stream(header.encode())) == header


async def test_answers_are_read_back() -> None:
    """The good one and the bad one."""
    receipt = Receipt(5, "ab" * 32, 1.25, (Gap(1.5, 20.0), Gap(0.0, 3.0)), {"quic": 9, "tcp": 0})
    assert await read_answer(stream(receipt.encode())) == receipt
    with pytest.raises(Refused) as caught:
        await read_answer(stream(Refused("exists", "x" * 1000).encode()))
    assert (caught.value.code, caught.value.reason) == ("exists", "x" * 300)


@pytest.mark.parametrize(
    "change",
    [
        {"bytes": -1},
        {"bytes": True},
        {"sha256": 5},
        {"sha256": "0" * 301},
        {"seconds": "1"},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"seconds": 10**400},
        {"gaps": {}},
        {"gaps": [1]},
        {"gaps": [{"at_ms": 1}]},
        {"gaps": [{"at_ms": 1, "ms": 1}] * 33},
        {"bytes_by_transport": []},
        {"bytes_by_transport": {"quic": -1}},
        {"bytes_by_transport": {str(number): 1 for number in range(9)}},
        {"ok": 1},
        {"ok": False, "code": "x"},
    ],
)
async def test_an_answer_that_is_none_is_an_error(change: dict[str, Any]) -> None:
    """Whatever a hostile receiver sends, the sender gets one documented error."""
    with pytest.raises(TransferError):
        await read_answer(stream(message(RECEIPT | change)))


async def test_what_is_too_long_is_not_even_read() -> None:
    """The length alone is enough to say no."""
    for limit, read in ((MAX_HEADER_BYTES, Header.read), (MAX_ANSWER_BYTES, read_answer)):
        source = Bytes((limit + 1).to_bytes(4) + bytes(limit + 1))
        with pytest.raises(TransferError, match="more than"):
            await read(cast("Stream", source))
        assert source.taken == 4


@given(st.binary(max_size=200))
async def test_garbage_is_a_documented_error(data: bytes) -> None:
    """A value or one of three errors, never anything else."""
    for read in (Header.read, read_answer):
        for source in (data, len(data).to_bytes(4) + data):
            try:
                await read(stream(source))
            except (TransferError, Refused, StreamTruncated) as error:
                assert error.args


@given(st.text())
def test_a_name_that_passes_is_one_component(name: str) -> None:
    """No text that is accepted leaves the directory or hides in it."""
    try:
        check_name(name)
    except Refused:
        return
    assert 0 < len(name.encode()) <= 255
    assert not name.startswith(".")
    assert not {"/", "\\", "\0", "\n"} & set(name)
