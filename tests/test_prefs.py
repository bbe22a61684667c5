"""Pairs: supplement, consistency, the five corruptions, and the data set that others can read."""

import json
import random
import re
import shutil
import weakref
from collections import Counter
from types import SimpleNamespace

import datasets
import pytest
from PIL import Image

import build_prefs
from build_prefs import (
    CORRUPTIONS,
    Config,
    ask_judge_ahead,
    chosen_candidate,
    corrupt,
    make_pairs,
    rejected_candidate,
    supplement,
)
from conftest import make_example
from model.images import load_image
from rewards import Judge, grade, is_in_format
from rewards.format import TAGS, remove_tags
from rewards.judge import checksum
from sources import load_examples
from sources import pairs as pairs_module
from sources.funnel import (
    Candidate,
    Response,
    count_question,
    in_order,
    kept,
    mark_repeats,
    write_funnel,
)
from sources.pairs import TABLE_PATH, pair_record, write_readme, write_table

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
        assert remove_tags(GOOD, *tags) == collapse(GOOD, *tags)
        assert remove_tags(f" {GOOD}\n", *tags) == collapse(GOOD, *tags)
        assert remove_tags(LISTED, *tags) != collapse(LISTED, *tags)

    tight = GOOD.replace(" <", "<").replace("> ", ">")
    assert CORRUPTIONS["answer in words"](tight).endswith("that is 2 .</think> Answer: 2")
    assert "that is 2 .</think><answer>2" in tight
    assert remove_tags(tight, *TAGS) == remove_tags(GOOD, *TAGS)
    assert collapse(tight, *TAGS).endswith("that is 2 .2")


def test_corruptions_are_drawn_uniformly_and_only_from_the_format():
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


@pytest.mark.parametrize("unsure", ["drop", "keep"])
def test_four_outcomes_of_the_consistency_check(unsure):
    """Each is counted apart; only what agrees is kept, and what is unsure if --unsure says so."""
    cfg = Config(unsure=unsure)
    judges = {
        "agrees": None,
        "disagrees": None,
        "unsure": None,
        "judge silent": SimpleNamespace(yes=lambda question: None),
    }
    reasonings = {"disagrees": "that is 1 .", "unsure": "I look at the picture ."}

    for outcome, judge in judges.items():
        text = GOOD.replace("that is 2 .", reasonings.get(outcome, "that is 2 ."))
        if outcome == "unsure":
            text = f"<think> {reasonings[outcome]} </think> <answer> 2 </answer>"
        candidate = chosen_candidate(Response(text, False), EXAMPLE, judge, cfg)
        counts = count_question([candidate], [], limit=1)

        assert counts[f"chosen: reasoning {outcome}"] == 1
        is_kept = outcome == "agrees" or (outcome, unsure) == ("unsure", "keep")
        assert (candidate.text is not None) == is_kept
        assert counts[f"chosen: dropped, reasoning: {outcome}"] == (not is_kept)

    with pytest.raises(ValueError, match="--unsure"):
        Config(unsure="perhaps")


class CountingJudge(Judge):
    """Says yes, without any endpoint; notes how many questions are asked at a time."""

    def __init__(self):
        self.verdicts, self.batches = {}, []

    def ask_all(self, questions):
        questions = list(questions)
        self.batches.append(len(questions))
        self.verdicts.update({checksum(question): True for question in questions})


def test_judge_is_asked_about_all_questions_at_once():
    """First whether the answers are right, then about the reasoning; never one by one.

    `make_pairs` then finds all its answers. Alone it would ask them one by one: the same pairs.
    """
    example = make_example(answer="a pair", answer_type="text")
    good = [Response(GOOD.replace("red", colour), False) for colour in ("red", "blue")]
    plain = [Response("the answer is two .", False)]

    sides = [example] * 3, [good] * 3, [plain] * 3, Config()
    judge, asked_late = CountingJudge(), CountingJudge()
    ask_judge_ahead(*sides, judge)
    assert judge.batches == [2, 2], "the answers 2 and two; the reasonings in red and in blue"
    pairs, funnel = make_pairs(*sides, judge, random.Random(0))
    assert judge.batches == [2, 2]

    assert make_pairs(*sides, asked_late, random.Random(0)) == (pairs, funnel)
    assert asked_late.batches == [1, 1, 1, 1]
    assert funnel["chosen: reasoning agrees"] == 6
    assert funnel["pairs"] == 3


def test_the_stage_asks_its_judge_ahead(tmp_path, monkeypatch):
    """Otherwise it would wait for one reply after the other."""
    examples = load_examples("toy", count=4, seed=3)
    for name, words in (("chosen", "<think> that is {} . </think> <answer> {} </answer>"),
                        ("rejected", "it is {} .")):
        lines = [{"id": e["id"], "response": words.format(e["answer"], e["answer"])}
                 for e in examples]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    judge = CountingJudge()
    monkeypatch.setattr(build_prefs, "make_judge", lambda cfg, warn: judge)
    monkeypatch.setattr(build_prefs, "take_counts", lambda judge: {})
    build_prefs.main(Config(
        max_examples=4, seed=3, run_dir=str(tmp_path / "run"),
        source=str(tmp_path / "chosen.jsonl"), rejected_source=str(tmp_path / "rejected.jsonl")))
    assert judge.batches == [4], "four reasonings, at the same time"


def test_no_side_has_white_space_around_it():
    """Otherwise it would tell them apart: a corruption takes tags away, and leaves white space."""
    text = "\n<think>\n  that is 2\n</think>\n<answer>\n2 \n</answer>\n"
    response = Response(text, False)
    chosen = chosen_candidate(response, EXAMPLE, None, Config())
    assert chosen.text == text.strip()

    for name in CORRUPTIONS:
        only = SimpleNamespace(choice=lambda names, name=name: name)
        rejected, note = corrupt(text, only)
        assert (rejected, note) == (rejected.strip(), name)
        assert not is_in_format(rejected)
    assert corrupt(" the answer is 2 .\n", None) == ("the answer is 2 .", "as sampled")
    assert CORRUPTIONS["no tags"](text) != CORRUPTIONS["no tags"](text).strip(), "the classic"


# --- The funnel ----------------------------------------------------------------------------------


RESPONSES = [
    Response(GOOD, False),
    Response(GOOD, False),
    Response(GOOD.replace("2 </answer>", "3 </answer>"), False),
    Response("the answer is 2 .", False),
    Response(GOOD.replace("that is 2", "that is 1"), False),
    Response(GOOD.replace(" </think>", "") + " ", False),
    Response(GOOD, True),
]


def all_chosen(responses, cfg=Config()) -> list[Candidate]:
    return mark_repeats([chosen_candidate(response, EXAMPLE, None, cfg) for response in responses])


def all_rejected(responses, cfg=Config()) -> list[Candidate]:
    rng = random.Random(0)
    return mark_repeats(
        [rejected_candidate(response, EXAMPLE, None, rng, cfg) for response in responses])


def total(counts, beginning) -> int:
    return sum(count for name, count in counts.items() if name.startswith(beginning))


def test_every_drop_is_counted():
    """Sampled = kept + dropped, on both sides, with a reason for each."""
    chosen, rejected = all_chosen(RESPONSES), all_rejected(RESPONSES)
    counts = count_question(chosen, rejected, limit=2)

    assert [candidate.text for candidate in kept(chosen)] == [GOOD]
    reasons = [candidate.reason for candidate in chosen if candidate.text is None]
    assert len(reasons) == 6
    assert len(set(reasons)) == 5

    for side in ("chosen", "rejected"):
        assert counts[f"{side}: sampled"] == len(RESPONSES)
        assert counts[f"{side}: kept"] + total(counts, f"{side}: dropped, ") == len(RESPONSES)
        assert counts[f"{side}: kept"] == total(counts, f"{side}: kept, ")
    for candidate in kept(rejected):
        assert grade(EXAMPLE, candidate.text).score == 1.0
        assert not is_in_format(candidate.text)

    unverified = kept(all_chosen(RESPONSES, Config(verify=False)))
    assert len(unverified) == 2, "--no_verify keeps the inconsistent one"


def test_the_example_of_the_docstring_is_what_comes_out():
    """Six responses, what becomes of each, and the two pairs, read from the page itself."""
    text = build_prefs.__doc__
    text = text[text.index("    zero ") : text.index("The paper calls")]
    responses, notes, wanted = [], [], []
    for line in filter(str.strip, text.splitlines()):
        left, right = re.split(r" {2,}", line[11:].strip(), maxsplit=1)
        if " over " in line:
            wanted.append((left, right.removeprefix("over").strip()))
        else:
            responses.append(Response(left, False))
            notes.append(right)

    asked = SimpleNamespace(choice=lambda names: "no answer tags")
    pairs, funnel = make_pairs([EXAMPLE], [responses[:3]], [responses[3:]], Config(), None, asked)
    found = [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in pairs]
    assert found == wanted and len(wanted) == 2

    assert notes == ["wrong answer", "chosen: </answer> is added", "chosen",
                     "rejected: is out of format", 'rejected: "no answer tags"', "wrong answer"]
    for count in ("chosen: dropped, wrong answer", "chosen: kept, format supplemented",
                  "chosen: kept, as sampled", "rejected: kept, as sampled",
                  "rejected: kept, no answer tags", "rejected: dropped, wrong answer"):
        assert funnel[count] == 1, count


def test_the_funnel_is_printed_in_the_order_of_the_work():
    """Also counts that come now and then, and those that it does not know."""
    names = ["questions", "questions: skipped, see the warnings", "questions: without chosen",
             "chosen: sampled", "chosen: from zero", "chosen: dropped, truncated", "chosen: kept",
             "chosen: without a partner", "rejected: kept", "pairs", "judge_calls"]  # fmt: skip
    assert sorted(sorted(names), key=in_order) == names


def test_a_source_with_another_tokenizer_is_refused(start, tmp_path):
    """Its responses would be decoded by the base's, into garbage that looks like any pair."""
    other = tmp_path / "other"
    shutil.copytree(start, other)
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace('"circle"', '"cube"'))
    config = Config(
        base=str(start), source=str(other), zero=str(start), run_dir=str(tmp_path / "run")
    )
    with pytest.raises(ValueError, match="--source .*other: its tokenizer is not that of --base"):
        build_prefs.main(config)


def test_coupled_pairs_take_wrong_answers():
    """The ablation mixes correctness and format: rejected is wrong and ill-formed."""
    wrong = Response(GOOD.replace("2 </answer>", "5 </answer>"), False)
    rejected = kept(all_rejected([RESPONSES[0], wrong], Config(coupled=True)))

    assert len(rejected) == 1
    assert grade(EXAMPLE, rejected[0].text).score == 0.0
    assert not is_in_format(rejected[0].text)


def test_pairs_of_a_question():
    """The i-th chosen with the i-th rejected, not more than asked, of each question."""
    good = [Response(GOOD.replace("red", colour), False) for colour in ("red", "blue", "green")]
    plain = [Response(f"{word} . the answer is 2 .", False) for word in ("a", "b", "c", "d")]

    cfg = Config(pairs_per_question=2)
    rng = random.Random(0)
    pairs, funnel = make_pairs(
        [EXAMPLE] * 2, [good, good[:1]], [plain, plain], cfg, None, rng)
    assert [pair["chosen"][0]["content"] for pair in pairs] == [
        good[0].text, good[1].text, good[0].text]
    assert [pair["rejected"][0]["content"] for pair in pairs] == [
        plain[0].text, plain[1].text, plain[0].text]
    assert funnel["questions"] == 2
    assert funnel["pairs"] == 3

    # 3 and 4 kept in the first question, 1 and 4 in the second
    assert funnel["pairs: beyond --pairs_per_question"] == 1
    assert funnel["chosen: without a partner"] == 0
    assert funnel["rejected: without a partner"] == 1 + 3
    for side in ("chosen", "rejected"):
        beyond = funnel["pairs: beyond --pairs_per_question"]
        unpaired = funnel[f"{side}: without a partner"]
        assert funnel[f"{side}: kept"] == funnel["pairs"] + beyond + unpaired


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
    write_readme(tmp_path, count=3)
    write_funnel(Counter(pairs=3), pair, SimpleNamespace(folder=tmp_path))
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


def test_the_images_of_a_few_pairs_are_open_at_a_time(tmp_path, monkeypatch):
    """Pairs hold paths; written in parts of two, the table is the one written at once."""
    paths = []
    for i in range(6):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.new("RGB", (28, 28), (40 * i, 0, 0)).save(paths[-1])
    records = [
        pair_record({**make_example(images=1), "images": [path]}, GOOD, "2", "no tags")
        for path in paths]  # fmt: skip
    assert all(record["images"] == [path] for record, path in zip(records, paths))

    opened, alive_at = [], []

    def load_and_count(*args):
        image = load_image(*args)
        opened.append(weakref.ref(image))
        alive_at.append(sum(reference() is not None for reference in opened))
        return image

    monkeypatch.setattr(pairs_module, "load_image", load_and_count)
    tables = {}
    for size in (2, 64):
        monkeypatch.setattr(pairs_module, "PAIRS_AT_A_TIME", size)
        opened.clear()
        alive_at.clear()
        write_table(records, tmp_path / f"{size}" / "pairs.parquet")
        tables[size] = datasets.load_dataset(
            "parquet", data_files=str(tmp_path / f"{size}" / "pairs.parquet"), split="train")
        assert len(alive_at) == 6
        assert max(alive_at) <= 2 * size, "those of one part, and of the one before"

    reds = [image.getpixel((0, 0))[0] for image, in tables[2]["images"]]
    assert reds == [0, 40, 80, 120, 160, 200]
    assert [r["id"] for r in tables[2]] == [r["id"] for r in tables[64]]
    assert tables[2].features == tables[64].features


def test_wrong_settings_name_their_flag():
    """And the defaults are the paper's: decoupled pairs, verified."""
    with pytest.raises(ValueError, match="--samples"):
        Config(samples=0)
    with pytest.raises(ValueError, match="--temperature nan: must be positive"):
        Config(temperature=float("nan"))
    assert Config().verify
    assert not Config().coupled


@pytest.mark.parametrize("coupled", [False, True])
def test_what_cannot_be_graded_is_neither_right_nor_wrong(coupled):
    """A gold that is no option gives no verdict; the funnel says so on both sides."""
    example = make_example(answer="purple", answer_type="choice", choices=["red", "blue"])
    response = Response("<think> it is red . </think> <answer> A </answer>", truncated=False)
    cfg = Config(coupled=coupled)
    rng = random.Random(0)

    sides = [chosen_candidate(response, example, None, cfg),
             rejected_candidate(response, example, None, rng, cfg)]
    assert [side.reason for side in sides] == ["could not be graded"] * 2
    assert [side.text for side in sides] == [None] * 2
