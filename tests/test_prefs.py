"""Pairs: supplement, consistency, the five corruptions, and the data set that others can read."""

import json
import random
import re
from collections import Counter
from types import SimpleNamespace

import datasets
import pytest

import build_prefs
from build_prefs import (
    CORRUPTIONS,
    Config,
    choose,
    corrupt,
    drop,
    is_consistent,
    reject,
    supplement,
)
from conftest import make_example
from rewards import grade, is_in_format
from rewards.format import TAGS
from sources.pairs import TABLE_PATH, pair_record, write_table

GOOD = "<think> red things : red circle , red square . that is 2 . </think> <answer> 2 </answer>"
EXAMPLE = make_example(answer="2")

# --- Rejected ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, expected",
    [
        (
            "no tags",
            "red things : red circle , red square . that is 2 . 2",
        ),
        (
            "no answer tags",
            "<think> red things : red circle , red square . that is 2 . </think> 2",
        ),
        (
            "no think tags",
            "red things : red circle , red square . that is 2 . <answer> 2 </answer>",
        ),
        (
            "think around all",
            "<think> red things : red circle , red square . that is 2 . 2 </think>",
        ),
        (
            "answer in words",
            "<think> red things : red circle , red square . that is 2 . </think> Answer: 2",
        ),
    ],
)
def test_the_five_corruptions(name, expected):
    """Each loses the format and nothing else: the words and the answer stay."""
    assert CORRUPTIONS[name](GOOD) == expected
    assert not is_in_format(expected)


LISTED = """<think>
  - a  red circle
  - a  red square

```
for thing in things:
    count += 1
```
</think>

<answer>
2
</answer>"""

LIST = LISTED.removeprefix("<think>\n").split("\n</think>")[0]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("no tags", f"{LIST}\n\n2"),
        ("no answer tags", f"<think>\n{LIST}\n</think>\n\n2"),
        ("no think tags", f"{LIST}\n\n<answer>\n2\n</answer>"),
        ("think around all", f"<think>\n{LIST}\n\n2 </think>"),
        ("answer in words", f"<think>\n{LIST}\n</think>\n\nAnswer:\n2"),
    ],
)
def test_corruptions_keep_white_space(name, expected):
    """An indented list and a code block stay as they are, blank for blank, its first line too."""
    assert is_in_format(LISTED)
    assert CORRUPTIONS[name](LISTED) == expected


def collapse(text, *tags):
    """The classic mistake: it does not ask which white space belonged to the tags."""
    for tag in tags:
        text = text.replace(tag, "")
    return re.sub(r"[ \t]+", " ", text).strip()


def test_dropped_tags_leave_one_blank_between_words():
    """With single blanks around the tags, collapsing all blanks comes to the same.

    It damages a list; and where tags touch their words, it makes other words of them.
    """
    for tags in (TAGS, TAGS[:2], TAGS[2:], TAGS[1:]):
        assert drop(GOOD, *tags) == collapse(GOOD, *tags)
        assert drop(f" {GOOD}\n", *tags) == collapse(GOOD, *tags)
        assert drop(LISTED, *tags) != collapse(LISTED, *tags)

    tight = GOOD.replace(" <", "<").replace("> ", ">")
    assert "that is 2 .</think><answer>2" in tight
    assert drop(tight, *TAGS) == drop(GOOD, *TAGS)
    assert collapse(tight, *TAGS).endswith("that is 2 .2")


def test_corruptions_are_drawn_evenly_and_only_from_the_format():
    """A fifth each; a response that never had the format is left as it is."""
    rng = random.Random(0)
    drawn = Counter(corrupt(GOOD, rng)[1] for _ in range(5000))

    assert set(drawn) == set(CORRUPTIONS)
    assert all(900 < count < 1100 for count in drawn.values())
    assert corrupt("the answer is 2 .", rng) == ("the answer is 2 .", "as sampled")


# --- Chosen --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response, expected",
    [
        (GOOD, GOOD),
        (GOOD.replace(" </think>", ""), GOOD),
        (GOOD.replace(" </answer>", ""), GOOD),
        (GOOD.replace("<think> ", ""), None),
        (GOOD.replace("<answer> ", ""), None),
        ("the answer is 2 .", None),
    ],
)
def test_supplement_adds_closing_tags_only(response, expected):
    """A missing closing tag is put where it belongs; what needs more is dropped."""
    assert supplement(response) == expected


@pytest.mark.parametrize(
    "reasoning, answer_type, gold, consistent",
    [
        ("that is 2 .", "number", "2", True),
        ("that is 3 .", "number", "2", False),
        ("1 + 1 = 2 .", "number", "2", True),
        ("I see two .", "number", "2", False),
        ("so \\boxed{x+1}", "math", "1+x", True),
        ("so it is (B)", "choice", "B", True),
        ("so it is (A)", "choice", "B", False),
    ],
)
def test_consistency_rule(reasoning, answer_type, gold, consistent):
    """The reasoning's own conclusion must be the answer."""
    choices = ["x", "y"] if answer_type == "choice" else []
    example = make_example(answer=gold, answer_type=answer_type, choices=choices)
    response = f"<think> {reasoning} </think> <answer> {gold} </answer>"
    assert is_consistent(response, example, None) is consistent


# --- The funnel ----------------------------------------------------------------------------------


def dropped(funnel) -> dict:
    return {name: count for name, count in funnel.items() if "dropped" in name}


def test_every_drop_is_counted():
    """Sampled = kept + dropped, on both sides, with a reason for each."""
    texts = [
        GOOD,
        GOOD,
        GOOD.replace("2 </answer>", "3 </answer>"),
        "the answer is 2 .",
        GOOD.replace("that is 2", "that is 1"),
        GOOD.replace(" </think>", "") + " ",
        GOOD,
    ]
    truncated = [False] * 6 + [True]

    funnel = Counter()
    assert choose(texts, truncated, EXAMPLE, None, Config(), funnel) == [GOOD]
    assert funnel["chosen: sampled"] == 7
    assert sum(dropped(funnel).values()) == 6
    assert len(dropped(funnel)) == 5

    unverified = choose(texts, truncated, EXAMPLE, None, Config(verify=False), Counter())
    assert len(unverified) == 2, "--no_verify keeps the inconsistent one"

    funnel = Counter()
    rejected = reject(texts, truncated, EXAMPLE, random.Random(0), Config(), funnel)
    assert funnel["rejected: sampled"] == 7
    assert len(rejected) + sum(dropped(funnel).values()) == 7
    for text, _ in rejected:
        assert grade(EXAMPLE, text).score == 1.0
        assert not is_in_format(text)


def test_coupled_pairs_take_wrong_answers():
    """The ablation mixes correctness and format: rejected is wrong and ill-formed."""
    texts = [GOOD, GOOD.replace("2 </answer>", "5 </answer>")]
    cfg = Config(coupled=True)
    rejected = reject(texts, [False] * 2, EXAMPLE, random.Random(0), cfg, Counter())

    assert len(rejected) == 1
    text, _ = rejected[0]
    assert grade(EXAMPLE, text).score == 0.0
    assert not is_in_format(text)


# --- The data set --------------------------------------------------------------------------------


def test_data_set_opens_elsewhere(tmp_path, capsys):
    """`datasets.load_dataset` opens the folder, images included.

    The columns of TRL and of LLaMA-Factory are there.
    """
    question = "compare <image> with <image> ."
    example = make_example(images=2, question=question, instruction="first think .")
    pair = pair_record(example, GOOD, "the answer is 2 .", "as sampled")

    for rank, count in enumerate((2, 1)):
        write_table([pair] * count, tmp_path / TABLE_PATH.format(rank, 2))
    build_prefs.write_report(pair, Counter(pairs=3), SimpleNamespace(folder=tmp_path))
    (tmp_path / "config.json").write_text("{}")  # a run folder holds json files as well
    assert "one pair" in capsys.readouterr().out

    table = datasets.load_dataset(str(tmp_path), split="train")
    record = table[0]
    assert len(table) == 3
    assert [image.size for image in record["images"]] == [i.size for i in example["images"]]

    # TRL, which adds the placeholders itself
    assert record["prompt"][0]["role"] == "user"
    assert "<image>" not in record["prompt"][0]["content"]
    assert record["chosen"] == [{"role": "assistant", "content": GOOD}]
    assert record["rejected"][0]["role"] == "assistant"

    # LLaMA-Factory
    info = json.loads((tmp_path / "dataset_info.json").read_text())["specs_pairs"]
    assert set(info["columns"].values()) <= set(table.column_names)
    assert info["ranking"] is True
    assert record["conversations"][0]["content"].count("<image>") == len(record["images"])
    assert record["chosen_message"]["content"] == GOOD


def test_wrong_settings_name_their_flag():
    """And the defaults are the paper's: decoupled pairs, verified."""
    with pytest.raises(ValueError, match="--samples"):
        Config(samples=0)
    assert Config().verify
    assert not Config().coupled
