"""Egress rules: protocols, ports and destinations (definitions.md 5.3)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from bbs_protos import models_pb2 as models

from bbs_server.core.problems import invalid
from bbs_server.core.texts import spelled

Rule = models.SecurityGroupRule


def check_egress_rule(rule: Rule) -> list[str]:
    """Problems of one rule: first what its protocol demands, then its destinations.

    Quirk: `icmpv6` names its missing ICMP info differently.
    """
    problems = [invalid("protocol")]
    if checks := _BY_PROTOCOL.get(spelled(rule.protocol)):
        problems = [problem for check in checks for problem in check(rule)]
    if details := _check_destinations(rule):
        problems.append(invalid(f"destinations [ {', '.join(details)} ]"))
    return problems


# -- what a protocol demands -------------------------------------------------------------


def _ports_or_range(rule: Rule) -> list[str]:
    """Quirk: there is no upper limit of port numbers."""
    ports, has_range = rule.ports, rule.HasField("port_range")
    if not ports and not has_range:
        return ["Missing required field: ports or port_range"]
    if ports and has_range:
        return ["Invalid: ports and port_range provided"]
    if has_range:
        start, end = rule.port_range.start, rule.port_range.end
        return [invalid("port_range")] * ((start < 1) + (end < 1) + (start > end))
    return [invalid("ports") for port in ports if port == 0]


def _no_range(rule: Rule) -> list[str]:
    return [invalid("port_range")] if rule.HasField("port_range") else []


def _no_ports(rule: Rule) -> list[str]:
    return [invalid("ports")] if rule.ports else []


def _no_icmp_info(rule: Rule) -> list[str]:
    return [invalid("icmp_info")] if rule.HasField("icmp_info") else []


def _icmp_info(rule: Rule) -> list[str]:
    return [] if rule.HasField("icmp_info") else [invalid("icmp_info")]


def _icmpv6_info(rule: Rule) -> list[str]:
    return [] if rule.HasField("icmp_info") else [invalid("icmpv6_info")]


_BY_PROTOCOL: Mapping[str, tuple[Callable[[Rule], list[str]], ...]] = {
    "tcp": (_ports_or_range, _no_icmp_info),
    "udp": (_ports_or_range, _no_icmp_info),
    "icmp": (_no_range, _no_ports, _icmp_info),
    "icmpv6": (_no_range, _no_ports, _icmpv6_info),
    "all": (_no_range, _no_ports, _no_icmp_info),
}


# -- destinations ------------------------------------------------------------------------

_INVALID_IP = "Invalid IP"
_SEPARATOR = re.compile("[-/]")
_MASK = re.compile(r"0*([0-9]{1,3})", re.ASCII)


def _check_destinations(rule: Rule) -> list[str]:
    if not rule.destinations:
        return ["Must have at least 1 destination"]
    return [
        problem
        for destination in rule.destinations
        for piece in spelled(destination).split(",")
        for problem in _check_piece(piece)
    ]


def _check_piece(piece: str) -> list[str]:
    """An address, a CIDR or a range, told apart by the first `-` or `/` in it."""
    separator = _SEPARATOR.search(piece)
    if separator is None:
        return [] if _address(piece) else [_INVALID_IP]
    first, second = piece[: separator.start()], piece[separator.end() :]
    if separator.group() == "/":
        return [] if _is_cidr(first, second) else [f"invalid CIDR address: {piece}"]
    return _check_range(_address(first), _address(second))


def _check_range(first: bytes | None, last: bytes | None) -> list[str]:
    """Quirk: a reversed range gives one problem for every byte that is larger, up to one that is smaller."""
    if first is None or last is None:
        return [_INVALID_IP]
    problems = []
    for low, high in zip(first, last, strict=True):
        if low < high:
            break
        if low > high:
            problems.append(_INVALID_IP)
    return problems


def _is_cidr(address: str, mask: str) -> bool:
    """Only a number of bits counts as a mask; leading zeros are fine."""
    digits = _MASK.fullmatch(mask)
    if digits is None or _address(address) is None:
        return False
    return int(digits[1]) <= (128 if ":" in address else 32)


@lru_cache(maxsize=1024)  # nearly all definitions of a deployment name the same few networks
def _address(text: str) -> bytes | None:
    """The 16 bytes of an IP address, IPv4 as `::ffff:a.b.c.d`; None if it is none. Zones are not allowed."""
    try:
        if ":" not in text:
            return b"\0" * 10 + b"\xff\xff" + IPv4Address(text).packed
        return None if "%" in text else IPv6Address(text).packed
    except AddressValueError:
        return None


__all__ = ["check_egress_rule"]
