"""The text for Prometheus, read by its own parser."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parsed

from shardstream.observe.exposition import Buckets, Family, labelled, render

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(TEXTS, TEXTS, st.floats(allow_nan=False))
def test_any_text_and_number_comes_back(first: str, second: str, value: float) -> None:
    labels = {"job_name": first, "url": second}
    text = render([Family("some_total", "counter", f"{first}\n\\", [(labelled(labels), value)])]).decode()
    (family,) = parsed(text)
    (sample,) = family.samples
    assert (family.type, sample.name, sample.labels, sample.value) == ("counter", "some_total", labels, value)


@given(st.lists(st.integers(0, 1 << 40), min_size=3, max_size=3), st.floats(0, 1e12))
def test_buckets_rise_and_end_with_the_count(counts: list[int], total: float) -> None:
    family = Family("wait_seconds", "histogram", "Waits.", [('rank="1"', Buckets([0.5, 1.0], counts, total))])
    (found,) = parsed(render([family]).decode())
    values = {(sample.name, sample.labels.get("le")): sample.value for sample in found.samples}
    assert values == {
        ("wait_seconds_bucket", "0.5"): counts[0],
        ("wait_seconds_bucket", "1.0"): counts[0] + counts[1],
        ("wait_seconds_bucket", "+Inf"): sum(counts),
        ("wait_seconds_count", None): sum(counts),
        ("wait_seconds_sum", None): total,
    }


def test_what_has_no_value_is_left_out() -> None:
    assert render([Family("a", "gauge", "A."), Family("b", "gauge", "B.", [("", 1)])]) == (
        b"# HELP b B.\n# TYPE b gauge\nb 1\n"
    )
