"""Mutual TLS for the parts of the stack, one identity for both directions."""

from __future__ import annotations

import ssl

from bbs_server.dev.certificates import Identity


def client_tls(identity: Identity) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=identity.ca)
    context.load_cert_chain(identity.cert, identity.key)
    return context


def server_tls(identity: Identity) -> ssl.SSLContext:
    """Only clients with a certificate of our authority get in."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=identity.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(identity.cert, identity.key)
    return context
