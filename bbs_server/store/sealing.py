"""Sealed columns: "02" + base64(label length, label, nonce, AES-256-GCM ciphertext) (storage.md 5)."""

from __future__ import annotations

import os
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping
from hashlib import sha256
from string import ascii_letters, digits

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bbs_server.store.errors import StartFailure

MODEL_PREFIX = b"\x02\x00"
"""Format "protobuf" and version 0 in front of every sealed model. Quirk: skipped unchecked on reading."""

_ENCODING = "02"
_NONCE = 12
_TAG = 16
_LONGEST_LABEL = 127
_NONCES_AT_ONCE = 256
_BASE64 = frozenset(ascii_letters + digits + "+/")


class Undecodable(Exception):
    """A column value that cannot be read; the text says why (storage.md 5.5)."""


class Keys:
    """The configured keys: all of them open values, only the active one seals.

    Raises StartFailure `cannot-setup-encryption` for settings without a usable active key
    (server.md 3.1 step 4).
    """

    __slots__ = ("_active", "_ciphers", "_nonces", "_prefix", "active_label")

    def __init__(self, active_label: str, passphrases: Mapping[str, str]) -> None:
        if problem := _problem(active_label, passphrases):
            raise StartFailure("cannot-setup-encryption", problem)
        self.active_label = active_label
        self._ciphers = {
            label.encode(errors="surrogatepass"): AESGCM(sha256(passphrase.encode(errors="surrogatepass")).digest())
            for label, passphrase in passphrases.items()
        }
        label = active_label.encode(errors="surrogatepass")
        self._active = self._ciphers[label]
        self._prefix = bytes((len(label),)) + label
        self._nonces = b""

    @property
    def labels(self) -> frozenset[str]:
        return frozenset(label.decode(errors="surrogatepass") for label in self._ciphers)

    def seal(self, plaintext: bytes) -> str:
        """The column value of a plaintext, with a fresh random nonce."""
        if not self._nonces:
            self._nonces = os.urandom(_NONCE * _NONCES_AT_ONCE)
        nonce, self._nonces = self._nonces[:_NONCE], self._nonces[_NONCE:]
        sealed = b"".join((self._prefix, nonce, self._active.encrypt(nonce, plaintext, None)))
        return _ENCODING + b2a_base64(sealed, newline=False).decode("ascii")

    def open(self, value: str) -> bytes:
        """The plaintext of a column value. Raises Undecodable."""
        if not value.startswith(_ENCODING):
            raise Undecodable(f"Unknown encoding: [{' '.join(str(byte) for byte in value.encode()[:2])}]")
        try:
            sealed = a2b_base64(value[2:], strict_mode=True)
        except ValueError:
            sealed = _decode_leniently(value[2:])
        start = sealed[0] + 1 if sealed else 1
        if len(sealed) < start + _NONCE + _TAG:
            raise Undecodable("sealed value is too short")
        cipher = self._ciphers.get(sealed[1:start])
        if cipher is None:
            raise Undecodable(f'Key with label "{sealed[1:start].decode(errors="replace")}" was not found')
        try:
            return cipher.decrypt(sealed[start : start + _NONCE], sealed[start + _NONCE :], None)
        except InvalidTag:
            raise Undecodable("cipher: message authentication failed") from None

    def seal_model(self, encoded: bytes) -> str:
        """The column value of an encoded message."""
        return self.seal(MODEL_PREFIX + encoded)

    def open_model(self, value: str) -> bytes:
        """The encoded message in a column value. Raises Undecodable."""
        plaintext = self.open(value)
        if len(plaintext) < len(MODEL_PREFIX):
            raise Undecodable("sealed model is too short")
        return plaintext[len(MODEL_PREFIX) :]


def _problem(active_label: str, passphrases: Mapping[str, str]) -> str | None:
    """The first thing wrong with the key settings, in the reference's order and words."""
    if not passphrases:
        return "Must have at least one encryption key set"
    if not active_label:
        return "Must select an active encryption key"
    for label in passphrases:
        if not label:
            return "A key label is required"
        if len(label.encode(errors="surrogatepass")) > _LONGEST_LABEL:
            return "Key label is longer than 127 bytes"
    if active_label not in passphrases:
        return "The selected active key must be listed on the encryption keys flag"
    return None


def _decode_leniently(text: str) -> bytes:
    """Base64 as the reference reads it: line ends are skipped. Raises Undecodable with the place of the fault."""
    joined = text.replace("\r", "").replace("\n", "")
    try:
        return a2b_base64(joined, strict_mode=True)
    except ValueError:
        body = text.rstrip("=\r\n")
        place = next((i for i, character in enumerate(body) if character not in _BASE64 | {"\r", "\n"}), len(body))
        raise Undecodable(f"illegal base64 data at input byte {place}") from None
