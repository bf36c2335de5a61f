"""The yardstick by which tests tell much work from little."""

import pytest

from tests.helpers.work import LITTLE, little_work, processor_seconds, yardstick


def test_much_work_is_found():
    with pytest.raises(AssertionError), little_work(times=1):
        for _ in range(10):
            yardstick()


def test_little_work_is_not_measured_again():
    with little_work(lambda: pytest.fail("measured")):
        sum(range(1000))


def test_work_is_compared_with_what_is_done_beside_it():
    def as_much():
        spent = 0.0
        while spent <= 1.2 * LITTLE:
            spent += processor_seconds(yardstick)

    with little_work(as_much, times=10):
        as_much()
