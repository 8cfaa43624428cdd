"""One benchmark a row: `pytest benchmarks --benchmark-only`.

pytest-benchmark shows the wall time of our column; the comparison with the other columns comes from
interleaved rounds and is printed as a table at the end (`benchmarks.report`). With `--once` every
row is run once, small, on any CPU: a check that all of them can be measured.
"""

import pytest

from benchmarks.compare import build_all
from benchmarks.measure import measure
from benchmarks.rows import OURS, all_rows

# torch.compile imports parts of torch that warn about others
pytestmark = pytest.mark.filterwarnings("default")


def pytest_generate_tests(metafunc):
    once = metafunc.config.getoption("--once")
    found = list(all_rows(once))
    metafunc.parametrize("row", found, ids=[row.name for row in found])


def test_row(row, threads, results, benchmark):
    if row.full and not results.full and not results.once:
        pytest.skip("only with --full")
    reason = row.skip()
    if reason:
        results.put(row, threads, {"dtype": row.dtype, "threads": threads, "skipped": reason})
        pytest.skip(reason)

    def drive(rounds, count):
        """Our turns are pytest-benchmark's rounds; the other columns run between them."""
        rounds.plan(count)
        benchmark.pedantic(
            rounds.turn, setup=lambda: rounds.until(OURS), rounds=count, iterations=1
        )
        rounds.finish()
        return count

    device = results.devices[threads]
    extra, lacking = build_all(results.remotes, row.name, threads)
    more = {"extra": extra, "runner": drive, "strict": True}
    result = measure(row, results.plan(), device, **more)
    result["missing"] |= lacking
    results.put(row, threads, result)
