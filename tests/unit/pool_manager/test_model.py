"""What a pool makes of failures."""

from pool_manager.model import Pool
from pool_manager.store import PoolRow


def test_failures_of_one_round_are_one_and_news_end_the_pause() -> None:
    pool = Pool(PoolRow("pool", b"", 1, False, 0.0))
    for _ in range(8):  # begun together
        pool.fail(100.0, lambda failures: 10.0 * failures)
    assert (pool.failures, pool.not_before) == (1, 110.0)
    pool.fail(109.0, lambda failures: 10.0 * failures)
    assert (pool.failures, pool.not_before) == (1, 110.0)
    pool.fail(110.0, lambda failures: 10.0 * failures)
    assert (pool.failures, pool.not_before) == (2, 130.0)
    pool.try_again()
    assert (pool.failures, pool.not_before) == (0, 0.0)
