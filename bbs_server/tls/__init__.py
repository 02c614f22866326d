"""Identities and trust: the TLS contexts of listeners and of connections to peers."""
