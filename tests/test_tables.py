"""The report of an evaluation as text and as bars: what was not measured is left out."""

from matplotlib.figure import Figure

from harness.plots import draw_gf, draw_rates
from harness.tables import (
    MAIN_COLUMNS,
    OOD_ACCURACY_COLUMNS,
    OOD_FORMAT_COLUMNS,
    format_table,
    rate_line,
)

RATE = {"mean": 0.5, "low": 0.4, "high": 0.6}
MEASURED = {"format": RATE, "accuracy": RATE, "length": 12.0, "truncated": 0.0}


def test_a_missing_measurement_is_no_error():
    """pass@k without branching; a column that only one of two models has."""
    chances = {"1": {"mean": 0.25, "low": 0.2, "high": 0.3},
               "2": {"mean": 0.5, "low": 0.4, "high": 0.6}}
    reports = {
        "a": {"id sampled": MEASURED, "tags sampled": MEASURED, "pass@k": chances},
        "b": {"id sampled": MEASURED, "look sampled": MEASURED},
    }
    lines = format_table(reports).splitlines()

    assert lines[0].split() == ["format", "accuracy", "length"]
    assert lines[1].split() == ["a", "50.0", "[40,60]", "50.0", "[40,60]", "12.0"]
    assert lines[3].split() == ["accuracy,", "OOD", "new", "look"]
    assert lines[4].split() == ["a", "-"]
    assert lines[5].split() == ["b", "50.0", "[40,60]"]
    assert lines[6].split() == ["format", "obeyed,", "OOD", "tags"]
    assert lines[8].split() == ["b", "-"]
    assert lines[9].split() == ["a", "pass", "@1", "25.0", "[20,30]", "@2", "50.0", "[40,60]"]
    assert format_table({}) == ""


def test_bars_show_the_columns_of_the_table():
    """One group of bars per column, centred on its tick, one bar per model that has the rate."""
    columns = MAIN_COLUMNS + OOD_ACCURACY_COLUMNS + OOD_FORMAT_COLUMNS
    everything = {column.measurement: MEASURED for column in columns}
    axis = Figure().subplots()
    draw_rates(axis, {"a": everything, "b": {"id sampled": MEASURED}})

    titles = [label.get_text() for label in axis.get_xticklabels()]
    assert len(titles) == len(columns)
    assert titles[0] == "format"
    assert "unseen\ntask\n(accuracy)" in titles
    assert titles[-1] == "answer_first\n(format)"

    bars = [bar for bar in axis.patches if bar.get_height() == 50]
    assert len(bars) == len(titles) + 2
    centres = sorted(bar.get_x() + bar.get_width() / 2 for bar in bars)
    assert abs(centres[0] + centres[1]) < 1e-9, "the two bars of tick 0 lie around it"


def test_what_nobody_could_score_is_no_rate_of_0():
    """No bar, and no number: a 0 with an interval up to 100 would look measured."""
    nothing = {"mean": 0.0, "low": 0.0, "high": 1.0, "count": 0, "unscored": 7}
    assert rate_line("all", nothing).split() == ["all", "unscored,", "all", "7"]
    axis = Figure().subplots()
    draw_rates(axis, {"a": {"id sampled": {"format": MEASURED["format"], "accuracy": nothing}}})
    assert [bar.get_height() for bar in axis.patches] == [50]


def test_legend_of_gf_names_the_run_of_each_line():
    """Two runs, four lines, no two with the same name."""
    curve = [{"step": 0, "gf": 0.0, "ood": 0.1}, {"step": 8, "gf": 0.2, "ood": 0.3}]
    axis = Figure().subplots()
    draw_gf(axis, {"hybrid": curve, "sft": curve})

    names = [text.get_text() for text in axis.get_legend().get_texts()]
    assert names == ["hybrid: GF", "hybrid: OOD format", "sft: GF", "sft: OOD format"]
