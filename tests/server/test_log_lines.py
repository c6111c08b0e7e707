"""What is logged is one line an event, whatever is in it."""

from __future__ import annotations

import ast
import logging
import re
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omendb.server import log_lines
from omendb.server.log_lines import LineHandler, configure, json_line, one_line, stamp, text_line

PACKAGE = Path(log_lines.__file__).parents[1]


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("omendb.engine", logging.INFO, "file.py", 1, message, arguments, None)
    made.created = 1_767_225_600.123456
    for name, value in extra.items():
        setattr(made, name, value)
    return made


def raised(error: Exception) -> object:
    try:
        raise error  # noqa: TRY301
    except Exception:
        return sys.exc_info()


def test_time_level_name_and_message() -> None:
    line = text_line(record("flush done rows=%d duration_ms=%.3f", 5, 1.25))

    assert line == "2026-01-01T00:00:00.123Z INFO omendb flush done rows=5 duration_ms=1.250\n"


def test_json_has_each_key_with_its_type() -> None:
    line = json_line(record("gc done segments=%d->%d linked=%s duration_ms=%.3f", 4, 1, True, 1.25))

    assert msgspec.json.decode(line) == {
        "time": "2026-01-01T00:00:00.123Z",
        "level": "info",
        "logger": "omendb.engine",
        "event": "gc done",
        "message": "gc done segments=4->1 linked=True duration_ms=1.250",
        "segments": {"before": 4, "after": 1},
        "linked": True,
        "duration_ms": 1.25,
    }


@pytest.mark.parametrize(
    ("message", "arguments", "event", "fields"),
    [
        ("stopped", (), "stopped", {}),
        ("wal failed, nothing more: %s", ("x=1",), "wal failed, nothing more", {}),
        ("backup done %s rows=%d", (Path("/b"), 7), "backup done", {"rows": 7}),
        ("kernels (%d of %d) kernels=%d", (1, 8, 28), "kernels", {"kernels": 28}),
        ("cut path=%s at 5%% of %s", (Path("/b"), "x"), "cut", {"path": "/b"}),
    ],
)
def test_events_and_fields_come_from_the_template(message, arguments, event, fields) -> None:
    made = record(message, *arguments)

    assert log_lines.fields_of(made) == fields
    assert log_lines.event_of(made) == event


def test_errors_are_one_line_with_their_traceback() -> None:
    made = record("flush failed", exc_info=raised(ValueError("first\nsecond")))

    text, parsed = text_line(made), msgspec.json.decode(json_line(made))

    assert text.count("\n") == 1
    assert "traceback=Traceback (most recent call last):\\n" in text
    assert text.endswith("ValueError: first\\nsecond\n")
    assert parsed["traceback"].endswith("ValueError: first\nsecond")


@given(st.text())
def test_no_text_forges_a_line_or_hides_in_the_terminal(text: str) -> None:
    for line in (text_line(record("refused: %s", text)), json_line(record("refused: %s", text))):
        assert line.endswith("\n")
        assert len(line.encode("utf-8", "backslashreplace").splitlines()) == 1
        assert "\x1b" not in line
    assert text_line(record("refused: %s", text))[:-1].isprintable()


def test_text_is_cut_when_it_is_too_long() -> None:
    text = "x" * 100_000

    assert len(one_line(text)) <= log_lines.MESSAGE_CHARACTERS_MAX + 3
    assert len(json_line(record("%s", text))) < log_lines.MESSAGE_CHARACTERS_MAX + 300


def test_only_lines_of_queries_hold_their_word() -> None:
    line = text_line(record("config changed slow_query_ms=%d path=%s", 5, "/query?x"))

    assert "query" not in line
    assert "config changed slow_QUERY_ms=5 path=/QUERY?x" in line
    assert "query" in json_line(record("config changed slow_query_ms=%d", 5))


def test_times_are_utc_with_milliseconds() -> None:
    assert stamp(0.9999) == "1970-01-01T00:00:00.999Z"
    assert stamp(1_767_225_600) == "2026-01-01T00:00:00.000Z"


class Lines(list[str]):
    """Stands for a `LineWriter`."""

    def put(self, line: str, *, at_once: bool = False) -> None:
        self.append(line)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch):
    """Return what is logged, with nothing set up before."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    gathered = Lines()
    undo = configure(LineHandler(gathered, lambda: "text"))  # type: ignore[arg-type]
    yield gathered
    undo()
    assert not any(isinstance(handler, LineHandler) for handler in logging.getLogger().handlers)


def test_everything_logged_arrives(lines: Lines) -> None:
    logging.getLogger("omendb.x").info("ours")
    logging.getLogger("omendb.x").debug("too much")
    logging.getLogger("asyncio").warning("theirs")
    logging.getLogger("asyncio").info("too much")

    assert [line.split(" ", 1)[1] for line in lines] == ["INFO omendb ours\n", "WARNING asyncio theirs\n"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_uncaught_errors_of_threads_are_lines_too(lines: Lines) -> None:
    thread = threading.Thread(target=lambda: 1 / 0, name="worker")
    thread.start()
    thread.join()
    sys.excepthook(*raised(KeyError("main")))  # type: ignore[arg-type, misc]

    assert "CRITICAL omendb uncaught error thread=worker traceback=" in lines[0]
    assert lines[0].endswith("ZeroDivisionError: division by zero\n")
    assert lines[1].endswith("KeyError: 'main'\n")


def test_a_set_up_of_somebody_else_is_left_alone() -> None:
    before = list(logging.getLogger().handlers), sys.excepthook
    assert before[0], "pytest has its own"

    configure(LineHandler(Lines(), lambda: "text"))()  # type: ignore[arg-type]

    assert (list(logging.getLogger().handlers), sys.excepthook) == before


def test_log_calls_are_templates_with_keys_in_lower_case() -> None:
    """A formatted message has no fields in JSON, and hides what happened in what it happened to."""
    found = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "logger"
            ):
                found += 1
                template = node.args[0]
                assert isinstance(template, ast.Constant), f"{path}:{node.lineno}"
                assert not re.search(r"\bquery\b", template.value), f"{path}:{node.lineno}"
                for key in re.findall(r"(\w+)=%", template.value):
                    assert re.fullmatch(r"[a-z][a-z0-9_]*", key), f"{path}:{node.lineno}: {key}"
    assert found > 30
