"""Egress rules (definitions.md 5.3)."""

from __future__ import annotations

from typing import Any

import pytest
from bbs_protos import models_pb2 as models
from hypothesis import given
from hypothesis import strategies as st

from bbs_server.core.egress import check_egress_rule

RANGE = models.PortRange(start=1, end=2)
ICMP = models.ICMPInfo(type=-1, code=-1)
NOWHERE = "Invalid field: destinations [ Must have at least 1 destination ]"
NO_PORTS = "Missing required field: ports or port_range"


def rule(protocol: str, **fields: Any) -> models.SecurityGroupRule:
    return models.SecurityGroupRule(protocol=protocol, **{"destinations": ["1.2.3.4"], **fields})


def span(start: int, end: int) -> models.PortRange:
    return models.PortRange(start=start, end=end)


PROTOCOLS = [
    (models.SecurityGroupRule(), ["Invalid field: protocol", NOWHERE]),
    (rule("TCP", ports=[1]), ["Invalid field: protocol"]),
    (rule("tcp", destinations=[]), [NO_PORTS, NOWHERE]),
    (rule("tcp", destinations=[], icmp_info=ICMP), [NO_PORTS, "Invalid field: icmp_info", NOWHERE]),
    (rule("udp", ports=[1], port_range=RANGE), ["Invalid: ports and port_range provided"]),
    (rule("udp", port_range=span(5, 0)), ["Invalid field: port_range"] * 2),
    (rule("udp", port_range=span(0, 0)), ["Invalid field: port_range"] * 2),
    (rule("udp", port_range=span(2, 1)), ["Invalid field: port_range"]),
    (rule("udp", port_range=span(1, 99999)), []),
    (rule("tcp", ports=[0, 70000, 0]), ["Invalid field: ports"] * 2),
    (rule("tcp", ports=[70000]), []),
    (rule("icmp"), ["Invalid field: icmp_info"]),
    (rule("icmp", icmp_info=ICMP), []),
    (rule("icmp", icmp_info=ICMP, ports=[1], port_range=RANGE), ["Invalid field: port_range", "Invalid field: ports"]),
    (
        rule("icmpv6", ports=[1], port_range=RANGE, destinations=[]),
        ["Invalid field: port_range", "Invalid field: ports", "Invalid field: icmpv6_info", NOWHERE],
    ),
    (rule("all"), []),
    (
        rule("all", ports=[1], port_range=RANGE, icmp_info=ICMP),
        ["Invalid field: port_range", "Invalid field: ports", "Invalid field: icmp_info"],
    ),
]


@pytest.mark.parametrize(("subject", "problems"), PROTOCOLS)
def test_protocols(subject: models.SecurityGroupRule, problems: list[str]) -> None:
    assert check_egress_rule(subject) == problems


BAD_DESTINATIONS = [
    (["bad,bad2/8", "x-y"], "Invalid IP, invalid CIDR address: bad2/8, Invalid IP"),
    (["1.2.3.0/24-1.2.3.4"], "invalid CIDR address: 1.2.3.0/24-1.2.3.4"),
    (["1.2.3.4-1.2.3.0/24"], "Invalid IP"),
    (["1.2.3.4-"], "Invalid IP"),
    (["1.2.3.4, 1.2.3.5"], "Invalid IP"),
    (["1.2.3.4,"], "Invalid IP"),
    ([""], "Invalid IP"),
    (["1.2.5.9-1.2.1.1"], "Invalid IP, Invalid IP"),
    (["9.9.9.9-1.1.1.1"], ", ".join(["Invalid IP"] * 4)),
    (["2.1.1.1-1.9.9.9"], "Invalid IP"),
    (["1.2.3.4-::1"], ", ".join(["Invalid IP"] * 6)),
    (["01.2.3.4"], "Invalid IP"),
    (["::1%eth0"], "Invalid IP"),
    (["1.2.3.4/33"], "invalid CIDR address: 1.2.3.4/33"),
    (["::/129"], "invalid CIDR address: ::/129"),
    (["1.2.3.4/255.0.0.0"], "invalid CIDR address: 1.2.3.4/255.0.0.0"),
    (["1.2.3.4/+8"], "invalid CIDR address: 1.2.3.4/+8"),
    (["1.2.3.4/"], "invalid CIDR address: 1.2.3.4/"),
    (["1.2.3.4/" + "9" * 5000], "invalid CIDR address: 1.2.3.4/" + "9" * 5000),
    (["1.2.3.4/٨"], "invalid CIDR address: 1.2.3.4/٨"),
]


@pytest.mark.parametrize(("destinations", "text"), BAD_DESTINATIONS)
def test_bad_destinations(destinations: list[str], text: str) -> None:
    assert check_egress_rule(rule("all", destinations=destinations)) == [f"Invalid field: destinations [ {text} ]"]


@pytest.mark.parametrize(
    "destination",
    [
        "::1-1.2.3.4",
        "1.2.3.4,1.2.3.5",
        "::ffff:1.2.3.4/96",
        "1.2.3.4-1.2.3.4",
        "1.2.3.4/08",
        "1.2.3.4/0000008",
        "::/0",
        "fe80::1/128",
        "0.0.0.0-255.255.255.255",
    ],
)
def test_good_destinations(destination: str) -> None:
    assert check_egress_rule(rule("all", destinations=[destination])) == []


@given(st.binary(max_size=30) | st.text(alphabet="0123456789.:-/,%f", max_size=40).map(str.encode))
def test_any_destination_is_decided(destination: bytes) -> None:
    encoded = bytes([0x0A, 3]) + b"all" + bytes([0x12, len(destination)]) + destination
    problems = check_egress_rule(models.SecurityGroupRule.FromString(encoded))
    assert len(problems) <= 1
    assert all(problem.startswith("Invalid field: destinations [ ") for problem in problems)


def test_what_is_not_text_is_named_byte_for_byte() -> None:
    encoded = bytes([0x0A, 3]) + b"all" + bytes([0x12, 4]) + b"1/\xe2\x82"
    (problem,) = check_egress_rule(models.SecurityGroupRule.FromString(encoded))
    expected = b"Invalid field: destinations [ invalid CIDR address: 1/\xe2\x82 ]"
    assert problem.encode(errors="surrogateescape") == expected
