"""What no file of the repository may mention."""

from __future__ import annotations

import re

import pytest

# Spelled in pieces, so that this file does not mention them either.
PLACES = ("/" + "work/", "/" + "tmp/", "/" + "root/", "/" + "home/[a-z]", "/" + "Users/[A-Za-z]")
"""Folders of the machine somebody happened to work on."""

REGISTRIES = tuple(
    re.escape(".".join(host))
    for host in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("registry", "npmjs", "org"),
        ("proxy", "golang", "org"),
        ("crates", "io"),
        ("docker", "io"),
        ("ghcr", "io"),
    )
)
"""Where packages come from is the business of whoever installs them."""


@pytest.mark.parametrize("pattern", [*PLACES, *REGISTRIES])
def test_no_file_mentions(pattern: str, texts: dict[str, str]) -> None:
    word = re.compile(rf"(?<![\w.-]){pattern}" if pattern in PLACES else pattern)
    offences = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in texts.items()
        if word.search(text)
        for number, line in enumerate(text.splitlines(), 1)
        if word.search(line)
    ]
    assert offences == []
