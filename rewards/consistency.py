r"""Does the reasoning of a response come to the answer that the response gives?

    agrees          the reasoning states a conclusion, and it is the answer
    disagrees       it states another one, or that the answer cannot be found
    unsure          it states none, or one that the rule cannot compare
    judge silent    a judge was to decide, and gave no verdict

With a judge, it decides (SPECS asks Gemini-2.5-flash). Without one, a rule does, ours: it looks for
the conclusion that the reasoning *states*, and compares it with the answer by the same equality as
the reward. The first of these that is there counts:

    boxed                  so \boxed{12}
    answer is              So the answer is 12.
    the option it picks    A. 10 / B. 9 / B. 9
    its last value         Therefore, AB = 2 * 4 = 8 cm. It is a long side.
    a count                There are three shapes: a, b and c.     where the question asks how many

Trap: a value in the reasoning is no conclusion because it comes last. "Since AB = 6, we can find
AD" announces a result and states none. Graded as if it were the response, it agrees with an answer
of 6, and "I see four things" has none (test_values_that_are_no_conclusion).
"""

import re

from rewards.boxes import boxes
from rewards.digits import WORD, words_to_digits
from rewards.expression import is_value
from rewards.extract import IN_PROSE, extract_answer, find_answer
from rewards.grading import compare
from rewards.judge import Judge
from rewards.judge_prompts import consistency_question
from rewards.number import read_number
from rewards.typesetting import plain
from rewards.views import CONCLUDES, plain_text, sentences_of

AGREES, DISAGREES, UNSURE, SILENT = "agrees", "disagrees", "unsure", "judge silent"
OUTCOMES = (AGREES, DISAGREES, UNSURE, SILENT)
READ = 20_000  # characters at the end of a reasoning

OPENING_RULES = {rule.name for rule in IN_PROSE if rule.where == "first_line"}  # no conclusions
STATED_RULES = {"answer is", "答案"}

ASKS_HOW_MANY = re.compile(r"\bhow many\b|\bnumber of\b|\bcount\b", re.IGNORECASE)
COUNT = re.compile(
    r"\b(?:there (?:is|are|were)|contains?|shows?|I (?:can )?see)\s+"
    rf"(?:(?:a total of|in total|only|exactly|about)\s+)*(\d+(?![\d.,]*\d)|(?:{WORD})\b)",
    re.IGNORECASE,
)
IS = re.compile(  # what a value may follow
    r"""(?<![<>!])=|≈|:|：|等于|是|为
        |\b(?:is|are|was|were|be|becomes?|equals?|equaling|equal\ to|gives?|get|makes?|leaves?
             |needs?|has|have|contains?|approximately|about|of)\b""",
    re.IGNORECASE | re.VERBOSE,
)
FILLER = re.compile(r"^(?:\s|also\b|only\b|exactly\b|then\b|therefore\b|just\b)+", re.I)
MARKS = re.compile(r"\\[()\[\]]|\$")  # of mathematics
INTENDS = re.compile(  # it says what could be done, not what comes out
    r"\b(?:can|could|need to|let's|let us|will|want to|have to|must|should)\b[^.=]*?"
    r"\b(?:find|calculate|compute|determine|use|solve|substitute|subtract|add|get|obtain)\b"
    r"|\bto find\b|\bto (?:calculate|determine|solve)\b",
    re.IGNORECASE,
)
TAKES_BACK = re.compile(r"^\W*(?:however|but|wait|yet|no)\b", re.IGNORECASE)
NOT = re.compile(r"\b(?:not|never|neither|nor)\b|n't\b|≠", re.IGNORECASE)
OPTION_LINE = re.compile(r"^\s*[A-Z][.)]\s*(\S.{0,60}?)\s*$", re.MULTILINE)


def check_consistency(example: dict, response: str, judge: Judge | None = None) -> str:
    """One of OUTCOMES for a response in the full format."""
    reasoning = response.split("<think>")[-1].split("</think>")[0][-READ:]
    answer = extract_answer(
        response, example["answer_type"], example["choices"], example["question"]
    )
    if answer is None:
        return UNSURE
    if judge is not None:
        verdict = judge.yes(consistency_question(example["question"], reasoning, answer))
        return {True: AGREES, False: DISAGREES, None: SILENT}[verdict]

    by_type = {"choice": check_choice, "text": check_words}
    return by_type.get(example["answer_type"], check_value)(example, reasoning, answer)


# --- Numbers and expressions ---------------------------------------------------------------------


def check_value(example: dict, reasoning: str, answer: str) -> str:
    """Compare the conclusion with the answer, both as values."""
    found = find_answer(reasoning, example["answer_type"], (), example["question"])
    if found.rule == "refusal":
        return DISAGREES

    conclusion = boxes(reasoning)[-1] if boxes(reasoning) else None
    if conclusion is None and found.rule in STATED_RULES and is_value(found.answer or ""):
        conclusion = found.answer
    if conclusion is None:
        conclusion = conclusion_in_prose(plain_text(reasoning), example["question"])
    if conclusion is None:
        return UNSURE

    answer = answer.split("≈")[-1]  # what a chain of values ends with
    # Either may be the rounded one, so that each is once in the place of the gold.
    verdicts = [
        compare(conclusion, answer, example, None)[0], compare(answer, conclusion, example, None)[0]
    ]  # fmt: skip
    if True in verdicts:
        return AGREES
    if None in verdicts:
        return UNSURE

    # Two numbers that differ disagree, and so do two expressions. A number and an expression may
    # differ only by rounding: 37.68 for 12 pi.
    numbers = [read_number(text, example["question"]) for text in (conclusion, answer)]
    are_expressions = numbers == [None, None] and is_value(conclusion) and is_value(answer)
    return DISAGREES if None not in numbers or are_expressions else UNSURE


def conclusion_in_prose(reasoning: str, question: str) -> str | None:
    """The value that the reasoning concludes with, or None."""
    if OPTION_LINE.search(reasoning.rstrip().split("\n")[-1]):
        return picked_option(reasoning)
    sentences = sentences_of(reasoning)
    value = value_at_end(sentences, question)
    if value is None and ASKS_HOW_MANY.search(question):
        value = stated_count(sentences)
    return value


def value_at_end(sentences: list[str], question: str) -> str | None:
    """The value that the last sentence ends with, or an earlier one with mere remarks after it."""
    for sentence in reversed(sentences):
        value = last_value(sentence, question)
        if value is not None:
            return value
        # Only a remark without numbers may follow the conclusion: "It is a long side."
        is_remark = not re.search(rf"\d|\b(?:{WORD})\b", sentence, re.IGNORECASE)
        if not is_remark or INTENDS.search(sentence) or TAKES_BACK.search(sentence):
            return None
    return None


def stated_count(sentences: list[str]) -> str | None:
    """N of "there are N things", if one N is stated, or one sentence says that it concludes.

    >>> stated_count(["There are three things: two dots and a line.", "The line is red."])
    'three'
    >>> stated_count(["There are 2 dots.", "There are 3 lines."]) is None
    True
    """
    stated, concluded = [], []
    for sentence in sentences:
        match = COUNT.search(sentence)
        if match is None or NOT.search(sentence[: match.start()]):
            continue
        stated.append(match[1].lower())
        if CONCLUDES.search(sentence[: match.start()]):
            concluded.append(match[1].lower())
    if concluded:
        return concluded[-1]
    return stated[0] if len({words_to_digits(n) for n in stated}) == 1 else None


def last_value(sentence: str, question: str) -> str | None:
    """The value that a sentence ends with, behind "is", "=" and the like, or None.

    >>> last_value("Therefore, AB = 2 * 4 = 8 cm.", ""), last_value("Angle 2 is also 35°.", "")
    ('8 cm', '35°')
    >>> last_value("With AB = 6, we can find AD.", "") is None
    True
    """
    if INTENDS.search(sentence):
        return None
    sentence = MARKS.sub(" ", sentence)
    joints = list(IS.finditer(sentence))
    for joint in reversed(joints[-3:]):
        before, value = sentence[: joint.start()], sentence[joint.end() :]
        value = FILLER.sub("", value).strip(" \n.。*")
        if NOT.search(before[-12:]) or NOT.match(value):
            return None
        if read_number(value, question) is not None:
            return value
        if is_value(value) and not re.search(r"[,;≈]", value):
            return value
    return None


def picked_option(reasoning: str) -> str | None:
    """The last line of a list of options if it repeats one of them, or is the only one.

    >>> picked_option("A. 10\\nB. 9\\nB. 9"), picked_option("A. 10\\nB. 9")
    ('9', None)
    """
    options = [match[1] for match in OPTION_LINE.finditer(reasoning)]
    lines = [match[0].strip() for match in OPTION_LINE.finditer(reasoning)]
    return options[-1] if len(lines) == 1 or lines[-1] in lines[:-1] else None


# --- Options and words ---------------------------------------------------------------------------


def check_choice(example: dict, reasoning: str, answer: str) -> str:
    """Compare the option that the reasoning names at its end with the one of the answer."""
    found = find_answer(reasoning, "choice", example["choices"], example["question"])
    if found.rule == "refusal":
        return DISAGREES
    if found.answer is None or found.rule in OPENING_RULES:
        return UNSURE
    equal, _ = compare(found.answer, answer, example, None)
    if equal is None:
        return UNSURE
    return AGREES if equal else DISAGREES


def check_words(example: dict, reasoning: str, answer: str) -> str:
    """Agrees if the reasoning ends with the words of the answer. Other words may mean the same."""
    found = find_answer(reasoning, "text", (), example["question"])
    if found.answer is not None and plain(found.answer) == plain(answer):
        return AGREES
    sentences = sentences_of(plain_text(reasoning))
    if not sentences or NOT.search(sentences[-1]):
        return UNSURE
    ending = re.search(rf"(?:^|\W){re.escape(plain(answer))}$", plain(sentences[-1]))
    return AGREES if ending else UNSURE
