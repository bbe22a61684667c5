"""The format that SPECS trains: one think block, then one answer block, and nothing else."""

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
