"""Word lists behind the features: English, lower-cased. In other languages only length and marks speak."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


LOOKUP = _words("what who when where which name list define capital called known spell translate synonym")
REASONING = _words(
    "why how prove proof derive explain compare contrast analyze analyse evaluate design optimize optimise "
    "implement debug refactor algorithm complexity theorem integral derivative probability calculate compute "
    "solve estimate find determine show deduce infer justify critique tradeoff tradeoffs logic puzzle step "
    "steps"
)
SMALLTALK = _words("hi hello hey thanks thank ok okay yes bye please joke morning evening welcome sorry")
NEGATION = _words("not no never none neither nor except without incorrect false least cannot")
CONSTRAINTS = _words(
    "must should exactly only except unless if then therefore implies both either all some any"
)
STATEMENTS = _words("statement statements true false correct incorrect wrong right following scenario above")
ARITHMETIC = _words(
    "total each per more less than twice half double times every left remaining altogether sum difference "
    "average percent cost costs many much rate spent sells sold buys earn earns paid price fewer third "
    "quarter rest combined split share"
)
UNITS = _words(
    "day days week weeks hour hours minute minutes month months year years dozen mile miles foot feet pounds "
    "dollars cents inches gallons"
)
SEQUENCE = _words(
    "then after before next first second finally later when while until if however rest remaining"
)
NUMBER_WORDS = _words(
    "one two three four five six seven eight nine ten twelve twenty thirty fifty hundred thousand half third "
    "quarter twice double triple"
)
PRONOUNS = _words("i you he she we they my your his her our their me him us them")
FUNCTION = _words(
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an "
    "they which one you were all her she there would their we him been has when who will no more if out so "
    "up said what its about than into them can only other time new some could these two may first then do"
)

LISTS = (
    LOOKUP,
    REASONING,
    SMALLTALK,
    NEGATION,
    CONSTRAINTS,
    STATEMENTS,
    ARITHMETIC,
    UNITS,
    SEQUENCE,
    NUMBER_WORDS,
    PRONOUNS,
    FUNCTION,
)
MEMBERSHIP = {
    word: tuple(i for i, members in enumerate(LISTS) if word in members) for word in frozenset().union(*LISTS)
}
"""Which of LISTS each word is in, by index."""
