"""Timestamps of a time-stamping authority on this machine: openssl's, an implementation that is not Encore's."""

from __future__ import annotations

import builtins
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from tests.evidence.test_verify import changed, resealed

from encore.errors import EncoreError, InputError, MissingExtraError, UsageError
from encore.evidence import timestamp
from encore.evidence.pack import pack
from encore.evidence.verify import verify

pytest.importorskip("rfc3161_client", reason="rfc3161-client is not installed (the extra `signing`)")

CONFIG = """
[tsa]
dir = {folder}
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha512
accuracy = secs:1
ess_cert_id_alg = sha256
"""


class Authority:
    """An HTTP server that answers as `answer` says; by default with a timestamp made by openssl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answer: bytes | None = None
        authority = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = self.rfile.read(int(self.headers["Content-Length"]))
                body = authority.reply(asked) if authority.answer is None else authority.answer
                self.send_response(200)
                self.send_header("Content-Type", "application/timestamp-reply")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        self.certificate = folder / "root.pem"

    def reply(self, asked: bytes) -> bytes:
        (self.folder / "query").write_bytes(asked)
        command = ["openssl", "ts", "-reply", "-config", self.folder / "tsa.cnf", "-section", "tsa"]
        command += ["-queryfile", self.folder / "query", "-out", self.folder / "answer"]
        subprocess.run(command, check=True, capture_output=True)
        return (self.folder / "answer").read_bytes()


def write_authority(folder: Path, name: str) -> None:
    """A root, and a certificate below it that may stamp times and nothing else."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    folder.mkdir()
    now = datetime.now(UTC)
    keys = {part: ec.generate_private_key(ec.SECP256R1()) for part in ("root", "tsa")}
    names = {part: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} {part}")]) for part in keys}
    for part, key in keys.items():
        above = keys["root"].public_key()
        built = x509.CertificateBuilder(
            issuer_name=names["root"], subject_name=names[part], public_key=key.public_key(),
            serial_number=x509.random_serial_number(), not_valid_before=now - timedelta(days=1),
            not_valid_after=now + timedelta(days=1),
        ).add_extension(x509.BasicConstraints(ca=part == "root", path_length=None), critical=True)  # fmt: skip
        built = built.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        built = built.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(above), critical=False)
        usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
        usage |= dict.fromkeys(("encipher_only", "decipher_only"), False)
        usage |= {"digital_signature": part == "tsa", "key_cert_sign": part == "root", "crl_sign": part == "root"}
        built = built.add_extension(x509.KeyUsage(**usage), critical=True)
        if part == "tsa":
            built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), critical=True)
        signed = built.sign(keys["root"], hashes.SHA256())
        (folder / f"{part}.pem").write_bytes(signed.public_bytes(form.Encoding.PEM))
        pem = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.TraditionalOpenSSL, form.NoEncryption())
        (folder / f"{part}.key").write_bytes(pem)
    (folder / "serial").write_text("01\n")
    (folder / "tsa.cnf").write_text(CONFIG.format(folder=folder))


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[Authority]:
    try:
        subprocess.run(["openssl", "ts", "-help"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the openssl command is not installed")
    write_authority(tmp_path / "tsa", "one")
    made = Authority(tmp_path / "tsa")
    thread = Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def test_a_timestamp_is_checked_against_the_authoritys_root(made: Path, authority: Authority, tmp_path: Path) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    bundle = pack(made, timestamp_url=authority.url)
    found = verify(bundle, tsa_certificate=authority.certificate)
    assert found.time is not None
    assert before <= found.time <= datetime.now(UTC) + timedelta(seconds=1)
    assert found.time_checked
    assert found.members["manifest.json.tsr"].checked == "by this authority"
    unchecked = verify(bundle)
    assert (unchecked.time, unchecked.time_checked) == (found.time, False)
    assert unchecked.members["manifest.json.tsr"].checked == "NOT CHECKED: no --tsa-certificate"
    write_authority(tmp_path / "other", "other")
    with pytest.raises(InputError, match="timestamp does not hold"):
        verify(bundle, tsa_certificate=tmp_path / "other/root.pem")


def test_a_timestamp_of_another_manifest(made: Path, authority: Authority) -> None:
    bundle = pack(made, timestamp_url=authority.url)
    note = (made / "run.json").read_bytes().replace(b"a note of the run", b"a note of today  ")
    assert verify(bundle)
    forged = changed(bundle, lambda members: resealed(members, "samples/index.json", b"[]\n"))
    assert verify(forged).time is not None  # nobody checked it
    with pytest.raises(InputError, match="timestamp does not hold"):
        verify(forged, tsa_certificate=authority.certificate)
    broken = changed(forged, lambda members: members.update({"manifest.json.tsr": note}))
    with pytest.raises(InputError, match="timestamp can't be read"):
        verify(broken)
    with pytest.raises(InputError, match="carries no timestamp"):
        verify(pack(made), tsa_certificate=authority.certificate)


def test_an_authority_that_gives_none(made: Path, authority: Authority, tmp_path: Path) -> None:
    for answer in (b"", b"<html>", b"\x30\x03\x02\x01\x00"):
        authority.answer = answer
        with pytest.raises(EncoreError, match="gives no timestamp") as caught:
            pack(made, tmp_path / "b.zip", timestamp_url=authority.url)
        assert "maker's own word" in caught.value.hint
    authority.answer = None
    other = timestamp.request(b"another manifest", authority.url)
    authority.answer = other
    with pytest.raises(EncoreError, match="gives a timestamp of something else"):
        pack(made, tmp_path / "b.zip", timestamp_url=authority.url)
    with pytest.raises(EncoreError, match="gives no timestamp"):
        pack(made, tmp_path / "b.zip", timestamp_url="http://127.0.0.1:1/")
    for address in ("file:///etc/passwd", "tsa.example"):
        with pytest.raises(UsageError, match="is not the address"):
            pack(made, tmp_path / "b.zip", timestamp_url=address)
    (tmp_path / "text").write_text("no certificate")
    for bad in (tmp_path / "text", tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="is not a certificate"):
            timestamp.check(b"another manifest", other, bad)
    assert not (tmp_path / "b.zip").exists()


def test_without_the_library(made: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = pack(made, timestamp_url=authority.url)
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("rfc3161_client"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError) as caught:
        pack(made, timestamp_url=authority.url)
    assert "encore-music[signing]" in caught.value.hint
    found = verify(bundle)  # the rest is checked all the same
    assert (found.time, found.members["manifest.json.tsr"].checked) == (None, "NOT CHECKED: no --tsa-certificate")
