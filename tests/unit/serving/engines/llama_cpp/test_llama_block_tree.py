from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from serving.engines.llama_cpp.block_tree import BlockTree, Tokens
from serving.engines.llama_cpp.held_names import HeldNames

A, B, C = (bytes([n]) * 16 for n in range(3))


@dataclass(frozen=True)
class Part:
    start: int
    end: int
    nbytes: int = 10


def make_tree(blocks: int) -> tuple[BlockTree[Part], HeldNames]:
    names = HeldNames()
    return BlockTree(blocks * 10, 4, names), names


def prompt(*blocks: int) -> Tokens:
    return np.repeat(np.array(blocks, np.int32), 4)


def park(tree: BlockTree[Part], tokens: Tokens, space: str = "s", cost_ms: float = 1.0) -> int:
    return tree.park(space, tokens, (), Part, cost_ms)


def matched(tree: BlockTree[Part], tokens: Tokens, space: str = "s") -> int:
    return len(tree.match(space, tokens))


def test_only_whole_blocks_are_parked_and_matched() -> None:
    tree, _ = make_tree(10)
    assert park(tree, prompt(1, 2)[:7]) == 4
    assert matched(tree, prompt(1, 2)) == 1
    assert matched(tree, prompt(1)[:3]) == 0


def test_shared_beginnings_are_kept_once() -> None:
    tree, _ = make_tree(10)
    park(tree, prompt(1, 2, 3))
    asked: list[Part] = []

    def make(start: int, end: int) -> Part:
        asked.append(Part(start, end))
        return asked[-1]

    tree.park("s", prompt(1, 2, 4), (), make, 1.0)
    assert asked == [Part(8, 12)]
    assert tree.used_bytes == 40
    assert matched(tree, prompt(1, 2, 3)) == matched(tree, prompt(1, 2, 4)) == 3


def test_namespaces_do_not_see_each_other() -> None:
    tree, _ = make_tree(10)
    park(tree, prompt(1, 2), "a")
    assert matched(tree, prompt(1, 2), "b") == 0
    assert matched(tree, prompt(1, 2), "a") == 2


def test_the_leaf_used_least_goes_first_and_never_an_inner_block() -> None:
    tree, _ = make_tree(4)
    park(tree, prompt(1, 2))
    park(tree, prompt(3, 4))
    tree.hit(tree.match("s", prompt(1, 2)), 1.0)
    park(tree, prompt(5))
    assert [matched(tree, p) for p in (prompt(1, 2), prompt(3, 4), prompt(5))] == [2, 1, 1]


def test_what_is_dear_to_compute_stays_longer() -> None:
    tree, _ = make_tree(2)
    park(tree, prompt(1), cost_ms=5.0)
    park(tree, prompt(2), cost_ms=1.0)
    park(tree, prompt(3), cost_ms=1.0)
    assert [matched(tree, prompt(n)) for n in (1, 2, 3)] == [1, 0, 1]


def test_old_fame_fades() -> None:
    tree, _ = make_tree(2)
    park(tree, prompt(1))
    for _ in range(5):
        tree.hit(tree.match("s", prompt(1)), 1.0)
    for n in range(2, 20):
        park(tree, prompt(n))
    assert matched(tree, prompt(1)) == 0


def test_a_prompt_beyond_the_budget_is_parked_as_far_as_it_goes() -> None:
    tree, _ = make_tree(3)
    park(tree, prompt(9))
    assert park(tree, prompt(1, 2, 3, 4, 5)) == 12
    assert tree.used_bytes == 30
    assert make_tree(0)[0].park("s", prompt(1), (), Part, 1.0) == 0


def test_names_go_with_their_blocks() -> None:
    tree, names = make_tree(2)
    tree.park("s", prompt(1, 2), ((A, 3), (B, 8), (C, 9)), Part, 1.0)
    assert set(names.take_changes()[0]) == {A, B}
    park(tree, prompt(3))
    assert names.take_changes() == ([], [B])
    tree.clear()
    assert names.take_changes() == ([], [A])
    assert tree.used_bytes == 0


def test_names_of_a_block_are_bounded() -> None:
    tree, names = make_tree(2)
    for n in range(50):
        tree.park("s", prompt(1), ((n.to_bytes(16, "big"), 2),), Part, 1.0)
    assert len(names.take_changes()[0]) <= 8


def test_bounded_and_consistent_under_random_use() -> None:
    rng = random.Random(3)
    tree, _ = make_tree(12)
    hits = 0
    for _ in range(3000):
        tokens = prompt(*(rng.choice((1, 1, 1, 2, 3)) for _ in range(rng.randint(1, 6))))
        space = rng.choice("ab")
        path = tree.match(space, tokens)
        hits += len(path)
        tree.hit(path, 1.0)
        parked = park(tree, tokens, space)
        assert parked // 4 == matched(tree, tokens, space)
        assert tree.used_bytes <= 120
        assert tree.used_bytes == 10 * count_nodes(tree)
        assert len(tree._leaves) <= 4 * 12 + 66
    assert hits > 3000


def count_nodes(tree: BlockTree[Part]) -> int:
    assert all(root.children for root in tree._roots.values()), "an empty namespace is forgotten"
    count = 0
    waiting = [child for root in tree._roots.values() for child in root.children.values()]
    while waiting:
        node = waiting.pop()
        count += 1
        waiting += node.children.values()
    return count


def test_pinned_blocks_stay_whatever_comes_and_take_half_at_most() -> None:
    tree, _ = make_tree(4)
    park(tree, prompt(1, 2))
    assert tree.pin("s", prompt(1, 2, 9)) == 8
    for other in range(10, 30):
        park(tree, prompt(other, other + 1), cost_ms=1000.0)
    assert len(tree.match("s", prompt(1, 2))) == 2
    assert tree.used_bytes <= 40
    park(tree, prompt(5))
    assert tree.pin("s", prompt(5)) == 0
    # Again is no more: what is pinned already needs no room.
    assert tree.pin("s", prompt(1, 2)) == 8
