"""CHAIR, coverage and the partner rate against numbers counted by hand."""

import pytest

from bench.digits.metrics import hallucinated, score


def test_counted_by_hand():
    # picture 3 8 1: names 3, 8, 7. One of three is invented, and it is the partner of 1; 1 is missed.
    # picture 4 5:   names 4, 5.     All true.
    # picture 0 6:   names 0, 3, 3.  One digit in two mentions is invented, nobody's partner; 6 is missed.
    captions = ["I see 3, 8 and 7 clearly.", "I see 4 and 5 clearly.", "I see 0, 3 and 3 vaguely."]
    scores = score(captions, [(3, 8, 1), (4, 5), (0, 6)])
    assert scores.chair_i == pytest.approx(100 * 2 / 7)
    assert scores.chair_i_mentions == pytest.approx(100 * 3 / 8)
    assert scores.chair_s == pytest.approx(100 * 2 / 3)
    assert scores.cover == pytest.approx(100 * 5 / 7)
    assert scores.partner_rate == pytest.approx(100 * 1 / 7)


def test_the_truth_scores_perfectly_and_silence_covers_nothing():
    true = score(["I see 3 and 8 clearly."], [(3, 8)])
    assert (true.chair_i, true.chair_s, true.cover, true.partner_rate) == (0, 0, 100, 0)
    silent = score(["I see clearly."], [(3, 8)])
    assert (silent.chair_i, silent.chair_s, silent.cover, silent.partner_rate) == (0, 0, 0, 0)


def test_a_true_digit_said_twice_is_not_invented():
    assert hallucinated("I see 3, 3 and 9 clearly.", (3, 4)) == [9]


def test_captions_and_pictures_have_to_match_in_number():
    with pytest.raises(ValueError, match="shorter|longer"):
        score(["I see 3 and 8 clearly."], [])
