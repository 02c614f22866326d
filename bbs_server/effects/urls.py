"""URLs as the reference reads them: its error texts, and its escaping of path segments."""

from __future__ import annotations

import re
from urllib.parse import quote

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_BAD_HOST_CHARACTER = re.compile(r'[ <>"\\^`{|}]')
_PATH_CHARACTERS = "$&+,/:;=@~"


def scheme(url: str) -> str:
    """The lower-case scheme of a URL, empty if it has none. Raises ValueError with the reference's text."""
    problem = _problem(url)
    if problem:
        raise ValueError(f"parse {_quoted(url)}: {problem}")
    found = _SCHEME.match(url)
    return found[1].lower() if found else ""


def segment(value: str) -> str:
    """A path segment, escaped."""
    return quote(value, safe=_PATH_CHARACTERS)


def _problem(url: str) -> str:
    if _CONTROL.search(url):
        return "net/url: invalid control character in URL"
    if url.startswith(":"):
        return "missing protocol scheme"
    found = _SCHEME.match(url)
    rest = url[found.end() :] if found else url
    rest = rest.partition("#")[0].partition("?")[0]
    if found is None and ":" in rest.partition("/")[0]:
        return "first path segment in URL cannot contain colon"
    if not rest.startswith("//"):
        return _escape_problem(rest)
    host, slash, path = rest[2:].partition("/")
    return _host_problem(host.rpartition("@")[2]) or _escape_problem(slash + path)


def _host_problem(host: str) -> str:
    if host.startswith("["):
        end = host.rfind("]")
        if end < 0:
            return "missing ']' in host"
        port = host[end + 1 :]
    else:
        colon = host.find(":")
        port = "" if colon < 0 else host[colon:]
    if port and not re.fullmatch(":[0-9]*", port):
        return f"invalid port {_quoted(port)} after host"
    bad = _BAD_HOST_CHARACTER.search(host)
    return f"invalid character {_quoted(bad[0])} in host name" if bad else _escape_problem(host)


def _escape_problem(part: str) -> str:
    bad = _BAD_ESCAPE.search(part)
    return f"invalid URL escape {_quoted(part[bad.start() : bad.start() + 3])}" if bad else ""


def _quoted(value: str) -> str:
    plain = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"{}"'.format(_CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", plain))
