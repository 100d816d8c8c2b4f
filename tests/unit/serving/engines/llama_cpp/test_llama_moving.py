from __future__ import annotations

from serving.engines.llama_cpp.moving import MoveCost


def test_a_move_is_tried_before_its_cost_is_known() -> None:
    assert MoveCost().pays(1_000_000, 0.0)
    assert MoveCost().expected_ms(5) == 0.0


def test_what_moves_cost_is_learned_by_the_token() -> None:
    cost = MoveCost()
    cost.observe(100, 0.2)
    assert cost.expected_ms(10) == 20.0
    assert cost.pays(10, 20.0)
    assert not cost.pays(10, 19.0)
    cost.observe(100, 0.1)
    assert cost.expected_ms(10) == 15.0
    cost.observe(0, 5.0)
    assert cost.expected_ms(10) == 15.0


def test_what_is_refused_is_tried_again_in_the_end() -> None:
    cost = MoveCost()
    cost.refused()
    cost.observe(10, 1.0)
    refusals = 0
    while not cost.pays(10, 500.0):
        cost.refused()
        refusals += 1
    assert 100 < refusals < 200
