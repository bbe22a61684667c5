"""Attack cases by kind: what a policy may write, and whether it is paid for it.

Each table is `answer type and gold`, then responses that are right and responses that are not. The second
kind matters more: whatever is paid for is learned.
"""

import pytest

from rewards import grade

ANIMALS = ["cat", "dog", "a bird", "fish"]
VALUES = [r"$\frac{1}{2}$", r"$\frac{3}{4}$", r"$45^{\circ}$", r"$2\sqrt{3}$"]
LENGTHS = ["5 cm", "10 cm", "12 cm", "20 cm"]
YES_NO = ["Yes", "No"]
TREND = ["increase", "remain the same", "decrease", "double"]

IN_TAGS = [  # type, gold, choices, question, right answers, wrong answers
    ("number", "4", [], "", ["4", "4.0", "4.", "+4", "$4$", r"\(4\)", "**4**", " 4 ", "four", "Four", "x = 4", "x=4", "$x = 4$", "8/2",
                             r"\frac{8}{2}", r"\boxed{4}", r"The answer is $\boxed{4}$", "The answer is 4.", "Answer: 4", "2 + 2 = 4",
                             "4 cm", "4 degrees", "4°", "4 cm^2", r"4\text{ cm}", "4 m/s", "$4", r"\$4", "4 years", "004", "4e0",
                             "The final answer is 4", "The area is 4 cm.", "≈ 4", "approximately 4", r"\text{4}", "4 units"],
     ["4x", r"4\pi", "4π", "4i", "4!", "4 million", "4 thousand", "4 dozen", "4k", "40", "-4", "4 or 5", "4, 5", "3 to 4", "4 4", "1 2 3 4",
      "not 4", "5", "", "4 + 1", "4^2", "4²", r"\sqrt{4}", "4/5", "4:1", "4 = 5", "x^2 = 4", "x + 1 = 4", "2x = 4", "4n", "4e5", "4 hundred",
      "between 3 and 4", "4 and a half", "4 1/2", "4a", "4 squared", "14", "4 pi", "4 + 4i", "x = 4 or x = 5", "x=1 or x=4", "±4",
      r"\pm 4", "4, 4.5", r"4\sqrt{2}", "4 times 5", "4 over 5", "1/4", "4%5", "0.4", "four hundred", "four or five", "forty",
      "4?5", "not 4 but 5", "4 < x", "x > 4", "x < 4"]),
    ("number", "-3", [], "", ["-3", "−3", "- 3", "x = -3", "-3.0", "-6/2", r"-\frac{6}{2}"], ["3", "--3", "+3", "-3x", "3-", "|-3|"]),
    ("number", "1234", [], "", ["1234", "1,234", "1 234", "1\u2009234", "1{,}234", "1.234e3", r"1.234 \times 10^3", "1,234.0", "$1,234"],
     ["1,23,4", "12,34", "1.234", "123", "1,2,3,4", "1 2 3 4", "234", "1234,5678", "1,234,000"]),
    ("number", "0.5", [], "", ["0.5", ".5", "1/2", r"\frac{1}{2}", r"\dfrac12", "50%", r"50\%", "0.50", "2/4"], ["5", "50", "0.05", "1/20", "0.6", "2", "1:2"]),
    ("number", "50", [], "", ["50", "50%", "50 %", "fifty", "50 percent"], ["0.5", "5", "500", "fifteen", "50!", "0.5%"]),
    ("number", "3.14", [], "", ["3.14", "3.1416", "3.142"], ["3", "3.1", "3.15", "31.4", r"\pi", "22/7"]),
    ("number", "3", [], "", ["3", "three"], ["3.14", "3.4", "2.9", "thirteen", "thirty"]),
    ("number", "21", [], "", ["21", "twenty-one", "twenty one"], ["twenty", "one", "2 1", "twenty or one", "20 1"]),
    ("number", "105", [], "", ["one hundred and five", "105", "one hundred five"], ["one hundred", "5", "100 5"]),
    ("number", "4000000", [], "", ["4 million", "4000000", "four million", r"4 \times 10^{6}", "4,000,000"], ["4", "4 thousand", "4 billion"]),
    ("number", "12 cm^2", [], "", ["12", "12 cm^2", "12 cm²", "12 square centimeters", r"12\ \text{cm}^2", "12 sq cm"],
     ["12 cm", "12 m^2", "12 cm^3", "12 kg", "12 degrees"]),
    ("number", "12 cm", [], "", ["12", "12 cm", "12cm", "12 centimeters", r"12\,\mathrm{cm}"], ["12 m", "12 mm", "12 cm^2", "12 inches", "12 cm or 13 cm"]),
    ("number", "7", [], "How many apples are left?", ["7", "7 apples", "seven apples", "7 apples left"], ["7 million apples", "7 or 8 apples", "7 dozen apples", "7 bananas"]),
    ("number", "60", [], "How fast is it in km/h?", ["60 km/h", "60 kilometers per hour", "60"], ["60 or 70 km/h", "60/h km 7"]),
    ("choice", "B", ANIMALS, "", ["B", "(B)", "b", "B.", "B)", "[B]", "B:", "B. dog", "(B) dog", "dog", "Dog", "**B**", "$B$", r"\boxed{B}", r"\text{B}",
                                  r"\boxed{\text{(B)}}", "The answer is B", "The answer is (B).", "Answer: B", "option B", "Option (B)", "B, because it barks",
                                  "B (dog)", "dog (B)", "a dog", "the dog", "The correct option is B.", "choice B", "It must be B.", r"\mathbf{B}",
                                  "B - dog", "The answer is the dog.", '"B"', "B dog", "Bdog", "B,", "( B )"],
     ["A", "B or C", "A and B", "A, B", "A B C D", "B and C", "B. cat", "(B) cat", "cat (B)", "not B", "not dog", "B is wrong", "E", "neither B nor C", "",
      "cat or dog", "cat and dog", "B/C", "A/B", "(A) or (B)", "(A)(B)", "all of them", "none", "bat", "B is not right", "not (B)", "A. dog",
      "dog, cat", "B & C", "dog or a bird", "I do not know", "maybe", "ABCD", "B C", r"\boxed{A} or \boxed{B}", "options A and B", "it is not the dog", "BB"]),
    ("choice", "A", ANIMALS, "", ["A", "A.", "A. cat", "cat"], ["a bird", "A bird", "a dog", "An animal", "A or B", "not A", "a"][:6]),
    ("choice", "B", VALUES, "", [r"\frac{3}{4}", "0.75", "3/4", r"$\frac{3}{4}$", "75%", "B", r"(B) $\frac{3}{4}$", r"B. 0.75", r"\dfrac{6}{8}"],
     ["0.5", "3", "4", r"\frac{1}{2}", r"(B) \frac{1}{2}", "(B) 0.8", "0.8", r"\frac{3}{4} or \frac{1}{2}", r"3\pi/4", "0.7", "B. 7"]),
    ("choice", "C", VALUES, "", ["45", "45°", r"45^\circ", "45 degrees", "C", "(C) 45"], ["45 cm or 50", "4.5", "54", "(C) 54", "45 or 1/2"]),
    ("choice", "D", VALUES, "", [r"2\sqrt{3}", r"\sqrt{12}", "2√3", "D"], ["2", "3", r"\sqrt{3}", "3.46 or 2", r"3\sqrt{2}"]),
    ("choice", "B", LENGTHS, "", ["10 cm", "10cm", "10", "B) 10cm", "(B) 10", "B. 10 centimeters"], ["10 m", "B) 5cm", "B) 12", "1", "10 or 12", "10 x"]),
    ("choice", "No", YES_NO, "Is it the largest?", ["No", "no", "B", "No.", "No, it is not", "(B) No", "It is not the largest."],
     ["Yes", "A", "Yes or no", "yes, no", "unclear", "It cannot be determined.", "The question does not provide enough information.", "It is not clear.", "not yes", "I am not sure"]),
    ("choice", "C", TREND, "", ["decrease", "C (decrease)", "C. decrease", "it will decrease"][:3], ["increase", "C (increase)", "increase or decrease", "not decrease", "decreasing or not"]),
    ("choice", "fish", ANIMALS, "", ["D", "fish", "Fish."], ["C", "fishing", "cat", "not fish"]),
    ("math", r"4", [], "", ["4", r"\sqrt{16}", "2^2", "x = 4", r"8/2", r"4\text{ cm}"], [r"4\pi", "4x", "4i", "4!", "4 million", "x=1 or x=4", "1, 4", r"\{4, 5\}", "x^2 = 4", "(4, 4)"]),
    ("math", r"2\pi", [], "", [r"2\pi", r"2 \pi", "2π", r"\pi \cdot 2", "2pi", r"2\pi\text{ cm}"], ["2", "6.28", r"\pi", r"2\pi r", r"\pi^2", r"2+\pi", "2p"]),
    ("math", r"\frac{1}{2}", [], "", ["1/2", "0.5", r"\frac{2}{4}", r"\frac12", r"x = \frac{1}{2}"], ["2", "1", r"\frac{1}{3}", "1:2", r"-\frac{1}{2}", r"\frac{1}{2}x"]),
    ("math", "7 = 11a + c", [], "", ["7 = 11a + c", "11a + c = 7", "7=11a+c"], ["11a+c", "7", "7 = 11a", "11a", "7 = 11a - c"]),
    ("math", "a + 3z = 0", [], "", ["a+3z=0", "a = -3z"], ["0", "a+3z", "a + 3z = 1", "3z"]),
    ("math", "y = 2x + 3", [], "", ["y = 2x+3", "2x+3", "y=3+2x"], ["3", "2x", "y", "y = 2x", "x = 2y + 3"]),
    ("math", "x^2 + 1", [], "", ["1 + x^2", "x^2+1"], ["x^2", "1", "x^2 - 1", "2x + 1", "(x+1)^2"]),
    ("math", r"\{1, 2\}", [], "", [r"\{2, 1\}", "1, 2", "1 and 2", "x = 1 or x = 2", r"\boxed{1}, \boxed{2}", "1 or 2"], ["1", "2", r"\{1, 2, 3\}", "1, 3", "12", "1 < x < 2", "3"]),
    ("math", "(1, 2)", [], "", ["(1,2)", "(1, 2)", r"\left(1, 2\right)"], ["(2, 1)", "1", "2", "(1, 2, 3)", "(1, 3)", "12", r"\frac{1}{2}", "1.2"]),
    ("math", "[1, 2)", [], "", ["[1,2)", "[1, 2)"], ["(1, 2)", "[1, 2]", "(1, 2]", "1", "[1, 3)"]),
    ("math", "3:4", [], "", ["3:4", "3 : 4"], ["4:3", "3", "4", "7", "34", "3:5"]),
    ("math", r"\sqrt{2}", [], "", [r"\sqrt{2}", "√2", r"\frac{2}{\sqrt{2}}", "2^{1/2}"], ["1.41", "2", r"\sqrt{3}", r"2\sqrt{2}", r"-\sqrt{2}", r"\pm\sqrt{2}"]),
    ("math", r"10\sqrt{3}\text{ cm}", [], "", [r"10\sqrt{3}", r"10\sqrt{3} cm", r"10\sqrt{3}\,\text{cm}"], [r"10\sqrt{3} m", "10", r"\sqrt{3}", r"10\sqrt{2}"]),
    ("math", "x < 3", [], "", ["x < 3", "x<3"], ["x > 3", "3", "x = 3", "x < 4", r"x \le 3"]),
    ("math", "no solution", [], "", ["no solution", "No solution."], ["solution", "0", "a solution", "no"]),
    ("text", "a red cube", [], "", ["a red cube", "A  red cube.", "The answer is a red cube", r"\boxed{a red cube}"], ["red", "a cube", "a red cube and a blue one", "not a red cube", "", "cube red a"]),
]

IN_PROSE = [  # type, gold, choices, question, right responses, wrong responses
    ("number", "12", [], "", ["The answer is 12.", "Answer: 12", "**Answer: 12**", "so we get 12, which is right", "Therefore there are 12. I hope this helps!", r"Thus \boxed{12}",
                              "first 4, then 12", "12", "twelve", "There are 12 balls of size 6.", "So the total is 3 + 9 = 12.", "Final answer: 12 cm", "答案是12。", "答案：12",
                              "I count 12, so yes", "So he needs 12 apples.\n\nLet me know if you have any questions!", "The **answer** is **12**.",
                              "The answer is:\n\n12", "The answer is \\(12\\).", "So the area is $12$ cm^2.", "Answer:\n\nAnswer: 12", "x = 12"],
     ["The answer is 4 or 12.", "The answer is not 12.", "The answer is 12 or 13.", "I think of 12 and 13", "The answer is 12x.", r"The answer is 12\pi.", "The answer is 12 million.",
      "The answer is 12!", "Not 12.", r"\boxed{12} or \boxed{13}", r"\boxed{12}, \boxed{13}", r"\boxed{}  12", "The answer is 11. The number 12 was wrong, so the answer is 13.", "Without more information I cannot determine whether it is 12.",
      "It lies between 11 and 12.", "12 or 13", "Answer: 12 to 14", "Answer: 1 2", "The answer is", "the answer is unknown, 12 would be a guess", "12/13", "The answer is 12/13.", "", "no idea"]),
    ("number", "5", [], "", ["the answer is 5 .", "that is 5 . the answer is 5 .", "that is 5 . answer : 5", "[ that is 5 . ] ( 5 )", "2 + 3 = 5 .", "<think> that is 5 . </think> 5 </answer>", "that is 5 ."],
     ["the answer is . 5", "the answer is 2 5 .", "answer : 3", "that is 5 . the answer is red .", "<answer> </answer> 5", "that is 5 . <answer> 4 </answer>", "<answer> 2 5 </answer>"]),
    ("choice", "B", ANIMALS, "", ["The answer is B.", "Answer: B", "**Answer: B**", "**(B)**, dog", "B", "(B)", "B. dog", "must be B.", "The correct option is B.", "So it must be B.", "Therefore, option B is right.",
                                  "Hence (B).", "The correct answer is (B) dog.", "答案是B。", "所以答案是B", "正确选项是（B）。", "选项为B。", "So the animal is the dog.", "It is the dog.", "dog", r"\boxed{B}", r"\[\text{Answer: B}\]",
                                  "Answer:\n\nAnswer: B", "The best choice is B.", "A is a cat.\n\nAnswer: B", "Option A is wrong. The answer is B.", "The answer is B, not C.", "The correct answer is:\n\n**B. dog**",
                                  "I choose B.", "The final answer is $\\boxed{B}$.", "Let us see.\nThe answer is (B)", "Therefore the answer is **dog**."],
     ["The answer is A or B.", "The answer is not B.", "The answer is A.", "Option A or option B.", "It is not the dog.", "The answer is B or C", "A, B, C, D", "(A) cat (B) dog (C) a bird (D) fish", "It may be the cat or the dog.",
      "Both A and B.", r"\boxed{A} and \boxed{B}", "The answer is B. cat", "I like B", "B or not B", "The answer is neither A nor B.", "Answer: A, B", "So both cat and dog fit.", "Answer: none of these", "The answer is E.",
      "The answer is dog or cat.", "I cannot determine the answer; B would be a guess.", "Answer: not listed", "", "Without the image I cannot answer, maybe B."]),
    ("choice", "C", TREND, "", ["C (decrease)", "So it will decrease.", "The answer is C (decrease).", "The population would decrease."], ["It would increase or decrease.", "So it will not decrease.", "It would increase."]),
    ("choice", "B", VALUES, "", [r"Thus \boxed{\frac{3}{4}}.", r"So the ratio is $\frac{3}{4}$.", "The answer is 0.75.", r"The answer is \boxed{(B) \frac{3}{4}}"], [r"Thus \boxed{\frac{1}{3}}, not \frac{3}{4}.", r"The answer is (B) \frac{1}{3}.", "The answer is 0.7.", r"\boxed{\frac{3}{4}} or \boxed{\frac{1}{2}}"]),
    ("choice", "Yes", YES_NO, "Is it the largest?", ["Yes, it is the largest.", "Yes.", "The answer is yes."], ["No, it is not.", "It is not the largest.", "Yes or no.", "The text does not provide enough information."]),
    ("math", r"\frac{3}{4}", [], "", [r"The answer is $\frac{3}{4}$.", r"so \boxed{\frac{3}{4}}", "Answer: 3/4", "Therefore x = 0.75.", "0.75"], [r"\boxed{3} and \boxed{4}", "The answer is 3 and 4.", "The answer is 3:4.", "It is not 3/4.", "3 out of 4", "three quarters of 7"]),
    ("math", r"\{1, 2\}", [], "", [r"The solutions are \boxed{1} and \boxed{2}.", r"\boxed{1, 2}", r"The answer is $\{1, 2\}$."], [r"\boxed{1}", r"First \boxed{1}. Then \boxed{3}.", "The answer is 1.", r"\boxed{1} and \boxed{3}"]),
]


def cases(table: list, wrap: str):
    for answer_type, gold, choices, question, right, wrong in table:
        example = {"id": "", "answer": gold, "answer_type": answer_type, "choices": choices, "question": question}
        for answers, score in ((right, 1.0), (wrong, 0.0)):
            for answer in answers:
                yield pytest.param(example, wrap.replace("{}", answer) if wrap else answer, score,
                                   id=f"{answer_type} {gold}: {answer}")


@pytest.mark.parametrize("example, response, score", cases(IN_TAGS, "<think> so </think> <answer> {} </answer>"))
def test_answers_in_tags(example, response, score):
    """The answer inside the tags decides, and the reason says how."""
    verdict = grade(example, response)
    assert verdict.score == score, verdict
    assert verdict.reason


@pytest.mark.parametrize("example, response, score", cases(IN_PROSE, ""))
def test_answers_in_prose(example, response, score):
    """A response without the format still earns accuracy if it says its answer."""
    verdict = grade(example, response)
    assert verdict.score == score, verdict
    assert verdict.reason
