"""Signatures with keys of one's own, by model-signing; skipped where that is not installed."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
from tests.evidence.test_verify import changed, resealed

from encore.errors import InputError, MissingExtraError, UsageError
from encore.evidence import signing
from encore.evidence.pack import pack
from encore.evidence.verify import verify


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A fresh pair of PEM files."""
    pytest.importorskip("model_signing", reason="model-signing is not installed (the extra `signing`)")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(form.Encoding.PEM, form.PrivateFormat.TraditionalOpenSSL, form.NoEncryption())
    )
    public.write_bytes(key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_a_signed_bundle(made: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path, "mine")
    bundle = pack(made, key=private)
    found = verify(bundle, key=public)
    assert found.signature == "checked"
    assert found.members["manifest.json"].checked == "its signature is by this key"
    unchecked = verify(bundle)
    assert unchecked.signature == "not checked"
    assert unchecked.members["manifest.json.sig"].checked == "NOT CHECKED: no --key"
    _, others = keys(tmp_path, "other")
    with pytest.raises(InputError, match="signature does not hold"):
        verify(bundle, key=others)
    with pytest.raises(InputError, match="is not signed"):
        verify(pack(made, tmp_path / "plain.zip"), key=public)


def test_case_C7_a_signature_that_nobody_checked_is_called_that(made: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path, "mine")
    forged = changed(pack(made, key=private), lambda members: resealed(members, "samples/index.json", b"[]\n"))
    assert verify(forged).signature == "not checked"  # signed, then changed: only the key tells
    with pytest.raises(InputError, match="signature does not hold"):
        verify(forged, key=public)
    for broken in (b"{}", b"", b"[]", b"\xff", b'{"dsseEnvelope": 1}', b"[" * 100_000):
        bundle = changed(forged, lambda members, content=broken: members.update({"manifest.json.sig": content}))
        with pytest.raises(InputError, match="a signature that can't be read"):
            verify(bundle)
        with pytest.raises(InputError, match="signature does not hold"):
            verify(bundle, key=public)


def test_a_signature_of_another_manifest(tmp_path: Path) -> None:
    private, public = keys(tmp_path, "mine")
    signature = signing.sign(b"one manifest", private)
    signing.check(b"one manifest", signature, public)
    with pytest.raises(InputError, match="signature does not hold"):
        signing.check(b"another one", signature, public)
    for broken in (b"", b"{}", b"[]", signature[: len(signature) // 2]):
        with pytest.raises(InputError, match="signature does not hold"):
            signing.check(b"one manifest", broken, public)


def test_keys_that_are_none(tmp_path: Path) -> None:
    private, public = keys(tmp_path, "mine")
    signature = signing.sign(b"m", private)
    (tmp_path / "text").write_text("no key")
    for bad in (tmp_path / "text", tmp_path / "nowhere", public):
        with pytest.raises(UsageError, match="can't be signed with") as caught:
            signing.sign(b"m", bad)
        assert "openssl" in caught.value.hint
    for bad in (tmp_path / "text", tmp_path / "nowhere", private):
        with pytest.raises(UsageError, match="is not a public key"):
            signing.check(b"m", signature, bad)


def test_a_key_of_another_kind(tmp_path: Path) -> None:
    private, _ = keys(tmp_path, "mine")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ed25519

    other = ed25519.Ed25519PrivateKey.generate()
    private.write_bytes(other.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
    with pytest.raises(UsageError, match="not an elliptic-curve key"):
        signing.sign(b"m", private)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("model_signing"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError) as caught:
        signing.sign(b"m", tmp_path / "key")
    assert "encore-music[signing]" in caught.value.hint
