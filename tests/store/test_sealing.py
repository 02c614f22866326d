"""Sealed columns against values that the reference wrote (storage.md 5 and 8)."""

from __future__ import annotations

from base64 import b64encode
from binascii import a2b_base64

import pytest
from bbs_protos import models_pb2 as models

from bbs_server.core import json_columns
from bbs_server.core.records import MetricTag
from bbs_server.store.errors import StartFailure
from bbs_server.store.sealing import Keys, Undecodable

PASSPHRASES = {"key1": "passphrase one", "k2": "", "clé-3": "pässwörd"}
KEYS = Keys("key1", PASSPHRASES)

TASK = "02000a08646f636b65723a721a081a060a017032017520022801"
NET = "02000a0831302e302e302e31120708903f10c8dc031a0831302e312e312e312002"
ROUTES = (
    "7b2262223a7b227a223a312c2261223a322e35307d2c2263662d726f75746572223a5b7b22686f73746e616d6573223a5b225c7530303363615c"
    "75303033655c753030323662225d2c22706f7274223a383038307d5d7d"
)
HOSTS = "5b7b22686f73746e616d65223a22685c7530303363315c7530303365227d5d"
VECTORS = {
    "V1": ("key1", TASK, "02BGtleTGl2wc0rugPYesW3WJCNhyAhzVofnyKXGl7MyM/YOH/5YNE8dBsHbQzvd7c+p8LrLRWWs2nPAk="),
    "V2": (
        "key1",
        "02000a0b0a0270311201641a026c6722081a060a017032017568bb99e7db82b2b2f518",
        "02BGtleTFTC5BKpM+Lus7VttW7uw+XmqB3Dt753gnIIAu98prPqLdzOkzupkAql1Z4tNdYI9LqokE+b1tIEeiVyU48Cig=",
    ),
    "V3": ("key1", "02000a036e6673", "02BGtleTE/R85pQZDf2EAKCjCVYFd5xUU/j+objwEHob+pKL1USi7fJA=="),
    "V4": ("key1", "0200", "02BGtleTExe1IXbF9X6PTafD4WHOPGe6KfwRaGfZjsxEHTLyM="),
    "V5": ("key1", NET, "02BGtleTFKhlk+1IfyKscy6Ejeojc+Jfrm5JVTjOxvS5gyKp7qf6H9weA5JT6dbAHz/fuTXt49aiwJtqQd5CwbRufe"),
    "V6": ("key1", "6e756c6c", "02BGtleTH2TltImjBhh1zi+S67BLyTBJF7jq0APrifBRhqy/sueg=="),
    "V7": (
        "key1",
        ROUTES,
        "02BGtleTGnIONStdoHakNINhUuvq9aKglHqrUkzDSP3JNYATCD6L5zsW6x2AvIGCp+MKxYQVKPqf+1OBvXYrOCgNwxlrBdB6p/HYsvoj2suLguE"
        "12KcYPayPz/JLEHP8hQ3h10mXfDB+6YkpsrgL5Hu+qLt0zT1ch1",
    ),
    "V8": (
        "key1",
        "7b2261223a7b22737461746963223a2262227d7d",
        "02BGtleTHsLPO8Db2u/WzPohBJX5/t4K+Ej3wuuejyYvmciqWJCqJq/qiivOzPFtbpGHpPI6k=",
    ),
    "V9": ("key1", HOSTS, "02BGtleTEd9tO9kWdlHfDu9b1fDh3QxVEgodmZSC44vr/9fPMt5Ytzvb2G85v2CC1MitAiNfPViRx1lk3L1CMVcQ=="),
    "V10": ("key1", "5b5d", "02BGtleTH8r1PEXUcTlVvClomV5aFhz855LuYN6bXthSjFwT0="),
    "V11": (
        "key1",
        "7b2261223a2231222c2262223a2232227d",
        "02BGtleTE3emC3aq9ZB12atAQFZtV8n1EkkFWoXFXFtHU9oQh2vWZJMwYOSfvewLfNzds=",
    ),
    "V12": ("k2", TASK, "02AmsyMAEnpV/LHnYk+QaAS4qsiZe/NuIuxSfBtslpCGmwilzigZ76wV2tBQde7HLyyze6MUU6Oea8"),
    "V13": ("k2", NET, "02AmsyJz3q6RfzgpVpxevxJBIYwQpS9ZtlPcxxkAMZA9cs+n5wL6r00IBXvf147sG+UAV2p+bT37N2FlRYGgLzkQ=="),
    "V14": ("clé-3", "0200", "02BmNsw6ktMxa4/WaK3Jr4cTZYlHdxeXK//Fncw42pljGFf4dVog=="),
    "V15": (
        "clé-3",
        HOSTS,
        "02BmNsw6ktM0y6vGW0DTBoLFzvEqPXd7/3jLCNoqBB6GQVtTNeL4vT2j1jfodOlQdrwfKkzy1w6tDPDdBoxwRzVd8n",
    ),
}


@pytest.mark.parametrize(("label", "plaintext", "column"), VECTORS.values(), ids=VECTORS)
def test_vector_opens(label: str, plaintext: str, column: str) -> None:
    assert KEYS.open(column).hex() == plaintext


@pytest.mark.parametrize(("label", "plaintext", "column"), VECTORS.values(), ids=VECTORS)
def test_vector_seals(label: str, plaintext: str, column: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(label, PASSPHRASES)
    nonce = a2b_base64(column[2:])[1 + len(label.encode()) :][:12]
    monkeypatch.setattr("os.urandom", lambda count: (nonce * count)[:count])
    assert keys.seal(bytes.fromhex(plaintext)) == column


def test_vectors_in_their_columns() -> None:
    opened = {name: KEYS.open(column) for name, (_, _, column) in VECTORS.items()}
    assert models.TaskDefinition.FromString(KEYS.open_model(VECTORS["V1"][2])).root_fs == "docker:r"
    assert json_columns.load_routes(opened["V6"]) is None
    routes = (("b", b'{"z":1,"a":2.50}'), ("cf-router", rb'[{"hostnames":["\u003ca\u003e\u0026b"],"port":8080}]'))
    assert json_columns.load_routes(opened["V7"]) == routes
    assert json_columns.dump_routes(routes) == opened["V7"]
    assert json_columns.load_metric_tags(opened["V8"]) == (("a", MetricTag("b")),)
    assert json_columns.dump_metric_tags((("a", MetricTag("b")),)) == opened["V8"]
    assert json_columns.load_hostnames(opened["V9"]) == ("h<1>",)
    assert json_columns.dump_hostnames(("h<1>",)) == opened["V9"]
    assert json_columns.load_hostnames(opened["V10"]) == ()
    assert json_columns.load_tags(opened["V11"]) == (("a", "1"), ("b", "2"))
    assert json_columns.dump_tags((("a", "1"), ("b", "2"))) == opened["V11"]


def test_every_write_has_a_fresh_nonce() -> None:
    assert len({KEYS.seal(b"") for _ in range(1000)}) == 1000


def envelope(label: bytes, rest: bytes) -> str:
    return "02" + b64encode(bytes((len(label),)) + label + rest).decode()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("xy", "Unknown encoding: [120 121]"),
        ("garbage", "Unknown encoding: [103 97]"),
        ("x", "Unknown encoding: [120]"),
        ("", "Unknown encoding: []"),
        ("02!", "illegal base64 data at input byte 0"),
        ("02abc!defg", "illegal base64 data at input byte 3"),
        ("02é", "illegal base64 data at input byte 0"),
        (envelope(b"nokey", b"n" * 40), 'Key with label "nokey" was not found'),
        (envelope(b"key1", b"n" * 40), "cipher: message authentication failed"),
        ("02", "sealed value is too short"),
        (envelope(b"key1", b""), "sealed value is too short"),
        ("02" + b64encode(b"\xffkey1").decode(), "sealed value is too short"),
    ],
)
def test_undecodable(value: str, text: str) -> None:
    with pytest.raises(Undecodable) as problem:
        KEYS.open(value)
    assert str(problem.value) == text


def test_model_shorter_than_its_prefix_is_undecodable() -> None:
    with pytest.raises(Undecodable, match="too short"):
        KEYS.open_model(KEYS.seal(b"\x02"))


def test_model_prefix_is_not_checked() -> None:
    assert KEYS.open_model(KEYS.seal(b"\x09\x07\x0a")) == b"\x0a"


def test_base64_may_be_wrapped_in_lines() -> None:
    sealed = KEYS.seal(b"text")
    assert KEYS.open(sealed[:10] + "\r\n" + sealed[10:] + "\n") == b"text"


@pytest.mark.parametrize(
    ("label", "passphrases", "text"),
    [
        ("a", {}, "Must have at least one encryption key set"),
        ("", {"a": "b"}, "Must select an active encryption key"),
        ("a", {"": "b", "a": "x"}, "A key label is required"),
        ("é" * 64, {"é" * 64: ""}, "Key label is longer than 127 bytes"),
        ("b", {"a": "x"}, "The selected active key must be listed on the encryption keys flag"),
    ],
)
def test_unusable_key_settings(label: str, passphrases: dict[str, str], text: str) -> None:
    with pytest.raises(StartFailure) as failure:
        Keys(label, passphrases)
    assert (failure.value.action, str(failure.value)) == ("cannot-setup-encryption", text)


def test_longest_label() -> None:
    keys = Keys("a" * 127, {"a" * 127: "p"})
    assert keys.open(keys.seal(b"x")) == b"x"
