"""MEGA-Bench: metrics by hand, aggregation, and the files of its authors' tool."""

import json

import pytest

from model.records import ExampleError
from scoring import find_benchmark, grade_example
from scoring.__main__ import main
from scoring.megabench import aggregate, read_scores, write_results
from scoring.megabench_metrics import METRICS

ROW = {
    "id": "7", "task_name": "table_reading", "task_description": "Read the table <image>.",
    "global_media": "['a.png']", "example_text": "Answer: 3", "example_media": "[]",
    "query_text": "How many <image>?", "query_media": "['b.png']",
    "answer": "{'count': '12', 'names': \"['x', 'y']\"}",
    "metric_info": str({
        "field_score_function": {"count": "exact_str_match", "names": "jaccard_index"},
        "aggregation": {"function": "mean", "field_weights": {"count": 3, "names": 1}},
        "response_parse_function": "json",
    }),
    "eval_context": "{}",
}


@pytest.mark.parametrize(
    "metric, response, gold, score",
    [
        ("exact_str_match", "B. dog", "B", 1),
        ("exact_str_match", "Bob", "B", 0),
        ("exact_str_match", "12 ", "12", 0),
        ("exact_str_match_case_insensitive", "Dog", "dog", 1),
        ("simple_str_match", "New-York.", "new york", 1),
        ("near_str_match", "The Café Central", "cafe central", 1),
        ("near_str_match", "cafe", "cake", 0),  # 0.75 is below 0.9
        ("normalized_similarity_damerau_levenshtein", "cafe", "cake", 0.75),
        ("general_single_numerical_match", "x = 101", "100", 1),  # within 1 %
        ("general_single_numerical_match", "102", "100", 0),
        ("general_single_numerical_match", "50%", "1/2", 1),
        ("boxed_single_numerical_match", "so \\boxed{7}", "\\boxed{7.05}", 1),
        ("number_rel_diff_ratio", "90", "100", 0.9),
        ("number_rel_diff_ratio", "300", "100", 0),
        ("positive_int_match", "7", "7", 1),
        ("positive_int_match", "7.0", "7", 0),
        ("set_equality", "[2, 1]", "[1, 2]", 1),
        ("set_equality", "b, a", "a, b", 1),
        ("set_equality_case_insensitive", "['A']", "['a']", 1),
        ("jaccard_index", "['a', 'b']", "['b', 'c']", 1 / 3),
        ("set_precision", "['a', 'b']", "['b', 'c']", 1 / 2),
        ("str_set_equality_line_break", "b\na\n", "a\nb", 1),
        ("sequence_equality", "[1, 2]", "[2, 1]", 0),
        ("longest_common_list_prefix_ratio", "[1, 2, 9]", "[1, 2, 3, 4]", 1 / 2),
        ("dict_equality", '{"a": 1}', "{'a': 1}", 1),
        ("dict_exact_str_match_agg_recall", {"a": "1", "z": "9"}, {"a": "1", "b": "2"}, 1 / 2),
        ("dict_jaccard_agg_jaccard", {"a": [1], "z": [9]}, {"a": [1, 2]}, 1 / 4),
        ("text_with_latex_expr_equality", "Area: $x+1$", "area $1+x$", 0),  # the colon stays
        ("text_with_latex_expr_equality", "Area $x+1$", "area $1+x$", 1),
        ("set_equality", "__import__('os')", "[]", 0),  # nothing is run
    ],
)
def test_metrics_by_hand(metric, response, gold, score):
    assert METRICS[metric](response, gold) == pytest.approx(score)


@pytest.mark.parametrize(
    "response, score",
    [
        ('Answer: {"count": "12", "names": ["x", "y"]}', 1.0),
        ('Answer: no\nAnswer:\n```json\n{"count": "12", "names": ["x", "z"]}\n```', 3 / 4 + 1 / 12),
        ('<think> Answer: 1 </think><answer>{"count": "9", "names": ["x", "y"]}</answer>', 1 / 4),
        ("Answer: 12", 3 / 4),  # no JSON: the text stands for every field
    ],
)
def test_fields_are_parsed_and_weighted(response, score):
    """By hand: count weighs 3, names 1; a Jaccard index of 1/3 for one name of three."""
    example = find_benchmark("megabench").read(ROW)
    assert example["images"] == ["a.png", "b.png"]
    assert grade_example(example, response).score == pytest.approx(score)
    assert aggregate({"a": 1.0, "b": 0.25}, {"function": "min"}) == 0.25


def test_other_metrics_are_unscored_by_name():
    """Never counted as wrong; a video is refused by name."""
    row = {**ROW, "metric_info": ROW["metric_info"].replace("jaccard_index", "program_judge")}
    graded = grade_example(find_benchmark("megabench").read(row), "Answer: 12")
    assert graded.score is None
    assert graded.reason == "megabench: unscored, program_judge"
    with pytest.raises(ExampleError, match="example 7: c.mp4 is a video"):
        find_benchmark("megabench").read({**ROW, "query_media": "['c.mp4']"})


def test_the_tool_of_its_authors(tmp_path, capsys):
    """Its input has every key that it reads; its scores are means over tasks, -1 is no score."""
    example = find_benchmark("megabench").read(ROW)
    records = [{"id": f"{i}", "response": "Answer: 12", "rule": example["rule"]} for i in (7, 8)]
    write_results(records, tmp_path / "results.json")
    task, = json.loads((tmp_path / "results.json").read_text())
    assert task["example_info"] == {"image_paths": [], "example_text": "Answer: 3"}
    assert {key: task[key] for key in ("task_name", "global_images")} == {
        "task_name": "table_reading", "global_images": ["a.png"]}
    first, second = task["query_response"]
    assert first["correct_answer"] == {"count": "12", "names": "['x', 'y']"}
    assert (second["global_idx"], second["task_idx"], second["images"]) == ("8", 1, ["b.png"])

    tasks = [("a", 0.5, 1, "rule"), ("b", 1.0, 9, "rule"), ("c", -1, 1, "rule"),
             ("d", 0.2, 1, "llm")]
    scored = {"data": [{"task_name": n, "mean_task_score": s, "eval_type": kind,
                        "query_response": [{}] * size} for n, s, size, kind in tasks]}
    meta = {"a": {"app": "Planning"}, "b": {"app": "Planning", "skills": ["Counting"]}}
    assert read_scores(scored, meta) == {
        "all": {"core": 0.75, "open": 0.2}, "application": {"Planning": 0.75},
        "skill": {"Counting": 1.0}}
    over_questions = (0.5 * 1 + 1.0 * 9) / 10
    assert over_questions != 0.75, "the classic mistake"

    (tmp_path / "scores.json").write_text(json.dumps(scored))
    main(["megabench-scores", str(tmp_path / "scores.json")])
    assert "75.00" in capsys.readouterr().out
