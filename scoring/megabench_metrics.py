"""MEGA-Bench's metrics that need no more than rules: one function each, response and gold to 0..1.

Source: arXiv 2410.10563, its README of metrics and its code. Names are those of `metric_info`.
Whatever is not in `METRICS` is counted as unscored by its name: the authors' tool scores it
(`megabench.py` writes the file that it reads).

Departures: LaTeX is compared by math-verify, theirs by sympy's parser; a number is read as digits,
a fraction or a percentage, theirs as any LaTeX.
"""

import ast
import json
import re
import unicodedata
from collections.abc import Callable

from rewards.boxes import boxes
from rewards.expression import MATH_VERIFY
from scoring.mathvista import edit_distance

# --- Text ----------------------------------------------------------------------------------------


def exact(response, gold) -> float:
    """Equal as text; of "(B) dog" or "B. dog" only the letter, where the gold is one."""
    response, gold = str(response), str(gold)
    if len(gold) == 1 and gold.isalpha() and len(response) > 1:
        letter = re.match(r"\(?([A-Za-z])\)?(?:\s*\.|$|\s)", response)
        response = letter[1] if letter else response
    return float(response == gold)


def exact_any_case(response, gold) -> float:
    return exact(str(response).lower(), str(gold).lower())


def simple(response, gold) -> float:
    """Without spaces, hyphens and points, in any case."""
    return exact(*(re.sub(r"[ \-\n\t.]", "", str(text)).lower() for text in (response, gold)))


def near(response, gold) -> float:
    """1 - edit distance / longer length, 0 below 0.9; without articles and accents, in any case."""
    if not isinstance(response, str) or not isinstance(gold, str):
        return 0.0
    similarity = normalised_similarity(plain(response), plain(gold))
    return similarity if similarity >= 0.9 else 0.0


def plain(text: str) -> str:
    text = re.sub(r"\b(?:the|an?)\b\s*", "", text, flags=re.IGNORECASE)
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).lower()


def normalised_similarity(a: str, b: str) -> float:
    """By insertions, deletions and replacements; theirs also counts a swap as one."""
    longest = max(len(a), len(b))
    return 1 - edit_distance(a, b) / longest if longest else 1.0


# --- Numbers -------------------------------------------------------------------------------------


def number_of(text) -> float | None:
    """12, 1/2, 50%, $3; what stands behind "=" counts."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        return float(text)
    text = re.split(r"=|≈|\\approx", str(text))[-1]
    text = re.sub(r"\\[()\[\]]|[$¥,°\s]", "", text)
    match = re.fullmatch(r"(-?\d*\.?\d+(?:[eE][-+]?\d+)?)(?:/(\d+))?(%?)", text)
    if match is None or match[2] and not int(match[2]):
        return None
    return float(match[1]) / float(match[2] or 1) / (100 if match[3] else 1)


def single_number(response, gold) -> float:
    """Within 1 %; where one is no number, as simple text or as expressions."""
    found, wanted = number_of(response), number_of(gold)
    if found is not None and wanted is not None:
        return float(abs(found - wanted) <= 0.01 * abs(wanted))
    equal = simple(response, gold)
    return equal or float(MATH_VERIFY(gold=str(gold), answer=str(response)) is True)


def boxed_number(response, gold) -> float:
    return single_number(*((boxes(str(text)) or [text])[0] for text in (response, gold)))


def relative_difference(response, gold) -> float:
    """1 - |difference| / gold, at least 0."""
    found, wanted = number_of(response), number_of(gold)
    if found is None or not wanted:
        return 0.0
    return max(0.0, 1 - abs((found - wanted) / wanted))


def positive_integer(response, gold) -> float:
    """The same whole number above 0."""
    text = str(response).strip()
    return float(text.isdecimal() and int(text) > 0 and text == str(gold).strip())


# --- Lists, sets, dictionaries -------------------------------------------------------------------


def read_literal(value):
    """JSON or a Python literal in a text; the text itself if it is none. Nothing is run."""
    if not isinstance(value, str):
        return value
    for reader in (json.loads, ast.literal_eval):
        try:
            return reader(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return value


def frozen(value):
    """The same value, hashable."""
    if isinstance(value, dict):
        return frozenset((key, frozen(part)) for key, part in value.items())
    if isinstance(value, (list, tuple, set)):
        return tuple(frozen(part) for part in value)
    return value


def as_list(value) -> list:
    """A list, or a text that writes one: "[1, 2]", "a, b"."""
    value = read_literal(value)
    if isinstance(value, str):
        inner = value.strip().strip("[](){}")
        return [part.strip() for part in inner.split(",")] if inner else []
    if isinstance(value, (list, tuple, set)):
        return [frozen(part) for part in value]
    return [] if value is None else [frozen(value)]


def lowered(value) -> str:
    return json.dumps(value, default=str).lower() if not isinstance(value, str) else value.lower()


def set_equality(response, gold) -> float:
    return float(set(as_list(response)) == set(as_list(gold)))


def jaccard(response, gold) -> float:
    """Common elements / all elements."""
    found, wanted = set(as_list(response)), set(as_list(gold))
    return len(found & wanted) / len(found | wanted) if found | wanted else 1.0


def set_precision(response, gold) -> float:
    """Share of the given elements that are right."""
    found = set(as_list(response))
    return len(found & set(as_list(gold))) / len(found) if found else 0.0


def lines_as_set(response, gold) -> float:
    sets = [{line.strip() for line in str(text).split("\n") if line.strip()}
            for text in (response, gold)]
    return float(sets[0] == sets[1])


def sequence_equality(response, gold) -> float:
    return float(as_list(response) == as_list(gold))


def common_prefix(response, gold) -> float:
    """Length of the common start / length of the gold."""
    found, wanted = as_list(response), as_list(gold)
    length = 0
    for a, b in zip(found, wanted):
        if a != b:
            break
        length += 1
    return length / len(wanted) if wanted else float(not found)


def as_dict(value) -> dict | None:
    value = read_literal(value)
    return value if isinstance(value, dict) else None


def dict_equality(response, gold) -> float:
    found = as_dict(response)
    return float(found is not None and found == as_dict(gold))


def over_keys(metric: Callable, response, gold, union: bool) -> float:
    """Mean of a metric over the gold's keys (recall), or over those of both (Jaccard)."""
    found, wanted = as_dict(response), as_dict(gold) or {}
    if found is None:
        return 0.0
    keys = set(wanted) | set(found) if union else set(wanted)
    scores = [metric(found[key], wanted[key]) for key in keys if key in found and key in wanted]
    return sum(scores) / len(keys) if keys else 1.0


# --- LaTeX ---------------------------------------------------------------------------------------


def latex(response, gold) -> float:
    """Equal expressions, else simple text."""
    equal = MATH_VERIFY(gold=str(gold), answer=str(response)) is True
    return float(equal) or simple(response, gold)


def text_with_latex(response, gold) -> float:
    """The text between formulas as simple text, the formulas as one expression."""
    parts = [re.split(r"\$([^$]*)\$", str(text)) for text in (response, gold)]
    texts = ["".join(part[0::2]).replace(",", "") for part in parts]
    formulas = [" ".join(part[1::2]).replace(",", "") for part in parts]
    return float(bool(simple(*texts)) and bool(latex(*formulas)))


def any_case(metric: Callable) -> Callable:
    return lambda response, gold: metric(lowered(response), lowered(gold))


METRICS: dict[str, Callable[[object, object], float]] = {
    "exact_str_match": exact,
    "exact_str_match_case_insensitive": exact_any_case,
    "simple_str_match": simple,
    "near_str_match": near,
    "normalized_similarity_damerau_levenshtein": lambda r, g: normalised_similarity(str(r), str(g)),
    "general_single_numerical_match": single_number,
    "boxed_single_numerical_match": boxed_number,
    "number_rel_diff_ratio": relative_difference,
    "positive_int_match": positive_integer,
    "set_equality": set_equality,
    "set_equality_case_insensitive": any_case(set_equality),
    "jaccard_index": jaccard,
    "jaccard_index_case_insensitive": any_case(jaccard),
    "set_precision": set_precision,
    "str_set_equality_line_break": lines_as_set,
    "str_set_equality_comma": set_equality,
    "sequence_equality": sequence_equality,
    "sequence_equality_case_insensitive": any_case(sequence_equality),
    "longest_common_list_prefix_ratio": common_prefix,
    "dict_equality": dict_equality,
    "dict_exact_str_match_agg_recall": lambda r, g: over_keys(exact, r, g, union=False),
    "dict_set_equality_agg_jaccard": lambda r, g: over_keys(set_equality, r, g, union=True),
    "dict_jaccard_agg_jaccard": lambda r, g: over_keys(jaccard, r, g, union=True),
    "latex_expr_equality": latex,
    "text_with_latex_expr_equality": text_with_latex,
}
