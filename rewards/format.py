"""The format that SPECS trains: one think block, then one answer block, and nothing else."""

import re

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def is_in_format(response: str) -> bool:
    """True for `<think>...</think> <answer>...</answer>`, both non-empty, and nothing else.

    MM-EUREKA's laxer pattern accepts text around the blocks. Ours does not, since that text is what
    the cold start is to unlearn. Each tag stands exactly once: a repeated block is no format.

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
