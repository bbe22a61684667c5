r"""The value of LaTeX expressions, in a process of its own: [gold, answer] in, true or false out.

Two values are equal if both are after rounding to 2 decimals, as in MathVision's evaluation. Its
parser has habits that its verdicts hang on:

    it reads as far as it understands: "\frac{4}{9}}.\end{align*" is 4/9
    a value in degrees, \circ, is refused
    letters have no value, but for e and pi

`rewards/math_worker.py` runs this file (`MathVerifier(script=...)`), and kills it where an
expression never ends.
"""

import json
import re
import sys
from functools import cache

WORD = re.compile(r"(?<![\\a-z])[a-z]{4,}")  # a sentence, no LaTeX command


def main() -> None:
    """Read [gold, answer] lines, write true or false."""
    value("1+1")  # imports what it needs
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        gold, answer = json.loads(line)
        wanted, found = value(gold), value(answer)
        print(json.dumps(wanted is not None and wanted == found), flush=True)


@cache
def value(text: str) -> float | None:
    """The value to 2 decimals, None if it has none."""
    from latex2sympy2_extended import latex2sympy  # here: only this process needs it
    from sympy import E, N, Symbol, pi

    text = readable_part(text)
    if "circ" in text or WORD.search(text):  # the parser takes seconds to find no value in a page
        return None
    try:
        expression = latex2sympy(text)
        if isinstance(expression, list):
            expression = expression[0]
        number = complex(N(expression.subs({Symbol("e"): E, Symbol("pi"): pi})))
    except Exception:  # the parser and sympy raise what they like on odd input
        return None
    return None if number.imag or number != number else round(number.real, 2)


def readable_part(text: str) -> str:
    r"""What stands before the first brace too many, and before a sentence that goes on.

    >>> readable_part(r"\frac{4}{9}}.\end{align*"), readable_part("5.so,even"), readable_part("{4}")
    ('\\frac{4}{9}', '5', '4')
    """
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth < 0:
            text = text[:i]
            break
    text = re.sub(r"(\d)\.[a-z].*", r"\1", text, flags=re.DOTALL)
    whole = re.fullmatch(r"\s*\{([^{}]*)\}\s*", text)
    return whole[1] if whole else text


if __name__ == "__main__":
    main()
