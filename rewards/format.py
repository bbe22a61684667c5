"""The format that SPECS trains: one think block, then one answer block, and nothing else.

    is_in_format                    is a response in it?
    remove_tags, answer_in_words    a response taken out of it, for `build_prefs.py`
"""

import re

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def is_in_format(response: str) -> bool:
    """True for `<think>...</think> <answer>...</answer>`, both non-empty, and nothing else.

    MM-EUREKA's laxer pattern accepts text around the blocks. Ours does not, since the cold start
    should remove that text. Each tag must occur exactly once: repeated blocks are rejected.

    Trap: without DOTALL, a line break inside a block would cost the reward (test_format_table).
    """
    if any(response.count(tag) != 1 for tag in TAGS):
        return False
    pattern = r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*"
    match = re.fullmatch(pattern, response, re.DOTALL)
    if match is None:
        return False
    thought, answer = match.groups()
    return bool(thought.strip()) and bool(answer.strip())


def remove_tags(text: str, *tags: str) -> str:
    """The text without these tags and the white space that belonged to them, the rest as it is.

    >>> remove_tags("<think> a </think>\\n  <answer> 2 </answer>", "<answer>", "</answer>")
    '<think> a </think>\\n2'

    Blanks around a tag belong to it; between two words one is left. A line of nothing but tags is
    removed with its line break.

    Trap: collapsing all runs of blanks would take the indentation of lists and code away. Chosen
    keeps it, so white space would be a cue beside the format (test_corruptions_keep_white_space).
    """
    # Tags in a row, with the blanks before, between and behind. `(?<![ \t])`: a match begins at the
    # first of several blanks only. To try each would be quadratic in their number.
    row = rf"(?<![ \t])(?:[ \t]*(?:{'|'.join(tags)}))+[ \t]*"
    # 1. A line of nothing but tags goes with its line break.
    text = re.sub(rf"^{row}(?:\n|\Z)", "", text.strip(), flags=re.MULTILINE)
    # 2. At the start or the end of a line nothing is left in their place.
    text = re.sub(rf"^{row}|{row}$", "", text, flags=re.MULTILINE)
    # 3. Between two words one blank is left.
    return re.sub(row, " ", text).strip("\n")


def answer_in_words(text: str) -> str:
    """The word "Answer:" in place of the answer's tags, a blank where they touched a word."""
    text = re.sub(r"(?<=\S)<answer>", " <answer>", text)
    text = re.sub(r"<answer>(?=\S)", "<answer> ", text)
    return remove_tags(text.replace("<answer>", "Answer:"), "</answer>")
