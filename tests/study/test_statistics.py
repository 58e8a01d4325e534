"""Intervals against figures worked out by hand."""

import math

import pytest

from bench.study.statistics import difference, interval


def test_interval_is_students():
    # mean 3, standard deviation 1.5811, t(0.975, 4) = 2.7764
    found = interval([1, 2, 3, 4, 5])
    assert found.mean == 3
    assert found.half == pytest.approx(2.7764 * 1.58114 / math.sqrt(5), rel=1e-4)


def test_one_seed_has_no_interval():
    found = interval([2.0])
    assert found.mean == 2.0 and math.isnan(found.half)
    assert not found.excludes_zero


def test_difference_is_paired():
    # far apart between seeds, alike within one: only pairing sees the difference
    found = difference([1.0, 11.0, 21.2], [2.0, 12.1, 22.0])
    assert found.mean == pytest.approx(-0.9667, abs=1e-4)
    assert found.excludes_zero


def test_text_carries_sign_where_asked():
    assert interval([1.0, 1.0]).text() == "1.0 ± 0.0"
    assert interval([1.0, 1.0]).text(2, signed=True) == "+1.00 ± 0.00"
