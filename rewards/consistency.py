r"""Does the reasoning of a response lead to the answer that the response gives?

    agrees          the reasoning states a conclusion, and the conclusion equals the answer
    disagrees       the reasoning states another conclusion, or says that it finds no answer
    unsure          no conclusion is stated, no answer is given, or the rule cannot compare the two
    judge silent    a judge was to decide, and gave no verdict

With a judge, the judge decides (SPECS asks Gemini-2.5-flash). Without a judge, a rule decides,
ours: it looks for the conclusion that the reasoning *states*, and compares it with the answer by
the same equality as the reward.

For numbers and expressions, the first of these sources that finds a value gives the conclusion:

    1. boxed                  so \boxed{12}
    2. answer is              So the answer is 12.
    3. the option it picks    a last line "B. 9", if it is the only such line, or repeats a line of
                              the list above it: "A. 10", "B. 9", "B. 9"
    4. its last value         Therefore, AB = 2 * 4 = 8 cm. It is a long side.
    5. a count                There are three shapes. (where the question asks how many)

A question whose answer is a number may still list options, and the reasoning repeat them. If it
ends in such a list, and picks none of it, it has no conclusion: the search stops at source 3. In
sources 4 and 5, a count without "therefore" or the like, as in "There are 3 rows of 4 dots", is not
sure: it may agree with the answer, but not disagree, since the conclusion, 12, may still come.

For options, the conclusion is what the extraction rules find in the reasoning, unless they find it
in its first line; an option named there was named before any reasoning, so the outcome is unsure.
For texts, the reasoning agrees if the extraction rules find the answer in it, or if it ends with
the answer's words; it never disagrees, since other words may mean the same. For bounding boxes the
rule compares nothing: without a judge the outcome is unsure.

Trap: a value is not a conclusion because it comes last. If the reasoning were graded like a
response, "Since AB = 6, we can find AD" would count as concluding 6, and "I see four things" as
concluding nothing. Both are wrong (test_values_that_are_no_conclusion).
"""

import re
from dataclasses import dataclass

from rewards.boxes import boxes as boxed_values
from rewards.digits import WORD, words_to_digits
from rewards.expression import is_value
from rewards.extract import Found, extract_answer, find_answer
from rewards.grading import compare
from rewards.judge import Judge
from rewards.judge_prompts import consistency_question
from rewards.number import read_number
from rewards.rules import IN_PROSE
from rewards.typesetting import plain
from rewards.views import CONCLUDES, HAS_NUMBER, plain_text, sentences_of

AGREES, DISAGREES, UNSURE, SILENT = "agrees", "disagrees", "unsure", "judge silent"
OUTCOMES = (AGREES, DISAGREES, UNSURE, SILENT)

LONGEST_REASONING = 20_000  # characters, from the end: the conclusion stands there

STATED_RULES = {rule.name for rule in IN_PROSE if rule.states_conclusion}
OPENING_RULES = {rule.name for rule in IN_PROSE if rule.view == "first_line"}  # before reasoning


@dataclass(frozen=True)
class Conclusion:
    value: str
    is_sure: bool = True  # False: it may support an answer, but not contradict one


def check_consistency(example: dict, response: str, judge: Judge | None = None) -> str:
    """One of OUTCOMES for a response in the full format."""
    reasoning = reasoning_of(response)
    answer = extract_answer(
        response, example["answer_type"], example["choices"], example["question"]
    )
    if answer is None:
        return UNSURE
    if judge is not None:
        verdict = judge.yes(consistency_question(example["question"], reasoning, answer))
        return {True: AGREES, False: DISAGREES, None: SILENT}[verdict]

    if example["answer_type"] == "boxes":  # bounding boxes, not \boxed
        return UNSURE
    if example["answer_type"] == "choice":
        return check_choice(example, reasoning, answer)
    if example["answer_type"] == "text":
        return check_text(example, reasoning, answer)
    return check_value(example, reasoning, answer)


def reasoning_of(response: str) -> str:
    """What the last think block holds, or its end."""
    block = response.split("<think>")[-1].split("</think>")[0]
    return block[-LONGEST_REASONING:]


# --- Numbers and expressions ---------------------------------------------------------------------


def check_value(example: dict, reasoning: str, answer: str) -> str:
    """Compare the stated conclusion with the answer, both as values."""
    question = example["question"]
    found = find_answer(reasoning, example["answer_type"], (), question)
    if found.rule == "refusal":
        return DISAGREES

    conclusion = stated_conclusion(reasoning, found, question)
    if conclusion is None:
        return UNSURE

    answer = answer.split("≈")[-1]  # of "√2 ≈ 1.41" keep 1.41
    equal = equal_either_way(conclusion.value, answer, example)
    if equal is None:
        return UNSURE
    if equal:
        return AGREES
    contradicts = conclusion.is_sure and same_kind(conclusion.value, answer, question)
    return DISAGREES if contradicts else UNSURE


def equal_either_way(conclusion: str, answer: str, example: dict) -> bool | None:
    """True if either order says equal, False if both say unequal, otherwise None.

    `compare` is asymmetric: the gold may be the rounded value, so both orders are tried.
    """
    forward, _ = compare(conclusion, answer, example, judge=None)
    backward, _ = compare(answer, conclusion, example, judge=None)
    if forward or backward:
        return True
    if forward is None or backward is None:
        return None
    return False


def same_kind(conclusion: str, answer: str, question: str) -> bool:
    """Are both numbers, or both expressions? Then two values that are not equal disagree.

    A number and an expression may differ only by rounding: 37.68 for 12 pi.
    """
    conclusion_is_number = read_number(conclusion, question) is not None
    answer_is_number = read_number(answer, question) is not None
    if conclusion_is_number or answer_is_number:
        return conclusion_is_number and answer_is_number
    return is_value(conclusion) and is_value(answer)


# --- The stated conclusion -----------------------------------------------------------------------


def stated_conclusion(reasoning: str, found: Found, question: str) -> Conclusion | None:
    """What the reasoning concludes with, or None. The five sources stand at the top of the file.

    found    the answer that the extraction rules find in the reasoning
    """
    # 1. "so \boxed{12}"
    boxed = boxed_values(reasoning)
    if boxed:
        return Conclusion(boxed[-1])
    # 2. "So the answer is 12."
    if found.rule in STATED_RULES and is_value(found.answer or ""):
        return Conclusion(found.answer)
    return conclusion_in_prose(plain_text(reasoning), question)


def conclusion_in_prose(reasoning: str, question: str) -> Conclusion | None:
    """What the reasoning concludes with, without a box and without "the answer is"."""
    # 3. "B. 9" in the last line: an option is picked there, or nothing is concluded.
    last_line = reasoning.rstrip().split("\n")[-1]
    if OPTION_LINE.search(last_line):
        picked = picked_option(reasoning)
        return Conclusion(picked) if picked is not None else None

    # 4. "Therefore, AB = 2 * 4 = 8 cm."
    sentences = sentences_of(reasoning)
    concluded = value_at_end(sentences, question)
    if concluded is not None:
        return concluded
    # 5. "There are three shapes: a, b and c."
    return stated_count(sentences) if ASKS_HOW_MANY.search(question) else None


def value_at_end(sentences: list[str], question: str) -> Conclusion | None:
    """The value that the last sentence ends with, or an earlier one with mere remarks after it.

    >>> value_at_end(["So there are 12 dots."], "How many dots?")
    Conclusion(value='12 dots', is_sure=True)
    >>> value_at_end(["There are 3 rows of 4 dots."], "How many dots?")
    Conclusion(value='4 dots', is_sure=False)
    """
    for sentence in reversed(sentences):
        value = last_value(sentence, question)
        if value is not None:
            is_mere_count = STATES_COUNT.search(sentence) and not CONCLUDES.search(sentence)
            return Conclusion(value, is_sure=not is_mere_count)
        # Only a remark without numbers may follow the conclusion: "It is a long side."
        is_remark = not HAS_NUMBER.search(sentence)
        if not is_remark or INTENTION.search(sentence) or CORRECTION.search(sentence):
            return None
    return None


def stated_count(sentences: list[str]) -> Conclusion | None:
    """The N of "there are N things": the last one with "therefore" or the like.

    Without such, N if all sentences that count say the same. Then it is not sure: it may count what
    the question does not ask for.

    >>> stated_count(["There are three things: two dots and a line.", "The line is red."])
    Conclusion(value='three', is_sure=False)
    >>> stated_count(["There is one dot, so there are 3 things."])
    Conclusion(value='3', is_sure=True)
    >>> stated_count(["There are 2 dots.", "There are 3 lines."]) is None
    True
    """
    stated, concluded = [], []
    for sentence in sentences:
        for match in STATES_COUNT.finditer(sentence):
            before = sentence[: match.start()]
            if NEGATING_WORD.search(before):
                continue
            count = match[1].lower()
            stated.append(count)
            if CONCLUDES.search(before):
                concluded.append(count)

    if concluded:
        return Conclusion(concluded[-1])
    counts = {words_to_digits(n) for n in stated}
    return Conclusion(stated[0], is_sure=False) if len(counts) == 1 else None


def last_value(sentence: str, question: str) -> str | None:
    """The value that a sentence ends with, behind a link such as "is" or "="; or None.

    Links are tried from the last one back. In "So the line is 2x + 4 = y" the last is "=", and the
    "y" behind it is no value. The one before is "is", and "2x + 4 = y" is a value.

    >>> last_value("Therefore, AB = 2 * 4 = 8 cm.", ""), last_value("Angle 2 is also 35°.", "")
    ('8 cm', '35°')
    >>> last_value("So the line is 2x + 4 = y.", ""), last_value("So it is .5.", "")
    ('2x + 4 = y', '.5')
    >>> last_value("So AB is equal to 8 cm.", "")
    '8 cm'
    >>> last_value("With AB = 6, we can find AD.", "") is None
    True
    """
    if INTENTION.search(sentence):
        return None
    sentence = MATH_MARKS.sub(" ", sentence)
    links = list(LINK.finditer(sentence))
    # The last link behind which nothing but a value stands; a "not" beside a link ends the search.
    for link in reversed(links[-MAX_LINKS:]):
        before, value = sentence[: link.start()], sentence[link.end() :]
        value = FILLER.sub("", value).lstrip(" \n。*").rstrip(" \n.。*")  # the point of ".5" stays
        if NEGATING_WORD.search(before[-NEGATION_REACH:]) or NEGATING_WORD.match(value):
            return None
        if read_number(value, question) is not None:
            return value
        if is_value(value) and not re.search(r"[,;≈]", value):
            return value
    return None


def picked_option(reasoning: str) -> str | None:
    """The text of the option that a list of options ends with, if the option is picked; or None.

    It is picked if its line repeats an earlier line, or is the only line of the list.

    >>> picked_option("A. 10\\nB. 9\\nB. 9"), picked_option("A. 10\\nB. 9")
    ('9', None)
    """
    matches = list(OPTION_LINE.finditer(reasoning))
    lines = [match[0].strip() for match in matches]
    is_picked = len(lines) == 1 or lines[-1] in lines[:-1]
    return matches[-1][1] if is_picked else None


# --- Options and words ---------------------------------------------------------------------------


def check_choice(example: dict, reasoning: str, answer: str) -> str:
    """Compare the option that the reasoning names at its end with the option of the answer."""
    found = find_answer(reasoning, "choice", example["choices"], example["question"])
    if found.rule == "refusal":
        return DISAGREES
    if found.answer is None or found.rule in OPENING_RULES:
        return UNSURE

    equal, _ = compare(found.answer, answer, example, judge=None)
    if equal is None:
        return UNSURE
    return AGREES if equal else DISAGREES


def check_text(example: dict, reasoning: str, answer: str) -> str:
    """Agrees if the reasoning states the answer, or ends with its words, else unsure.

    A last sentence with a "not" does not end with them: "It is not a dog." Never `disagrees`: other
    words may mean the same.
    """
    found = find_answer(reasoning, "text", (), example["question"])
    if found.answer is not None and plain(found.answer) == plain(answer):
        return AGREES

    sentences = sentences_of(plain_text(reasoning))
    if not sentences or NEGATING_WORD.search(sentences[-1]):
        return UNSURE
    ends_with_answer = re.search(rf"(?:^|\W){re.escape(plain(answer))}$", plain(sentences[-1]))
    return AGREES if ends_with_answer else UNSURE


# --- Patterns ------------------------------------------------------------------------------------

ASKS_HOW_MANY = re.compile(r"\bhow many\b|\bnumber of\b|\bcount\b", re.IGNORECASE)
STATES_COUNT = re.compile(  # "there are 3", "I can see exactly three"
    r"\b(?:there (?:is|are|were)|contains?|shows?|I (?:can )?see)\s+"
    rf"(?:(?:a total of|in total|only|exactly)\s+)*(\d+(?![\d.,]*\d)|(?:{WORD})\b)",
    re.IGNORECASE,
)
LINK = re.compile(  # a link: the word or sign that a value may follow, "is" of "AB is 8"
    r"""(?<![<>!])=|≈|:|：|等于|是|为
        |\b(?:is|are|was|were|be|becomes?|equals?(?:\ to)?|equaling|gives?|get|makes?|leaves?
             |needs?|has|have|contains?|approximately|about|of)\b""",
    re.IGNORECASE | re.VERBOSE,
)
# Links of a sentence that are tried, from the last one back. Behind an earlier one stands half a
# sentence, which is not a value.
MAX_LINKS = 3
FILLER = re.compile(  # words between the link and the value: "is also 35"
    r"^(?:\s|also\b|only\b|exactly\b|then\b|therefore\b|just\b)+", re.IGNORECASE
)
MATH_MARKS = re.compile(r"\\[()\[\]]|\$")  # \( \) \[ \] $
INTENTION = re.compile(  # says what could be done, not what comes out: "we can find AD"
    r"\b(?:can|could|need to|let's|let us|will|want to|have to|must|should)\b[^.=]{0,200}?"
    r"\b(?:find|calculate|compute|determine|use|solve|substitute|subtract|add|get|obtain)\b"
    r"|\bto find\b|\bto (?:calculate|determine|solve)\b",
    re.IGNORECASE,
)
CORRECTION = re.compile(r"^\W*(?:however|but|wait|yet|no)\b", re.IGNORECASE)  # "Wait, ..."
NEGATING_WORD = re.compile(r"\b(?:not|never|neither|nor)\b|n't\b|≠", re.IGNORECASE)
# Characters before a link in which a "not" denies its value, as in "AB does not equal 8". Farther
# off it denies something else: "It is not a square, so AB = 8".
NEGATION_REACH = 12
OPTION_LINE = re.compile(r"^\s*[A-Z][.)]\s*(\S.{0,60}?)\s*$", re.MULTILINE)  # "B. 9"
