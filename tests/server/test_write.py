"""``POST /write``, ``GET /series``, and ``match[]`` of ``GET /query``."""

from __future__ import annotations

import gzip
import threading
import urllib.parse
from typing import TYPE_CHECKING, Any

import pytest

from omendb.errors import DiskFullError, InvalidRequestError, OverloadedError, PayloadTooLargeError
from omendb.series import FIRST_ID
from omendb.server import line_protocol, named_series
from omendb.storage.catalog import Catalog
from tests.jit import reference_lines
from tests.server.clients import RsgiClient, request

if TYPE_CHECKING:
    from omendb.model import Batch
    from tests.server.clients import AsgiClient
    from tests.server.fake_engine import FakeEngine

    Client = RsgiClient | AsgiClient

TELEGRAF = (
    b"cpu,cpu=cpu0,host=web01 usage_user=1.25,usage_idle=98.5 1700000000000000000\n"
    b"mem,host=web01 used_percent=40.5,free=1234567890i,huge=18446744073709551615u 1700000000000000000\n"
    b"swap,host=web01 in=0i,ok=true 1700000000000000000\n"
)


def match(text: str, *more: str) -> str:
    return "?" + "&".join(["match[]=" + urllib.parse.quote(text), *more])


def decoded(body: bytes, scale: int = 1, now: int = 77) -> list[tuple[str, int, float]]:
    catalog = Catalog()
    batch = line_protocol.decode(body, scale, now, catalog)
    catalog.mark_visible(catalog.count)
    names = [catalog.name(series) for series in batch.series_id.tolist()]
    texts = [
        ",".join([name.measurement, *(f"{k}={v}" for k, v in name.tags)]) + " " + name.field for name in names
    ]
    return list(zip(texts, batch.timestamp.tolist(), batch.value.tolist(), strict=True))


def test_stores_lines_as_telegraf_sends_them(client: Client, engine: FakeEngine) -> None:
    reply = client.call("POST", "/write?db=telegraf&rp=autogen&consistency=any&u=a&p=b", TELEGRAF)

    assert (reply.status, reply.body) == (204, b"")
    assert engine.points == {
        (FIRST_ID + n, 1_700_000_000_000_000_000): value
        for n, value in enumerate([1.25, 98.5, 40.5, 1234567890.0, 2.0**64, 0.0, 1.0])
    }
    names = client.call("GET", "/series").json
    assert names["count"] == 7
    assert names["series"][3] == {
        "series_id": FIRST_ID + 3,
        "measurement": "mem",
        "field": "free",
        "tags": {"host": "web01"},
    }


@pytest.mark.parametrize("size", [1, 3_000])
def test_small_and_large_bodies(client: Client, engine: FakeEngine, size: int) -> None:
    body = b"".join(b"m,host=h%d f=%d.5 %d\n" % (n % 50, n, n) for n in range(size))
    assert (len(body) > named_series.INLINE_BYTES) == (size == 3_000)

    assert client.call("POST", "/write", body).status == 204

    assert len(engine.points) == size
    assert engine.points[FIRST_ID + (size - 1) % 50, size - 1] == size - 0.5


def test_a_large_body_of_known_series_needs_no_thread(
    client: Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    careful = line_protocol.decode

    def decode(*arguments: Any) -> Batch:
        threads.append(threading.current_thread().name.partition("_")[0])
        return careful(*arguments)

    monkeypatch.setattr(line_protocol, "decode", decode)
    body = b"".join(b"m,host=h%d f=%d.5 %d\n" % (n % 50, n, n) for n in range(3_000))

    assert client.call("POST", "/write", body).status == 204
    assert threads == ["omendb-decode"]
    for known, in_thread in (
        (body, 1),
        (body + b"m,host=new f=1 1\n", 2),
        (body + b"m,host=h1  f=7 9999\n", 3),
    ):
        assert client.call("POST", "/write", known).status == 204
        assert threads == ["omendb-decode"] * in_thread

    assert len(engine.points) == 3_002
    assert engine.points[FIRST_ID + 1, 9_999] == 7.0


@pytest.mark.parametrize(
    "body", [b"", b"m f=1", b"m f=1 5\n", b"m,a=1 f=1,g=2 5\nm f=-2.5 6", b"m f=1\n" * 99]
)
def test_the_short_way_reads_the_same(body: bytes) -> None:
    catalog = Catalog()
    for scale in (1, 1_000):
        expected = line_protocol.decode(body, scale, 7_777, catalog)
        found = line_protocol.decode_plain(body, scale, 7_777, catalog)
        assert found is not None
        for name in ("series_id", "timestamp", "value"):
            assert getattr(found, name).tolist() == getattr(expected, name).tolist()


@pytest.mark.parametrize("body", [b"m f=1\nnew f=2", b"m f=1\nm  f=2", b"m f=x", b"m f=1 1.5"])
def test_the_short_way_leaves_all_else_alone(body: bytes) -> None:
    catalog = Catalog()
    line_protocol.decode(b"m f=1", 1, 0, catalog)

    assert line_protocol.decode_plain(body, 1, 0, catalog) is None
    assert catalog.count == 1


@pytest.mark.parametrize("body", [b"", b"\n", b"# nothing\n\r\n"])
def test_nothing_to_write_is_no_error(client: Client, engine: FakeEngine, body: bytes) -> None:
    assert client.call("POST", "/write", body).status == 204
    assert engine.points == {}


@pytest.mark.parametrize(
    ("precision", "scale"),
    [
        ("ns", 1),
        ("n", 1),
        ("us", 10**3),
        ("u", 10**3),
        ("ms", 10**6),
        ("s", 10**9),
        ("m", 60 * 10**9),
        ("h", 3600 * 10**9),
    ],
)
def test_precisions(client: Client, engine: FakeEngine, precision: str, scale: int) -> None:
    assert client.call("POST", f"/write?precision={precision}", b"m f=1 -12").status == 204

    assert engine.points == {(FIRST_ID, -12 * scale): 1.0}


def test_a_line_without_a_time_gets_the_servers_in_whole_units() -> None:
    assert decoded(b"m f=1\nm g=1 5\n", 10**9, now=1_700_000_000_999_999_999) == [
        ("m f", 1_700_000_000 * 10**9, 1.0),
        ("m g", 5 * 10**9, 1.0),
    ]


@pytest.mark.parametrize(
    ("line", "rows"),
    [
        (b"m f=1", [("m f", 77, 1.0)]),
        (b"m  f=1  5 ", [("m f", 5, 1.0)]),
        (b"  m f=1 5\r", [("m f", 5, 1.0)]),
        (
            b"m f=.5,g=5.,h=+7,i=-0,j=1E-2 5",
            [(f"m {n}", 5, v) for n, v in zip("fghij", (0.5, 5.0, 7.0, -0.0, 0.01), strict=True)],
        ),
        (b"m f=0.1234567890123456789012345 5", [("m f", 5, 0.12345678901234568)]),
        (
            b"m f=-9223372036854775808i,g=9223372036854775807i 5",
            [("m f", 5, -(2.0**63)), ("m g", 5, 2.0**63)],
        ),
        (b"m f=T,g=FALSE 5", [("m f", 5, 1.0), ("m g", 5, 0.0)]),
        (b"my\\ m,t\\,1=a\\=b,s=x\\ y f\\ 1=2 5", [("my m,s=x y,t,1=a=b f 1", 5, 2.0)]),
        (b"m,b=2,a=1 f=1 5\nm,a=1,b=2 f=2 6", [("m,a=1,b=2 f", 5, 1.0), ("m,a=1,b=2 f", 6, 2.0)]),
        ("m,ort=köln f=1 5".encode(), [("m,ort=köln f", 5, 1.0)]),
        (b'm,q="x" f=1 5', [('m,q="x" f', 5, 1.0)]),
    ],
)
def test_ways_to_write_a_line(line: bytes, rows: list[tuple[str, int, float]]) -> None:
    assert decoded(line) == rows


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"m", "the fields are missing"),
        (b"m ", "expected field=value"),
        (b"m f", "expected field=value at 'f'"),
        (b"m f=", "field 'f': it has no value"),
        (b"m f=1,", "expected field=value"),
        (b"m f=1,,g=2", "',g' is no name of a field"),
        (b"m =1", "expected field=value"),
        (b'm f=1,msg="a b" 5', "field 'msg': it is a string, and only numbers and booleans are stored"),
        (b"m f=NaN", "field 'f': value must be finite, got 'NaN'"),
        (b"m f=-inf", "field 'f': value must be finite, got '-inf'"),
        (b"m f=1e400", "field 'f': '1e400' is beyond float64"),
        (b"m f=1.5i", "field 'f': value must be a number or a boolean, got '1.5i'"),
        (b"m f=-1u", "field 'f': '-1u' is not from 0 to 18446744073709551615"),
        (b"m f=9223372036854775808i", "field 'f': '9223372036854775808i' is not from"),
        (b"m f=abc", "field 'f': value must be a number or a boolean, got 'abc'"),
        (b"m f=1 1.5", "timestamp must be an integer, got '1.5'"),
        (b"m f=1 5 6", "timestamp must be an integer, got '5 6'"),
        (b"m f=1 9223372036854775808", "timestamp 9223372036854775808 is beyond 64 bits"),
        (b",a=b f=1", "the measurement is missing"),
        (b"m,a f=1", "tag 'a' is not of the form name=value"),
        (b"m,a= f=1", "tag 'a=' has no value"),
        (b"m,a=1,a=2 f=1", "tag 'a' is given twice"),
        (b"m,t=\xff f=1", "is not UTF-8"),
        (b"m," + b"t" * 70_000 + b"=1 f=1", "longer than 65535 bytes"),
    ],
)
@pytest.mark.parametrize("around", [False, True])
def test_bad_lines_are_named_and_nothing_is_stored(
    rsgi: RsgiClient, engine: FakeEngine, line: bytes, message: str, around: bool
) -> None:
    body = b"good,a=b f=1 5\n# comment\n" + line + b"\ngood,a=b f=2 6\n" if around else line
    number = 3 if around else 1

    reply = rsgi.call("POST", "/write", body)

    assert reply.status == 400
    assert message in reply.error["message"]
    assert reply.error["message"].startswith(f"line {number}: ")
    assert reply.error["field"] == f"line {number}"
    assert engine.points == {}
    assert engine.catalog.count == 0


def test_a_timestamp_that_overflows_in_nanoseconds_is_refused(client: Client) -> None:
    reply = client.call("POST", "/write?precision=s", b"m f=1 9223372036\nm f=1 9223372037")

    assert reply.status == 400
    assert "line 2: timestamp 9223372037 is beyond 64 bits when it is turned" in reply.error["message"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("precision=fortnight", "precision must be of ns, n, us, u, ms, s, m, h, got 'fortnight'"),
        ("precision=s&precision=ms", "precision is given 2 times"),
        ("precison=s", "unknown parameter 'precison'"),
    ],
)
def test_bad_parameters(client: Client, query: str, message: str) -> None:
    reply = client.call("POST", f"/write?{query}", b"m f=1")

    assert reply.status == 400
    assert message in reply.error["message"]


@pytest.mark.parametrize("error", [DiskFullError("full"), OverloadedError("busy")])
@pytest.mark.parametrize("size", [1, 3_000])
def test_what_the_engine_refuses_is_answered(
    client: Client, engine: FakeEngine, error: Exception, size: int
) -> None:
    body = b"".join(b"m,host=h%d f=%d.5 %d\n" % (n % 50, n, n) for n in range(size))
    engine.commit_error = error
    late = client.call("POST", "/write", body)
    engine.commit_error = None
    engine.submit_error = error
    early = client.call("POST", "/write", body)

    assert late.status == early.status == (507 if isinstance(error, DiskFullError) else 503)
    assert client.call("GET", "/series").json["count"] == 0


# Compression.


def compressed(client: Client, body: bytes, encoding: str = "gzip"):
    assert isinstance(client, RsgiClient)
    with client.connect() as wire:
        head = (f"content-encoding: {encoding}", f"content-length: {len(body)}")
        wire.send(request("POST", "/write", *head, body=body))
        return wire.reply()


def test_gzip_bodies(rsgi: RsgiClient, engine: FakeEngine) -> None:
    assert compressed(rsgi, gzip.compress(TELEGRAF)).status == 204
    # Some clients send several members, one after the other.
    assert compressed(rsgi, gzip.compress(b"m f=1 5\n") + gzip.compress(b"m f=2 6\n"), "GZIP").status == 204
    assert compressed(rsgi, b"m f=3 7", "identity").status == 204

    assert len(engine.points) == 7 + 3


@pytest.mark.parametrize(
    ("body", "encoding", "message"),
    [
        (TELEGRAF, "gzip", "the body is not valid gzip"),
        (gzip.compress(TELEGRAF)[:-5], "gzip", "the body's gzip data is cut short"),
        (b"", "gzip", "the body is not valid gzip: it is empty"),
        (gzip.compress(TELEGRAF) + b"x", "gzip", "gzip"),
        (TELEGRAF, "br", "content-encoding must be gzip or none, got 'br'"),
    ],
)
def test_bad_compression(
    rsgi: RsgiClient, engine: FakeEngine, body: bytes, encoding: str, message: str
) -> None:
    reply = compressed(rsgi, body, encoding)

    assert reply.status == 400
    assert message in reply.error["message"]
    assert engine.points == {}


def test_a_bomb_is_refused_before_it_is_whole(rsgi: RsgiClient) -> None:
    bomb = gzip.compress(b"#" * 200_001)

    reply = compressed(rsgi, bomb)

    assert reply.status == 413
    assert "decompressed body is larger than max_body_bytes, 200000 bytes" in reply.error["message"]


def test_inflates_no_more_than_allowed() -> None:
    body = bytes(range(256)) * 20_000
    assert line_protocol.inflate(gzip.compress(body), len(body)) == body
    with pytest.raises(PayloadTooLargeError):
        line_protocol.inflate(gzip.compress(body), len(body) - 1)
    with pytest.raises(InvalidRequestError):
        line_protocol.inflate(gzip.compress(body)[:2000], len(body))


# Reading by name.


@pytest.fixture
def written(client: Client) -> Client:
    body = b"".join(b"cpu,host=h%d usage=%d %d\n" % (n % 5, n, n) for n in range(20)) + b"mem used=5 5\n"
    assert client.call("POST", "/write", body).status == 204
    return client


def test_rows_and_windows_by_name(written: Client) -> None:
    reply = written.call("GET", "/query" + match('cpu{host="h2"}', "start=3", "end=12")).json
    windows = written.call("GET", "/query" + match("cpu_usage", "step=100", "agg=count,max")).json

    assert reply["rows"] == [
        {"series_id": FIRST_ID + 2, "timestamp": time, "value": float(time)} for time in (7, 12)
    ]
    assert [(w["series_id"], w["count"], w["max"]) for w in windows["rows"]] == [
        (FIRST_ID + n, 4, 15.0 + n) for n in range(5)
    ]
    assert written.call("GET", "/query" + match("disk")).json == {"count": 0, "rows": [], "cursor": None}
    both = written.call("GET", "/query" + match("mem", "match[]=" + urllib.parse.quote('{host="h1"}')))
    assert both.json["count"] == 5


def test_a_cursor_goes_on_when_more_series_match(written: Client, engine: FakeEngine) -> None:
    first = written.call("GET", "/query" + match("cpu", "limit=18")).json
    written.call("POST", "/write", b"cpu,host=new usage=1 1\n")

    second = written.call("GET", "/query" + match("cpu", "cursor=" + first["cursor"])).json
    other = written.call("GET", "/query" + match("mem", "cursor=" + first["cursor"]))

    assert first["count"] == 18
    assert [row["series_id"] - FIRST_ID for row in second["rows"]] == [4, 4, 6]
    assert other.status == 400
    assert "cursor belongs to another query" in other.error["message"]


def test_a_look_up_of_many_new_names_runs_in_a_thread(written: Client, monkeypatch) -> None:
    expected = written.call("GET", "/query" + match("cpu", "format=columns")).json
    written.call("POST", "/write", b"cpu,host=h9 usage=1 1\n")
    monkeypatch.setattr(named_series, "UNINDEXED_MAX", 0)

    reply = written.call("GET", "/query" + match("cpu", "format=columns"))

    assert reply.json["count"] == expected["count"] + 1


def test_what_a_look_up_found_is_remembered_until_names_come(written: Client, monkeypatch) -> None:
    query = "/query" + match("cpu", "format=columns")
    first = written.call("GET", query).json
    with monkeypatch.context() as patch:
        patch.setattr(named_series, "parse_selector", None)
        again = written.call("GET", query).json
    written.call("POST", "/write", b"cpu,host=h8 usage=1 1\n")

    after = written.call("GET", query).json

    assert first == again
    assert after["count"] == first["count"] + 1
    assert len(set(after["series_id"]) - set(first["series_id"])) == 1


@pytest.mark.parametrize(
    ("name", "maximum"), [("REMEMBERED_MAX", 0), ("REMEMBERED_IDS_MAX", 0), ("REMEMBERED_CHARACTERS_MAX", 2)]
)
def test_few_look_ups_are_remembered(written: Client, monkeypatch, name: str, maximum: int) -> None:
    expected = written.call("GET", "/query" + match("cpu", "limit=3")).json
    monkeypatch.setattr(named_series, name, maximum)

    for selector in ('cpu{host="h1"}', "cpu", "cpu"):
        found = written.call("GET", "/query" + match(selector, "limit=3")).json

    assert found == expected


@pytest.mark.parametrize(
    ("query", "message", "field"),
    [
        ("match[]=cpu&series_id=1", "match[] and series_id cannot be given together", "match[]"),
        ("match[]=" + urllib.parse.quote('cpu{host=~"h."}'), "host=~ is not supported yet", "match[]"),
        ("match[]=%7B%7D", "selects nothing", "match[]"),
    ],
)
def test_bad_selectors(client: Client, query: str, message: str, field: str) -> None:
    for path in ("/query", "/series") if "series_id" not in query else ("/query",):
        reply = client.call("GET", f"{path}?{query}")

        assert reply.status == 400
        assert message in reply.error["message"]
        assert reply.error["field"] == field


def test_series_in_pages(written: Client) -> None:
    found: list[int] = []
    query = match("cpu", "limit=2")
    while True:
        page = written.call("GET", "/series" + query).json
        assert page["count"] == len(page["series"])
        found += [series["series_id"] - FIRST_ID for series in page["series"]]
        if page["cursor"] is None:
            break
        query = match("cpu", "limit=2", "cursor=" + page["cursor"])

    assert found == [0, 1, 2, 3, 4]
    wrong = written.call("GET", "/series" + match("mem", "cursor=" + "A" * 34))
    assert wrong.status == 400
    for limit in ("0", "100001"):
        assert written.call("GET", f"/series?limit={limit}").status == 400


def test_reads_what_the_plain_reader_reads() -> None:
    body = TELEGRAF + b"m f=.5 7\n# c\n\nm,b=1,a=2 f=1e-3,g=t 8\r\nm x=12345678901234567890 9"

    rows = decoded(body)

    expected = reference_lines.read_body(body)
    assert [(row.timestamp, row.value) for row in expected] == [(time, value) for _, time, value in rows]
