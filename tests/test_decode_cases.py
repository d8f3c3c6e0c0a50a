"""Every recorded answer gives what the contract says, however its bytes are cut and whatever else is in its stream."""

import re
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.decode import Complete, from_status
from app.errors import Problem
from app.events import Usage
from tests.cases import CASES, Case
from tests.decoding import Decoded, decode, single_bytes

STREAMED = [case for case in CASES if 200 <= case.status < 300]
REFUSED = [case for case in CASES if not 200 <= case.status < 300]
PLAIN = [case for case in CASES if case.is_plain_stream]


def name(case: Case) -> str:
    return case.name


def decode_case(case: Case, *reads: bytes) -> Decoded:
    return decode(
        *reads,
        status=case.status,
        content_type=case.headers.get("content-type"),
        content_encoding=case.headers.get("content-encoding"),
    )


def check(decoded: Decoded, case: Case) -> None:
    expect = case.expect
    assert decoded.text == expect.text
    assert decoded.reasoning == (expect.reasoning or "")
    assert decoded.refusal == (expect.refusal or "")
    assert len(decoded.tool_calls) == (expect.tool_calls or 0)
    match decoded.end:
        case Problem() as problem:
            assert (expect.end, expect.code) == ("error", problem.code)
            assert expect.http_status in (None, problem.status)
        case Complete() as complete:
            assert expect.end == "done"
            assert expect.finish_reason in (None, complete.finish_reason)
            assert expect.usage is None or complete.usage == Usage(**expect.usage, source="reported")


@pytest.mark.parametrize("case", STREAMED, ids=name)
def test_every_case_gives_what_is_expected(case: Case) -> None:
    check(decode_case(case, case.body), case)


@pytest.mark.parametrize("case", REFUSED, ids=name)
def test_every_refused_case_gives_what_is_expected(case: Case) -> None:
    problem = from_status(case.status, case.body, None).problem
    assert (problem.code, problem.status) == (case.expect.code, case.expect.http_status)


@pytest.mark.parametrize("case", STREAMED, ids=name)
def test_byte_by_byte_changes_nothing(case: Case) -> None:
    assert decode_case(case, *single_bytes(case.body)) == decode_case(case, case.body)


@pytest.mark.parametrize("case", STREAMED, ids=name)
def test_a_cut_at_any_place_changes_nothing(case: Case) -> None:
    whole = decode_case(case, case.body)
    for at in range(len(case.body) + 1):
        assert decode_case(case, case.body[:at], case.body[at:]) == whole, f"cut at {at}"


@settings(deadline=None, max_examples=150)
@given(case=st.sampled_from(STREAMED), places=st.lists(st.floats(0, 1), max_size=12))
def test_any_partition_changes_nothing(case: Case, places: list[float]) -> None:
    cuts = [0, *sorted(int(place * len(case.body)) for place in places), len(case.body)]
    reads = [case.body[start:end] for start, end in pairwise(cuts)]
    assert decode_case(case, *reads) == decode_case(case, case.body)


@settings(deadline=None, max_examples=200)
@given(body=st.binary(max_size=400), content_encoding=st.sampled_from([None, "gzip", "deflate"]), at=st.floats(0, 1))
def test_any_bytes_at_all_come_to_one_end(body: bytes, content_encoding: str | None, at: float) -> None:
    cut = int(at * len(body))
    whole = decode(body, content_encoding=content_encoding)
    assert decode(body[:cut], body[cut:], content_encoding=content_encoding) == whole
    assert whole.problem.code in ("upstream_truncated", "upstream_protocol", "upstream_error")


BOM = b"\xef\xbb\xbf"
DONE = re.compile(rb"data: ?\[DONE\]")
FINISH_REASON = re.compile(rb'"finish_reason": ?"[^"]*"')


def fails_in_band(case: Case) -> bool:
    return case.expect.end == "error" and case.expect.code != "upstream_truncated"


def without_its_end(case: Case) -> bytes:
    """The case's bytes with all that it says but that it is over: nothing finishes, and no `[DONE]`."""
    body = DONE.split(case.body)[0]
    return body if fails_in_band(case) else FINISH_REASON.sub(b'"finish_reason":null', body)


def carries(case: Case) -> bool:
    expect = case.expect
    return bool(expect.text or expect.reasoning or expect.refusal or expect.tool_calls)


def expected_of_both(first: Case, second: Case) -> dict[str, object]:
    """The rule: what two upstreams' quirks say in one stream is what each says, in order; the first failure ends it;
    else the second's end is the end. A request is only rejected while nothing was carried: after that upstream failed.
    """
    if fails_in_band(first):
        last, said = first, [first]
    else:
        last, said = second, [first, second]
    code = last.expect.code
    if code == "upstream_rejected" and any(carries(case) for case in said):
        code = "upstream_error"
    return {
        "text": "".join(case.expect.text for case in said),
        "reasoning": "".join(case.expect.reasoning or "" for case in said),
        "refusal": "".join(case.expect.refusal or "" for case in said),
        "tool_calls": sum(case.expect.tool_calls or 0 for case in said),
        "code": code,
    }


def outcome(decoded: Decoded) -> dict[str, object]:
    return {
        "text": decoded.text,
        "reasoning": decoded.reasoning,
        "refusal": decoded.refusal,
        "tool_calls": len(decoded.tool_calls),
        "code": decoded.end.code if isinstance(decoded.end, Problem) else None,
    }


@pytest.mark.parametrize("first", PLAIN, ids=name)
def test_the_quirks_of_any_two_cases_can_stand_in_one_stream(first: Case) -> None:
    for second in PLAIN:
        if first is second and first.expect.tool_calls:
            continue  # the same ids again are the same calls
        both = without_its_end(first) + second.body.removeprefix(BOM)  # a BOM is one at the beginning only
        assert outcome(decode(both)) == expected_of_both(first, second), second.name


@settings(deadline=None, max_examples=100)
@given(pair=st.sampled_from(list(product(PLAIN, PLAIN))), place=st.floats(0, 1))
def test_a_cut_changes_nothing_where_two_quirks_meet(pair: tuple[Case, Case], place: float) -> None:
    both = without_its_end(pair[0]) + pair[1].body
    at = int(place * len(both))
    assert decode(both[:at], both[at:]) == decode(both) == decode(*single_bytes(both))


def test_the_report_of_the_second_of_two_streams_is_the_one_that_counts() -> None:
    reporting = [case for case in PLAIN if case.expect.usage]
    for first, second in product(reporting, reporting):
        assert second.expect.usage is not None
        usage = Usage(**second.expect.usage, source="reported")
        assert decode(without_its_end(first) + second.body).complete.usage == usage
