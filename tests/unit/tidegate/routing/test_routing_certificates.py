"""The file of certificates: what is read of it, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tidegate.routing.certificates import Basis, Certificate, Certified, parse

GOOD: dict[str, Any] = {"threshold": 0.4, "worse_share": 0.02}


def test_certificates_with_what_they_rest_on() -> None:
    variants = {"d1": GOOD, "d2": {"threshold": None}}
    text = json.dumps({"version": 3, "complexity": "c", "best": "d9", "variants": variants})
    assert parse(text) == Certified({"d1": Certificate(0.4, 0.02)}, Basis("c", "d9"))
    assert parse(json.dumps({"variants": variants})).basis is None


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[1]",
        "3",
        "[" * 200_000,
        '{"version": 3}',
        '{"variants": [1]}',
        '{"variants": {"d1": 0.4}}',
        '{"variants": {"d1": {}}}',
        *(json.dumps({"variants": {"d1": GOOD | {"threshold": odd}}}) for odd in (7, -1, "0.4", True, [])),
        *(json.dumps({"variants": {"d1": GOOD | {"worse_share": odd}}}) for odd in (None, 0, 1, 1.5, "x")),
        '{"variants": {"d1": {"threshold": NaN, "worse_share": 0.02}}}',
        '{"variants": {}, "complexity": "c"}',
        '{"variants": {}, "complexity": "c", "best": 1}',
        '{"variants": {}, "complexity": "", "best": "d"}',
    ],
)
def test_what_is_no_list_of_certificates_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)
