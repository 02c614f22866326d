"""The command line: `-config=FILE` and `-help`, spelled as Go programs take them (server.md section 1)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

BAD_COMMAND_LINE = 2


class _GoFlags(argparse.ArgumentParser):
    """argparse with Go's words: usage and complaints on stderr, exit 2."""

    def error(self, message: str) -> NoReturn:
        if "expected one argument" in message:
            message = "flag needs an argument: -config"
        self.complain(message)

    def complain(self, message: str) -> NoReturn:
        print(f"{message}\n{_usage(self.prog)}", file=sys.stderr)
        raise SystemExit(BAD_COMMAND_LINE)


def config_path(program: str, arguments: Sequence[str]) -> str:
    """The path given by `-config`, empty if none was. Raises SystemExit 0 for help and 2 for a bad option."""
    parser = _GoFlags(prog=program, add_help=False, allow_abbrev=False)
    parser.add_argument("-config", "--config", default="")
    parser.add_argument("-help", "--help", "-h", "--h", action="store_true", dest="help")
    parser.add_argument("ignored", nargs=argparse.REMAINDER)
    given, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        parser.complain(f"flag provided but not defined: -{unknown[0].lstrip('-').partition('=')[0]}")
    if given.help:
        print(_usage(program), file=sys.stderr)
        raise SystemExit(0)
    path: str = given.config
    return path


def _usage(program: str) -> str:
    return f"Usage of {program}:\n  -config string\n    \tThe path to the JSON configuration file."
