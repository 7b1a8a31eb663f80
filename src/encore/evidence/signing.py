"""The manifest's signature, with `model-signing` (OpenSSF) and a local key: no network, no account."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from encore.errors import InputError, MissingExtraError, UsageError
from encore.evidence.manifest import NAME, SIGNATURE

MAKE_KEY = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem; openssl ec -in key.pem -pubout -out key.pub"


def sign(manifest: bytes, key: Path) -> bytes:
    """The signature of a manifest: a Sigstore bundle, as JSON.

    Args:
        key: PEM file of an elliptic-curve private key, not encrypted.

    Raises:
        MissingExtraError: model-signing is not installed.
        UsageError: the key can't be used.
    """
    signing, _ = _library()
    with _folder(manifest) as folder:
        target = folder.parent / SIGNATURE
        try:
            signing.Config().use_elliptic_key_signer(private_key=key).sign(folder, target)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"{key} can't be signed with: {_reason(error)}", f"make a key: {MAKE_KEY}") from error
        return target.read_bytes()


def check(manifest: bytes, signature: bytes, key: Path) -> None:
    """Check that a signature is of this manifest and by this key.

    Args:
        key: PEM file of the public key.

    Raises:
        MissingExtraError: model-signing is not installed.
        UsageError: the key can't be read.
        InputError: the signature is of another manifest or by another key, or it can't be read.
    """
    _, verifying = _library()
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{key} is not a public key: {_reason(error)}", f"make a pair: {MAKE_KEY}") from error
    with _folder(manifest) as folder:
        stated = folder.parent / SIGNATURE
        stated.write_bytes(signature)
        try:
            verifier.verify(folder, stated)
        except Exception as error:  # untrusted input, errors of five libraries
            raise InputError(
                f"the signature does not hold for this manifest and {key}: {_reason(error)}",
                "the bundle was changed after it was signed, or the key is not its maker's",
            ) from error


def check_readable(signature: bytes) -> None:
    """Check the format of a signature only; see `check`.

    Raises:
        InputError: it is no Sigstore bundle.
    """
    parts: tuple[Any, ...] = ()
    try:
        bundle = json.loads(signature)
        parts = bundle["mediaType"], bundle["verificationMaterial"], bundle["dsseEnvelope"]["signatures"][0]["sig"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        pass
    if not parts or not all(parts):
        raise InputError("the bundle carries a signature that can't be read", "ask for the bundle again")


@contextmanager
def _folder(manifest: bytes) -> Iterator[Path]:
    """A temporary folder with only the manifest, which is signed."""
    with tempfile.TemporaryDirectory(prefix="encore-") as above:
        folder = Path(above) / "bundle"
        folder.mkdir()
        (folder / NAME).write_bytes(manifest)
        yield folder


def _library() -> tuple[Any, Any]:
    try:
        from model_signing import signing, verifying
    except ImportError as error:
        raise MissingExtraError(
            "signatures need model-signing, which is not installed", 'pip install "encore-music[signing]"'
        ) from error
    return signing, verifying


def _reason(error: BaseException) -> str:
    if isinstance(error, AttributeError):  # the library asks any key for its curve
        return "it is not an elliptic-curve key"
    return " ".join(str(error).split()) or type(error).__name__
