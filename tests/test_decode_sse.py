"""Framing after the WHATWG standard, and the two departures from it that `app.decode.sse` names."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.decode.sse import Frame, Frames
from app.errors import RelayError
from tests.decoding import single_bytes

LIMIT_BYTES = 64


def framed(*reads: bytes, max_event_bytes: int) -> tuple[list[Frame], str | None]:
    """The frames, and the code of the failure that ended them."""
    frames = Frames(max_event_bytes)
    found: list[Frame] = []
    try:
        for read in reads:
            frames.receive(read)
            found += iter(frames.next_frame, None)
        frames.receive_eof()
        found += iter(frames.next_frame, None)
    except RelayError as error:
        return found, error.problem.code
    return found, None


def frames_of(*reads: bytes) -> list[Frame]:
    frames, failure = framed(*reads, max_event_bytes=1000)
    assert failure is None
    return frames


def data_of(*reads: bytes) -> list[bytes]:
    return [frame.data for frame in frames_of(*reads)]


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b"data: a\n\n", [b"a"]),
        (b"data:a\n\ndata:  b\n\n", [b"a", b" b"]),
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [b"YHOO\n+2\n10"]),
        (b"data\n\ndata\ndata\n\ndata:", [b"", b"\n", b""]),
        (b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\n", [b"first event", b"second event"]),
        (b"retry: 1\nid: 2\nwhat: ever\nevent: x\n\n", []),
        (b"\n\n\r\n\ndata: a\n\n\n\n", [b"a"]),
        (b"data: a\n\ndata: b", [b"a", b"b"]),
        (b"Data: a\n data: b\ndata : c\n\n", []),
        (b"data: a\xe2\x80\xa8b\xc2\x85c\x0bd\x0ce\n\n", [b"a\xe2\x80\xa8b\xc2\x85c\x0bd\x0ce"]),
        (b"data: a:b: c\n\n", [b"a:b: c"]),
        (b"data: \xef\xbb\xbfa\n\n", [b"\xef\xbb\xbfa"]),
    ],
)
def test_frames_are_those_of_the_standard(stream: bytes, data: list[bytes]) -> None:
    assert data_of(stream) == data


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
def test_line_ends_are_lf_cr_and_crlf(line_end: bytes) -> None:
    stream = line_end.join([b"event: e", b"data: a", b"data: b", b"", b"data: c", b"", b""])
    expected = [Frame(b"a\nb", b"e"), Frame(b"c")]
    assert frames_of(stream) == frames_of(*single_bytes(stream)) == expected


def test_a_cr_ends_its_line_before_it_is_known_what_follows() -> None:
    frames = Frames(LIMIT_BYTES)
    frames.receive(b"data: a\r\n\r")
    assert frames.next_frame() == Frame(b"a")
    frames.receive(b"\ndata: b\n\n")
    assert frames.next_frame() == Frame(b"b")


def test_a_bom_is_passed_over_at_the_beginning_alone() -> None:
    stream = b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n"
    assert data_of(stream) == data_of(*single_bytes(stream)) == [b"a"]
    assert data_of(b"\xef", b"\xbbdata: a\n\n") == []


@pytest.mark.parametrize("stream", [b"error: {}\n\n", b"data: a\nerror: {}\ndata: b\n\n", b"event: x\nerror:{}"])
def test_a_field_called_error_is_an_error_frame(stream: bytes) -> None:
    assert frames_of(stream) == [Frame(b"{}", b"error")]


def test_one_space_is_removed_and_no_more() -> None:
    assert frames_of(b"event:  a \ndata:   b \n\n") == [Frame(b"  b ", b" a ")]


def test_an_event_called_error_needs_no_data() -> None:
    assert frames_of(b"event: error\n\nevent: ping\n\ndata: a\n\n") == [Frame(b"", b"error"), Frame(b"a")]


def test_an_event_name_holds_for_its_block_alone() -> None:
    assert frames_of(b"event: a\n\nevent: b\nevent: c\ndata: d\n\ndata: e\n\n") == [Frame(b"d", b"c"), Frame(b"e")]


LINES = st.sampled_from(
    [b"data: a", b"data:", b"data", b"event: ping", b"event", b": c", b"id: 1", b"error: e", b"", b""]
)
LINE_ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
STREAMS = st.lists(st.tuples(LINES, LINE_ENDS), max_size=20).map(lambda lines: b"".join(map(b"".join, lines)))


@settings(deadline=None, max_examples=200)
@given(
    stream=STREAMS, bom=st.sampled_from([b"", b"\xef\xbb\xbf", b"\xef"]), places=st.lists(st.floats(0, 1), max_size=6)
)
def test_any_partition_gives_the_same_frames(stream: bytes, bom: bytes, places: list[float]) -> None:
    stream = bom + stream
    cuts = [0, *sorted(int(place * len(stream)) for place in places), len(stream)]
    reads = [stream[start:end] for start, end in pairwise(cuts)]
    for limit_bytes in (16, LIMIT_BYTES, 1000):
        assert framed(*reads, max_event_bytes=limit_bytes) == framed(stream, max_event_bytes=limit_bytes)


@pytest.mark.parametrize(
    "block",
    [
        b"data: " + b"a" * 58,
        b"data:\n" * 12 + b"data",
        b"event: " + b"a" * 57,
        b"x" * 64,
        b":" + b"a" * 63,
        b"\xef\xbb\xbfdata: " + b"a" * 58,
    ],
)
def test_a_frame_may_be_as_large_as_its_limit_and_no_larger(block: bytes) -> None:
    lines = block.removeprefix(b"\xef\xbb\xbf")
    size = len(lines.replace(b"\n", b""))
    for stream in (block, block + b"\n\n", block + b"\r\n\r\n"):
        for reads in ([stream], single_bytes(stream)):
            assert framed(*reads, max_event_bytes=size)[1] is None
            assert framed(*reads, max_event_bytes=size - 1)[1] == "upstream_protocol"


def test_comments_without_a_blank_line_are_no_growing_frame() -> None:
    assert data_of(b": heartbeat\n" * 100 + b"data: a\n\n") == [b"a"]


def test_frames_before_a_frame_too_large_are_not_lost() -> None:
    frames = Frames(LIMIT_BYTES)
    frames.receive(b"data: a\n\ndata: " + b"b" * LIMIT_BYTES + b"\n\n")
    assert frames.next_frame() == Frame(b"a")
    with pytest.raises(RelayError):
        frames.next_frame()


def test_an_unfinished_line_too_large_is_refused_before_it_ends() -> None:
    frames = Frames(LIMIT_BYTES)
    frames.receive(b"data: " + b"a" * LIMIT_BYTES)
    with pytest.raises(RelayError):
        frames.next_frame()


def test_bytes_may_come_while_frames_wait() -> None:
    frames = Frames(LIMIT_BYTES)
    frames.receive(b"data: a\n\ndata: b\n\nda")
    assert frames.next_frame() == Frame(b"a")
    frames.receive(b"ta: c\n\n")
    assert [frames.next_frame(), frames.next_frame(), frames.next_frame()] == [Frame(b"b"), Frame(b"c"), None]
