"""Holds for every test: the asyncio backend, and that nothing is passed over in silence where it counts."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import structlog

from benchmarks.processes import build

STRICT = os.environ.get("CI") == "true"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Of the widest scope, so that fixtures of any scope may be asynchronous."""
    return "asyncio"


@pytest.fixture(autouse=True, scope="module")
def log_begins_anew() -> None:
    """A module's log does not depend on what relays of another, in the same process, were told of theirs."""
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def log_is_open() -> None:
    """A relay of an earlier test may have sent this process's log to what that test captured, and that is closed."""
    file = getattr(structlog.get_config()["logger_factory"], "_file", None)
    if file is not None and file.closed:
        structlog.reset_defaults()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs of the benchmarks' rig are, built once."""
    folder = tmp_path_factory.mktemp("programs")
    build(folder)
    return folder


@pytest.fixture
def cores() -> Iterator[None]:
    """The rig pins us to a core: what runs after it has all of them again."""
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Under CI a test that could not run is a failure: a green run must mean that everything was tried."""
    if STRICT and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, and CI=true makes that a failure: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report)
    return report
