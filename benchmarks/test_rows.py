"""One benchmark a row: `pytest benchmarks --benchmark-only`.

pytest-benchmark shows the wall time of our column; the comparison with the other columns comes from
interleaved rounds and is printed as a table at the end (`benchmarks.report`).
"""

import pytest

from benchmarks.compare import build_all
from benchmarks.measure import measure, skipped
from benchmarks.rows import all_rows

# torch.compile imports parts of torch that warn about others
pytestmark = pytest.mark.filterwarnings("default")
ROWS = {row.name: row for row in all_rows()}


@pytest.mark.parametrize("name", ROWS)
def test_row(name, threads, results, benchmark):
    row, plan = ROWS[name], results.plan(threads)
    if row.full and not plan.full:
        pytest.skip("only with --full")
    reason = row.skip()
    if reason:
        results.rows.append(skipped(row, plan, reason))
        pytest.skip(reason)

    def drive(rounds, count, ours):
        """Our turns are pytest-benchmark's rounds; the other columns run between them."""
        rounds.plan(count)
        benchmark.pedantic(
            rounds.turn, setup=lambda: rounds.until(ours), rounds=count, iterations=1
        )
        rounds.finish()

    extra, lacking = build_all(results.remotes, name, plan.full, threads)
    result = measure(row, plan, results.evict, extra=extra, runner=drive)
    result["missing"] |= lacking
    results.rows.append(result)
