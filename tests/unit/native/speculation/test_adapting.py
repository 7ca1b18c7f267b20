"""How many drafts a request gets: none where they do not pay, more the better they fare and the less rows cost."""

from __future__ import annotations

import pytest

from vllm_mxext.native.speculation.acceptance import Acceptance
from vllm_mxext.native.speculation.costs import RowCosts

pytestmark = pytest.mark.promise("SPEC-3")

CHEAP = 0.06
LIMIT = 4


def attempts(acceptance: Acceptance, num_steps: int, share_right: float = 0.0, price: float = CHEAP) -> list[int]:
    """Drafts tried in each step when so large a share of them, from the first on, is right."""
    tried = []
    for _ in range(num_steps):
        num_drafts = acceptance.num_worthwhile(price, LIMIT)
        if num_drafts:
            acceptance.record(num_drafts, round(share_right * num_drafts))
        tried.append(num_drafts)
    return tried


def test_right_drafts_are_tried_at_full_length_in_every_step() -> None:
    assert attempts(Acceptance(), 50, share_right=1.0)[2:] == [LIMIT] * 48


def test_wrong_drafts_become_shorter_and_then_rare() -> None:
    tried = attempts(Acceptance(), 400)
    assert tried[0] > 1
    assert sum(tried[:16]) <= 16
    assert sum(tried[50:]) <= 6
    assert sum(tried[350:]) <= 1


def test_one_right_draft_after_a_pause_begins_anew() -> None:
    acceptance = Acceptance()
    while attempts(acceptance, 1) != [0]:
        pass
    while not (num_drafts := acceptance.num_worthwhile(CHEAP, LIMIT)):
        pass
    assert num_drafts == 1
    acceptance.record(1, 1)
    assert acceptance.num_worthwhile(CHEAP, LIMIT) == LIMIT


def test_nothing_is_tried_where_rows_cost_what_they_bring() -> None:
    acceptance = Acceptance()
    assert attempts(acceptance, 100, share_right=1.0, price=0.9) == [0] * 100
    assert attempts(acceptance, 1) == [LIMIT]


def test_drafts_are_as_long_as_each_of_them_pays() -> None:
    lengths = [Acceptance().num_worthwhile(price, 10) for price in (0.6, 0.4, 0.2, 0.1, 0.05)]
    assert lengths == [0, 1, 2, 3, 4]


def steps(costs: RowCosts, fixed: float, per_row: float, rows: list[int]) -> None:
    for num_rows in rows:
        costs.record(num_rows, fixed + per_row * num_rows)


def test_the_price_of_a_row_is_learned_from_steps() -> None:
    costs = RowCosts()
    steps(costs, 0.9, 0.02, [1, 5] * 50)
    assert costs.price(1) == pytest.approx(0.02 / 0.92, rel=0.1)
    steps(costs, 0.2, 0.1, [8, 10, 12] * 100)
    assert costs.price(10) == pytest.approx(10 * 0.1 / 1.2, rel=0.1)


def test_before_any_step_a_guess_is_taken_that_forbids_drafts_in_large_batches() -> None:
    costs = RowCosts()
    assert 0.05 < costs.price(1) < 0.2
    assert costs.price(64) > 0.8


def test_a_step_that_was_held_up_hardly_counts() -> None:
    costs = RowCosts()
    steps(costs, 0.9, 0.02, [1, 5] * 50)
    before = costs.price(1)
    costs.record(5, 1000.0)
    assert costs.price(1) < 4 * before
