from __future__ import annotations

from collections import Counter

import pytest

TALLY: pytest.StashKey[Counter[str]] = pytest.StashKey()


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Counter[str]:
    """Counts that the run ends with."""
    return request.config.stash.setdefault(TALLY, Counter())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts = config.stash.get(TALLY, None)
    if counts:
        terminalreporter.section("laws")
        terminalreporter.line(", ".join(f"{n} {what}" for what, n in counts.items()))
