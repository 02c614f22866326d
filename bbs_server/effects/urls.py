"""URLs as the reference reads and writes them: what it refuses and in which words, and how it escapes paths."""

from __future__ import annotations

import re
from base64 import b64encode
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit

from bbs_server.core.rootfs import is_valid_rootfs

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_BAD_IN_HOST = re.compile(r"[ \\^`{|}]|%(?!25|[89A-Fa-f][0-9A-Fa-f])")
_USER_INFO = re.compile(r"[A-Za-z0-9\-._:~!$&'()*+,;=%@]*")
_SERVER = re.compile(r"[^:/]+://[^/]*")
_PATH_CHARACTERS = "$&+,/:;=@~"
_WELL_ESCAPED_PATH = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=:@\[\]%/]*")


def scheme(url: str) -> str:
    """The lower-case scheme of a URL, empty if it has none. Raises ValueError with the reference's text."""
    _refuse_unreadable(url)
    found = _SCHEME.match(url)
    return found[1].lower() if found else ""


def sendable(url: str) -> str:
    """The URL as a request names it: a path with characters that need it is escaped, the fragment is not sent.

    Raises ValueError with the reference's text.
    """
    _refuse_unreadable(url)
    front, mark, query = url.partition("#")[0].partition("?")
    server = _SERVER.match(front)
    if server is None:
        return url
    path = front[server.end() :]
    if not _WELL_ESCAPED_PATH.fullmatch(path):
        path = segment(unquote_to_bytes(path.encode(errors="surrogateescape")))
    return f"{server[0]}{path}{mark}{query}"


def refuse_unsendable(url: str) -> None:
    """Raises ValueError, with the reference's text, for what is no URL of an HTTP server."""
    found = scheme(url)
    if found not in ("http", "https"):
        raise ValueError(f"unsupported protocol scheme {_quoted(found)}")
    if not urlsplit(url).hostname:
        raise ValueError("http: no Host in request URL")


def without_user(url: str) -> tuple[str, str]:
    """The URL without its user info, and the `Authorization` that this becomes; empty if there is none."""
    front, info, rest = _around_user(url)
    if info is None:
        return url, ""
    user, _, password = info.partition(":")
    plain = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return f"{front}{rest}", f"Basic {b64encode(plain).decode()}"


def without_password(url: str) -> str:
    """The URL as texts of errors show it."""
    front, info, rest = _around_user(url)
    user, colon, _ = (info or "").partition(":")
    return f"{front}{user}:***@{rest}" if colon else url


def _around_user(url: str) -> tuple[str, str | None, str]:
    """What is before the user info of a URL, the info, None if there is none, and what is behind its `@`."""
    server = _SERVER.match(url)
    if server is None or "@" not in server[0]:
        return "", None, url
    before, _, host = server[0].rpartition("@")
    found, mark, info = before.partition("://")
    return f"{found}{mark}", info, f"{host}{url[server.end() :]}"


def redirected(url: str, location: str) -> str:
    """Where an answer of `url` leads to. Raises ValueError with the reference's text."""
    try:
        # The library takes an absolute one without a host for a relative one.
        return location if scheme(location) else urljoin(url, location)
    except ValueError as problem:
        raise ValueError(f"failed to parse Location header {_quoted(location)}: {problem}") from problem


def segment(value: str | bytes) -> str:
    """A path segment, escaped."""
    return quote(value, safe=_PATH_CHARACTERS)


def _refuse_unreadable(url: str) -> None:
    if problem := _problem(url):
        raise ValueError(f"parse {_quoted(url)}: {problem}")


def _problem(url: str) -> str:
    """What is wrong with a URL, empty if nothing is (definitions.md 3)."""
    front, _, fragment = url.partition("#")
    if _CONTROL.search(front):
        return "net/url: invalid control character in URL"
    if front.startswith(":"):
        return "missing protocol scheme"
    found = _SCHEME.match(front)
    rest = (front[found.end() :] if found else front).partition("?")[0]
    if found is None and ":" in rest.partition("/")[0]:
        return "first path segment in URL cannot contain colon"
    if rest.startswith("//"):
        authority, slash, path = rest[2:].partition("/")
        problem = _authority_problem(authority) or _escape_problem(slash + path)
    else:
        problem = _escape_problem(rest) if found is None or rest.startswith("/") else ""
    if problem := problem or _escape_problem(fragment):
        return problem
    # What is left are malformed addresses in brackets.
    return "invalid host" if found and not is_valid_rootfs(url.encode(errors="surrogateescape")) else ""


def _authority_problem(authority: str) -> str:
    user, _, host = authority.rpartition("@")
    if problem := _host_problem(host):
        return problem
    return _escape_problem(user) if _USER_INFO.fullmatch(user) else "net/url: invalid userinfo"


def _host_problem(host: str) -> str:
    if host.startswith("["):
        end = host.rfind("]")
        if end < 0:
            return "missing ']' in host"
        port = host[end + 1 :]
    else:
        colon = host.rfind(":")
        port = "" if colon < 0 else host[colon:]
    if port and not re.fullmatch(":[0-9]*", port):
        return f"invalid port {_quoted(port)} after host"
    bad = None if host.startswith("[") else _BAD_IN_HOST.search(host)
    if bad is None:
        return ""
    if bad[0] == "%":
        return f"invalid URL escape {_quoted(host[bad.start() : bad.start() + 3])}"
    return f"invalid character {_quoted(bad[0])} in host name"


def _escape_problem(part: str) -> str:
    bad = _BAD_ESCAPE.search(part)
    return f"invalid URL escape {_quoted(part[bad.start() : bad.start() + 3])}" if bad else ""


def _quoted(value: str) -> str:
    plain = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"{}"'.format(_CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", plain))
