"""Make the certificates that a handshake must refuse: a CA, and leaves with RSA and ECDSA keys."""

import argparse
from pathlib import Path
from typing import NamedTuple

import trustme

HOST = "peer.example"


class Leaf(NamedTuple):
    """Files of one certificate, PEM each."""

    certificate: Path
    key: Path


class Made(NamedTuple):
    """Files that `make` wrote."""

    ca: Path
    rsa: Leaf
    ecdsa: Leaf


def make(out: Path) -> Made:
    """Write the files into a directory, which is made if need be; files of an earlier run are replaced."""
    out.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    ca = out / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    return Made(
        ca,
        _leaf(authority, out, "rsa", trustme.KeyType.RSA),
        _leaf(authority, out, "ecdsa", trustme.KeyType.ECDSA),
    )


def _leaf(authority: trustme.CA, out: Path, name: str, kind: trustme.KeyType) -> Leaf:
    issued = authority.issue_cert(HOST, key_type=kind)
    leaf = Leaf(out / f"{name}.pem", out / f"{name}-key.pem")
    issued.cert_chain_pems[0].write_to_path(str(leaf.certificate))
    leaf.key.touch(mode=0o600)
    issued.private_key_pem.write_to_path(str(leaf.key))
    return leaf


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Make the test certificates: a CA, an RSA leaf, an ECDSA leaf.")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where to write (default: here)")
    made = make(parser.parse_args().out)
    for path in (made.ca, *made.rsa, *made.ecdsa):
        print(path)


if __name__ == "__main__":
    main()
