"""The soak finds what grows, what is late and what is left: it is no proof otherwise."""

import shutil

import msgspec
import pytest

from benchmarks import soak
from benchmarks.soak_samples import Sample, growths, latest_shares

pytestmark = pytest.mark.usefixtures("cores")

SAMPLE = Sample(
    at_s=0.0,
    ended=0,
    resident_mib=100.0,
    descriptors=200,
    sockets=150,
    tasks=300,
    upstream_streams=0,
    log_kib=0.0,
    ticks=0,
    late_ticks=0,
)


def _samples(name: str, each: float) -> list[Sample]:
    """Noise of 5 up and down, and so much more of one quantity with every sample of the last half."""
    flat = [(turn, float(getattr(SAMPLE, name)) + turn % 2 * 5) for turn in range(100)]
    values = [value + max(0, turn - 50) * each for turn, value in flat]
    return [
        msgspec.structs.replace(SAMPLE, at_s=float(turn), ticks=turn * 20, **{name: value})
        for turn, value in enumerate(values)
    ]


@pytest.mark.parametrize("name", ["resident_mib", "descriptors", "sockets", "tasks"])
def test_what_grows_is_found_and_what_only_wavers_is_not(name: str) -> None:
    assert all(growth.flat for growth in growths(_samples(name, 0.0)))
    assert [growth.name for growth in growths(_samples(name, 1.0)) if not growth.flat] == [name]


def test_a_part_of_the_run_in_which_the_loop_was_late_is_not_made_up_for_by_the_others() -> None:
    samples = [
        msgspec.structs.replace(SAMPLE, ticks=turn * 20, late_ticks=20 if turn > 55 else 10 if turn > 54 else 0)
        for turn in range(101)
    ]
    shares = latest_shares(samples, 10)
    assert shares == pytest.approx([0, 0, 0, 0, 0, 0.1, 0, 0, 0, 0])


def _found(**changes: object) -> soak.Soak:
    flat = tuple(growths(_samples("tasks", 0.0)))
    found = soak.Soak(10, 1.0, {"read": 10}, (), 0, flat, (0.001,) * 10, SAMPLE, SAMPLE, ())
    return msgspec.structs.replace(found, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"failed": 1, "failures": ("read: cut",)}, "FAILED  1 did not get"),
        ({"late_shares": (0.0, 0.02)}, "LATE  the loop"),
        ({"growths": tuple(growths(_samples("tasks", 1.0)))}, "GROWS  tasks"),
        ({"last": msgspec.structs.replace(SAMPLE, tasks=310)}, "LEFT  afterwards"),
        ({"last": msgspec.structs.replace(SAMPLE, descriptors=270)}, "LEFT  afterwards"),
        ({"last": msgspec.structs.replace(SAMPLE, upstream_streams=1)}, "LEFT  afterwards"),
    ],
)
def test_one_fault_is_enough_to_fail(changes: dict[str, object], said: str) -> None:
    assert soak.told(_found()).endswith("\npassed")
    assert _found().passed()
    assert said in soak.told(_found(**changes))
    assert not _found(**changes).passed()


@pytest.mark.skipif(shutil.which("cc") is None, reason="cc is missing: the rig cannot be built")
def test_some_hundred_streams_of_every_kind_get_what_they_should_have(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a short run can tell: that nobody was failed, and that nothing is left. Slopes need longer ones."""
    monkeypatch.setitem(soak.SETTINGS, "RELAY_LOG_TTL_SECONDS", "1")
    soak.main(["--streams", "300", "--warm-up", "20", "--per-second", "100", "--seed", "3"])
    said = capsys.readouterr().out
    assert all(kind in said for kind in (" fault", " leave", " read", " resume", " stop"))
    assert "    ok  0 did not get what they should have" in said
    assert "    ok  afterwards " in said
