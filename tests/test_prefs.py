"""Pairs: supplement, consistency, the five corruptions, and the data set that others can read."""

import json
import random
from collections import Counter

import datasets
import pytest
from conftest import make_row

import build_prefs
from build_prefs import CORRUPTIONS, Config, choose, corrupt, is_consistent, pair_record, reject, supplement
from rewards import format_reward, grade

GOOD = "<think> red things : red circle , red square . that is 2 . </think> <answer> 2 </answer>"
ROW = make_row(answer="2")


@pytest.mark.parametrize("name, expected", [
    ("no tags", "red things : red circle , red square . that is 2 . 2"),
    ("no answer tags", "<think> red things : red circle , red square . that is 2 . </think> 2"),
    ("no think tags", "red things : red circle , red square . that is 2 . <answer> 2 </answer>"),
    ("think around all", "<think> red things : red circle , red square . that is 2 . 2 </think>"),
    ("answer in words", "<think> red things : red circle , red square . that is 2 . </think> Answer: 2")])
def test_the_five_corruptions(name, expected):
    """Each loses the format and nothing else: the words and the answer stay."""
    assert CORRUPTIONS[name](GOOD) == expected
    assert format_reward(expected) == 0


def test_corruptions_are_drawn_evenly_and_only_from_the_format():
    """A fifth each; a response that never had the format is left as it is."""
    rng, drawn = random.Random(0), Counter()
    for _ in range(5000):
        drawn[corrupt(GOOD, rng)[1]] += 1
    assert set(drawn) == set(CORRUPTIONS) and all(900 < n < 1100 for n in drawn.values())
    assert corrupt("the answer is 2 .", rng) == ("the answer is 2 .", "as sampled")


@pytest.mark.parametrize("response, supplied", [
    (GOOD, GOOD), (GOOD.replace(" </think>", ""), GOOD), (GOOD.replace(" </answer>", ""), GOOD),
    (GOOD.replace("<think> ", ""), None), (GOOD.replace("<answer> ", ""), None), ("the answer is 2 .", None)])
def test_supplement_adds_closing_tags_only(response, supplied):
    """A missing closing tag is put where it belongs; what needs more is dropped."""
    assert supplement(response) == supplied


@pytest.mark.parametrize("reasoning, kind, gold, consistent", [
    ("that is 2 .", "number", "2", True), ("that is 3 .", "number", "2", False), ("1 + 1 = 2 .", "number", "2", True),
    ("I see two .", "number", "2", False), ("so \\boxed{x+1}", "math", "1+x", True), ("so it is (B)", "choice", "B", True),
    ("so it is (A)", "choice", "B", False)])
def test_consistency_rule(reasoning, kind, gold, consistent):
    """The reasoning's own conclusion must be the answer."""
    row = make_row(answer=gold, answer_type=kind, choices=["x", "y"] if kind == "choice" else [])
    assert is_consistent(f"<think> {reasoning} </think> <answer> {gold} </answer>", row, None) is consistent


def test_every_drop_is_counted():
    """Sampled = kept + dropped, on both sides, with a reason for each."""
    texts = [GOOD, GOOD, GOOD.replace("2 </answer>", "3 </answer>"), "the answer is 2 .", GOOD.replace("that is 2", "that is 1"),
             GOOD.replace(" </think>", "") + " ", GOOD]
    funnel, cut = Counter(), [False] * 6 + [True]
    kept = choose(texts, cut, ROW, None, Config(), funnel)
    assert kept == [GOOD] and funnel["chosen: sampled"] == 7
    dropped = {k: v for k, v in funnel.items() if "dropped" in k}
    assert sum(dropped.values()) == 6 and len(dropped) == 5
    assert len(choose(texts, cut, ROW, None, Config(verify=False), Counter())) == 2, "--no_verify keeps the inconsistent one"
    funnel = Counter()
    rejected = reject(texts, cut, ROW, random.Random(0), Config(), funnel)
    assert funnel["rejected: sampled"] == 7 == len(rejected) + sum(v for k, v in funnel.items() if "dropped" in k)
    assert all(grade(ROW, text).score == 1.0 and not format_reward(text) for text, _ in rejected)


def test_coupled_pairs_take_wrong_answers():
    """The ablation mixes correctness and format: rejected is wrong and ill-formed."""
    texts = [GOOD, GOOD.replace("2 </answer>", "5 </answer>")]
    rejected = reject(texts, [False] * 2, ROW, random.Random(0), Config(coupled=True), Counter())
    assert len(rejected) == 1 and grade(ROW, rejected[0][0]).score == 0.0 and not format_reward(rejected[0][0])


def test_data_set_opens_elsewhere(tmp_path, capsys):
    """`datasets.load_dataset` opens the folder, pictures included; TRL's and LLaMA-Factory's columns are there."""

    class FakeRun:
        folder = tmp_path

    row = make_row(pictures=2, question="compare <image> with <image> .", instruction="first think .")
    pairs = [pair_record(row, GOOD, "the answer is 2 .", "as sampled")] * 3
    for rank, share in enumerate((pairs[:2], pairs[2:])):
        build_prefs.write_table(share, tmp_path / build_prefs.TABLE.format(rank, 2))
    build_prefs.write_report(pairs[0], Counter(pairs=3), FakeRun())
    (tmp_path / "config.json").write_text("{}")  # a run folder holds json files as well
    table = datasets.load_dataset(str(tmp_path), split="train")
    record = table[0]
    assert len(table) == 3 and [p.size for p in record["images"]] == [p.size for p in row["images"]]
    assert record["prompt"][0]["role"] == "user" and "<image>" not in record["prompt"][0]["content"]  # TRL adds its own
    assert record["chosen"] == [{"role": "assistant", "content": GOOD}] and record["rejected"][0]["role"] == "assistant"
    info = json.loads((tmp_path / "dataset_info.json").read_text())["specs_pairs"]
    assert set(info["columns"].values()) <= set(table.column_names) and info["ranking"] is True
    assert record["conversations"][0]["content"].count("<image>") == len(record["images"])
    assert record["chosen_message"]["content"] == GOOD
    assert "one pair" in capsys.readouterr().out


def test_wrong_settings_name_their_flag():
    with pytest.raises(ValueError, match="--samples"):
        Config(samples=0)
    assert build_prefs.Config().verify and not build_prefs.Config().coupled
