"""The format of log lines (server.md 13)."""

from __future__ import annotations

import json
import os
import re
import threading

import pytest

from bbs_server.process.lager import (
    Level,
    Logger,
    Sink,
    redaction,
    rfc3339,
    trace_id,
    truncation,
    unix_epoch,
    write_all,
)


class Written(list[bytes]):
    """The lines that a sink has written."""

    def last(self) -> dict[str, object]:
        line: dict[str, object] = json.loads(self[-1])
        return line


def logger(**options: object) -> tuple[Logger, Written]:
    lines = Written()
    return Logger(Sink(lines.append, Level.DEBUG, **options), "bbs"), lines  # type: ignore[arg-type]


def test_a_line_in_unix_epoch() -> None:
    log, lines = logger()
    log.info("starting")
    assert re.fullmatch(
        rb'\{"timestamp":"\d{10}\.\d{9}","source":"bbs","message":"bbs\.starting","log_level":1,"data":\{\}\}\n',
        lines[0],
    )


def test_a_line_in_rfc3339() -> None:
    log, lines = logger(rfc3339=True)
    log.error("failed", "no", b=1, a=2)
    assert re.fullmatch(
        rb'\{"timestamp":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z","level":"error","source":"bbs",'
        rb'"message":"bbs\.failed","data":\{"a":2,"b":1,"error":"no"\}\}\n',
        lines[0],
    )


def test_times_have_nine_decimals() -> None:
    assert unix_epoch(1795467391_050338364) == "1795467391.050338364"
    assert rfc3339(1795469285_000000001) == "2026-11-23T21:28:05.000000001Z"


def test_sessions_are_numbered_within_their_parent() -> None:
    log, lines = logger()
    log.session("first")
    request = log.session("request", path="/v1")
    request.session("tasks").session("deep").debug("go", more=1)
    assert lines.last()["message"] == "bbs.request.tasks.deep.go"
    assert lines.last()["data"] == {"session": "2.1.1", "path": "/v1", "more": 1}


def test_markup_and_line_separators_are_escaped() -> None:
    log, lines = logger()
    log.info("x", text="<a>&\u2028\u2029é")
    assert '"\\u003ca\\u003e\\u0026\\u2028\\u2029é"'.encode() in lines[0]


def test_a_broken_text_still_gives_a_line() -> None:
    log, lines = logger()
    log.info("x", text="\ud800é\udcff\udcfe", number=10**30, thing=object())
    assert lines.last()["message"] == "bbs.x"
    assert '"text":"\ufffdé\ufffd\ufffd"'.encode() in lines[0]


@pytest.mark.parametrize("level", list(Level))
def test_lines_below_the_level_are_not_written_and_the_level_can_change(level: Level) -> None:
    log, lines = logger()
    log.sink.set_level(level)
    log.debug("a")
    log.info("a")
    log.error("a", "e")
    log.log("info", "a", {})
    log.fatal("a", "e")
    expected = [number for number in (0, 1, 2, 1, 3) if number >= level]
    assert [json.loads(line)["log_level"] for line in lines] == expected


def test_fatal_lines_have_a_trace() -> None:
    log, lines = logger()
    log.fatal("a", ValueError("no"))
    data = lines.last()["data"]
    assert isinstance(data, dict)
    assert data["error"] == "no"
    assert "test_lager_lines" in data["trace"]


def test_truncation_counts_the_suffix() -> None:
    log, lines = logger(filters=[truncation(40)])
    log.info("x", long="a" * 41, short="b" * 40, nested={"long": ["c" * 50]})
    assert lines.last()["data"] == {
        "long": "a" * 28 + "-(truncated)",
        "short": "b" * 40,
        "nested": {"long": ["c" * 28 + "-(truncated)"]},
    }


def test_redaction_by_key_and_by_value() -> None:
    log, lines = logger(filters=[redaction(None)])
    log.info("x", password="p", db_Pwd="p", text="-----BEGIN RSA PRIVATE KEY-----", plain="x", id="AKIA" + "A" * 16)
    hidden = "*REDACTED*"
    assert lines.last()["data"] == {"password": hidden, "db_Pwd": hidden, "text": hidden, "plain": "x", "id": hidden}


def test_whatever_stands_under_a_secret_key_is_redacted() -> None:
    log, lines = logger(filters=[redaction(None)])
    log.info("x", passwords=["p"], nested={"Pwd": 5, "pass": {"a": "b"}, "texts": ["x", "AKIA" + "A" * 16]})
    hidden = "*REDACTED*"
    nested = {"Pwd": hidden, "pass": hidden, "texts": ["x", hidden]}
    assert lines.last()["data"] == {"passwords": hidden, "nested": nested}


def test_patterns_of_the_configuration_replace_the_built_in_ones() -> None:
    log, lines = logger(filters=[redaction(["s.cret"])])
    log.info("x", a="my secret", b="-----BEGIN RSA PRIVATE KEY-----")
    assert lines.last()["data"] == {"a": "*REDACTED*", "b": "-----BEGIN RSA PRIVATE KEY-----"}


@pytest.mark.parametrize(
    ("request_id", "trace"),
    [
        ("abc", "0000000000000abc"),
        ("1234567890abcdef", "1234567890abcdef"),
        ("1" + "0" * 16, "0000000000000001" + "0" * 16),
        ("12345678-90ab-cdef-1234-567890abcdef", "1234567890abcdef1234567890abcdef"),
        ("ABC", "0000000000000abc"),
        ("x", ""),
        ("", ""),
        ("1" * 33, ""),
    ],
)
def test_trace_ids(request_id: str, trace: str) -> None:
    assert trace_id(request_id) == trace
    log, lines = logger()
    log.with_request_id(request_id).info("x")
    data = lines.last()["data"]
    assert isinstance(data, dict)
    assert data.get("trace-id", "") == trace
    assert bool(re.fullmatch("[0-9a-f]{16}", data.get("span-id", ""))) is bool(trace)


def test_a_line_is_written_whole_however_little_a_pipe_takes_at_a_time() -> None:
    reader, writer = os.pipe()
    line = b"x" * (1 << 20) + b"\n"
    writing = threading.Thread(target=write_all, args=(writer, line))
    writing.start()
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read(len(line)) == line
    writing.join()
    os.close(writer)


def test_lines_that_nobody_takes_are_lost() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    write_all(full, b"the disk is full")
    os.close(full)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    write_all(writer, b"x" * (1 << 20))
    os.close(reader)
    write_all(writer, b"the reader has gone")
    os.close(writer)
