"""Proof of a manifest's time by a time-stamping authority (RFC 3161)."""

from __future__ import annotations

import urllib.error
import urllib.parse
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

from encore.errors import EncoreError, InputError, MissingExtraError, UsageError

TIMEOUT = 30.0  # seconds
LARGEST = 1 << 20  # bytes of an answer
MEDIA = "application/timestamp-query"


def request(manifest: bytes, url: str) -> bytes:
    """The authority's answer for the hash of a manifest; only the hash is sent.

    Args:
        url: URL of the authority, `http:` or `https:`.

    Raises:
        MissingExtraError: rfc3161-client is not installed.
        UsageError: the URL is not valid.
        EncoreError: the authority can't be reached, or gives no timestamp for this manifest.
    """
    client = _library()
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise UsageError(f"{url!r} is not the address of a time-stamping authority", "it begins with https://")
    query = client.TimestampRequestBuilder(data=manifest, hash_algorithm=client.HashAlgorithm.SHA256).build()
    post = urllib.request.Request(url, data=query.as_bytes(), headers={"Content-Type": MEDIA}, method="POST")
    hint = "bundle without --timestamp: the time is then the maker's own word"
    try:
        with urllib.request.urlopen(post, timeout=TIMEOUT) as answer:
            content = bytes(answer.read(LARGEST))
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise EncoreError(f"{url} gives no timestamp: {_reason(error)}", hint) from error
    try:
        answered = client.decode_timestamp_response(content)
        mine = answered.tst_info.nonce == query.nonce
        imprint = bytes(answered.tst_info.message_imprint.message)
    except Exception as error:  # untrusted input
        raise EncoreError(f"{url} gives no timestamp: {_reason(error)}", hint) from error
    if not mine or imprint != bytes(query.message_imprint.message):
        raise EncoreError(f"{url} gives a timestamp of something else", hint)
    return content


def claimed(token: bytes) -> datetime:
    """The time of a token; its signature is not checked.

    Raises:
        MissingExtraError: rfc3161-client is not installed.
        InputError: it is no timestamp.
    """
    try:
        when: datetime = _library().decode_timestamp_response(token).tst_info.gen_time
    except MissingExtraError:
        raise
    except Exception as error:  # untrusted input
        raise InputError(f"the timestamp can't be read: {_reason(error)}", "ask for the bundle again") from error
    return when


def check(manifest: bytes, token: bytes, certificate: Path) -> datetime:
    """The time of a token, after checking that it is of this manifest and by this authority.

    Args:
        certificate: PEM file of the authority's root certificate and intermediate certificates.

    Raises:
        MissingExtraError: rfc3161-client is not installed.
        UsageError: the certificate can't be read.
        InputError: the token is of another manifest or by another authority, or it can't be read.
    """
    client, when = _library(), claimed(token)
    from cryptography import x509

    try:
        certificates = x509.load_pem_x509_certificates(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{certificate} is not a certificate: {_reason(error)}", "give the authority's PEM file"
        ) from error
    builder = client.VerifierBuilder()
    for item in certificates:
        root = item.subject == item.issuer
        builder = builder.add_root_certificate(item) if root else builder.add_intermediate_certificate(item)
    try:
        builder.build().verify_message(client.decode_timestamp_response(token), manifest)
    except Exception as error:  # errors of three libraries
        raise InputError(
            f"the timestamp does not hold for this manifest and {certificate}: {_reason(error)}",
            "the bundle was changed after it was stamped, or another authority stamped it",
        ) from error
    return when


def _library() -> Any:
    try:
        import rfc3161_client
    except ImportError as error:
        raise MissingExtraError(
            "timestamps need rfc3161-client, which is not installed", 'pip install "encore-music[signing]"'
        ) from error
    return rfc3161_client


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
