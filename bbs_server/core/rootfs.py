"""Which root filesystems are valid: URLs with a scheme, by the reference's parser (definitions.md section 3)."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv6Address

_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*:")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_USER_INFO = re.compile(rb"[A-Za-z0-9\-._:~!$&'()*+,;=%@]*")
_HOST_CHARACTERS = rb"A-Za-z0-9\-_.~!$&'()*+,;=:\[\]<>\""
_HOST = re.compile(rb"(?:[" + _HOST_CHARACTERS + rb"\x80-\xff]|%25|%[89A-Fa-f][0-9A-Fa-f])*")
_ZONE = re.compile(rb"(?:[" + _HOST_CHARACTERS + rb"\x80-\xff]|%[0-9A-Fa-f]{2})*")
_ESCAPED_IN_ZONE = re.compile(rb"[" + _HOST_CHARACTERS + rb" ]")
_PORT = re.compile(rb"(?::[0-9]*)?")


def is_valid_rootfs(text: str | bytes) -> bool:
    """Whether a root filesystem is a URL with a scheme; there is no limit of length."""
    url, _, fragment = (text if isinstance(text, bytes) else text.encode()).partition(b"#")
    scheme = _SCHEME.match(url)
    if scheme is None or _CONTROL.search(url) or _BAD_ESCAPE.search(fragment):
        return False
    rest = url[scheme.end() :].partition(b"?")[0]
    if not rest.startswith(b"/"):
        return True
    authority, path = _split(rest)
    return not _BAD_ESCAPE.search(path) and _is_authority(authority)


def _split(rest: bytes) -> tuple[bytes, bytes]:
    """Authority and path of what follows the scheme."""
    if not rest.startswith(b"//"):
        return b"", rest
    authority, slash, path = rest[2:].partition(b"/")
    return authority, slash + path


def _is_authority(authority: bytes) -> bool:
    user, at, host = authority.rpartition(b"@")
    if at and (not _USER_INFO.fullmatch(user) or _BAD_ESCAPE.search(user)):
        return False
    bracket = host.rfind(b"[")
    if bracket > 0:
        return False
    return _is_bracketed(host) if bracket == 0 else _is_host(host)


def _is_host(host: bytes) -> bool:
    """A name with an optional port of digits only; the last colon is what starts the port."""
    _, colon, port = host.rpartition(b":")
    return bool(_HOST.fullmatch(host)) and bool(_PORT.fullmatch(colon + port if colon else b""))


def _is_bracketed(host: bytes) -> bool:
    """An IPv6 address in brackets, perhaps with a zone behind `%25`, and an optional port."""
    address, bracket, port = host[1:].rpartition(b"]")
    if not bracket or not _PORT.fullmatch(port):
        return False
    start = address.find(b"%25")
    name, zone = (address, b"") if start < 0 else (address[:start], address[start:])
    if not _HOST.fullmatch(name) or not _is_zone(zone):
        return False
    return _is_ipv6(_unescape(name + zone))


def _is_zone(zone: bytes) -> bool:
    """Escapes in a zone may only give `%` (as `%25`), a space or a host character."""
    return bool(_ZONE.fullmatch(zone)) and all(
        match.group() == b"%25" or _ESCAPED_IN_ZONE.fullmatch(_unescape(match.group()))
        for match in _ESCAPE.finditer(zone)
    )


def _unescape(text: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), text)


def _is_ipv6(text: bytes) -> bool:
    address, percent, zone = text.partition(b"%")
    if percent and not zone:
        return False
    try:
        IPv6Address(address.decode("ascii"))
    except (AddressValueError, UnicodeDecodeError):
        return False
    return True
