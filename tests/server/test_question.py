from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omendb.errors import InvalidRequestError
from omendb.model import AGGREGATES
from omendb.server import question
from omendb.server.question import Question, read_question

numbers = st.integers(-(10**19), 10**19).map(str) | st.sampled_from(
    ["0", "-0", "-", "", "007", "1" * 18, "1" * 19, "1_0", "+1", "٣", "1.0", " 1"]
)
pairs = st.one_of(
    st.tuples(st.sampled_from(["start", "end", "series_id", "limit", "step"]), numbers),
    st.tuples(st.just("format"), st.sampled_from(["rows", "columns", "arrow", "json", "Rows"])),
    st.tuples(st.just("agg"), st.sampled_from([*AGGREGATES, "mean,max", "median"])),
    st.tuples(st.just("match[]"), st.just("cpu")),
)
texts = st.lists(pairs.map("=".join), max_size=8).map("&".join) | st.sampled_from(
    [
        "",
        "&",
        "start=1&",
        "&start=1",
        "start=1&&end=2",
        "start=1\n",
        "start=1&start=2",
        "start",
        "start=1end=2",
    ]
)


def answer(read, text: str) -> Question | tuple[str, str | None]:
    try:
        return read(text)
    except InvalidRequestError as error:
        return str(error), error.field


@given(texts)
def test_the_quick_reading_is_the_thorough_one(text: str) -> None:
    assert answer(read_question, text) == answer(question._read_by_name, text)


def test_usual_questions_are_read_quickly(monkeypatch) -> None:
    monkeypatch.setattr(question, "_read_by_name", None)

    found = read_question("start=-5&end=99&format=columns&series_id=7&limit=3")
    windows = read_question("agg=mean&step=10&start=0")

    assert found == Question((-5, 99, [7], None, "columns"), 3)
    assert windows == Question((0, None, None, 10, None), agg=("mean",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Question((None, None, None, None, None))),
        ("series_id=1,2&series_id=3", Question((None, None, [1, 2, 3], None, None))),
        ("match[]=a&match[]=b&by=", Question((None, None, None, None, None), by="", match=("a", "b"))),
        ("st%61rt=%31&agg=mean,max", Question((1, None, None, None, None), agg=("mean", "max"))),
    ],
)
def test_other_questions_are_read_by_name(text: str, expected: Question) -> None:
    assert read_question(text) == expected
