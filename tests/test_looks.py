"""What a run shows: curves, progress, trackers, the answers to a question of one's own."""

import io
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

import dpo_sft
import evaluate
import grpo
from conftest import blank, small_grpo
from harness import plots
from harness import progress as progress_module
from harness.metrics import Stopwatch
from harness.plots import plot_curves
from harness.progress import progress
from harness.ranks import check_tracker
from harness.run import read_jsonl
from sources.asking import side_by_side

ROOT = Path(__file__).parent.parent


# --- Curves --------------------------------------------------------------------------------------


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is drawn, to look into."""
    kept = []

    class Kept(Figure):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            kept.append(self)

    monkeypatch.setattr(plots, "Figure", Kept)
    return kept


def test_curves_have_a_panel_for_each_idea(tmp_path, figures):
    """Ratio and clip apart, a legend only where there are two lines, and the line of chance."""
    records = []
    for step in (1, 2, 3):
        everything = [*grpo.COLUMNS, "reward", "format", "accuracy", "lr"]
        records.append({"step": step, **{name: 0.1 * step for name in everything}})
    panels = {"reward": ["reward", "format", "accuracy"], **grpo.PANELS}
    plot_curves(records, panels, tmp_path / "curves.png", "GRPO", chance=0.15)
    assert (tmp_path / "curves.png").is_file()

    axes = {axis.get_title(): axis for axis in figures[0].axes if axis.get_title()}
    for title in ("ratio, mean", "tokens clipped, %", "groups of equal rewards, %",
                  "gradient norm", "learning rate", "length, tokens"):  # fmt: skip
        assert len(axes[title].lines) == 1 and axes[title].get_legend() is None, title

    for axis in axes.values():  # below its panel: it covers no curve
        if axis.get_legend() is not None:
            assert axis.get_legend().get_window_extent().y1 < axis.get_window_extent().y0
    legend = [text.get_text() for text in axes["reward"].get_legend().get_texts()]
    assert legend == ["reward", "format", "accuracy", "best blind guess at the training data"]
    assert axes["reward"].lines[-1].get_ydata()[0] == 0.15


def test_every_panel_can_be_drawn():
    """A panel names metrics that are logged, so that none is empty for a misspelt name."""
    logged = {*grpo.COLUMNS, "lr", "gap", "gap_k3", "eval_accuracy"}
    assert {name for names in grpo.PANELS.values() for name in names} <= logged
    names = {name for names in dpo_sft.PANELS.values() for name in names}
    assert names <= {*dpo_sft.COLUMNS, "lr"}


def test_models_of_a_report_have_one_legend(tmp_path, figures):
    """The panel of pass@k has the colours of the bars, and no legend of its own."""
    rate = {"mean": 0.5, "low": 0.4, "high": 0.6}
    measured = {"format": rate, "accuracy": rate, "length": 1.0, "truncated": 0.0}
    reports = {
        "a": {"id sampled": measured},
        "b": {"id sampled": measured, "pass@k": {"1": rate, "2": rate}},
    }
    plots.plot_report(reports, {}, tmp_path / "report.png")
    bars, passed = figures[0].axes
    assert bars.get_legend() is not None and passed.get_legend() is None
    colour_of_b = bars.containers[-1].patches[0].get_facecolor()[:3]
    assert colour_of_b == pytest.approx(to_rgb(passed.lines[1].get_color()))


def test_gen_percent_is_the_sampling_alone():
    """A stopwatch runs only inside its block: what grades the completions is not sampling."""
    watch = Stopwatch()
    for _ in range(2):
        with watch:
            time.sleep(0.02)
        time.sleep(0.1)
    assert 0.04 <= watch.seconds < 0.1


def test_bars_are_for_a_terminal(monkeypatch):
    """Into a file goes one line, at the end; a rank that prints nothing prints nothing."""

    def shown(is_terminal: bool, show: bool) -> str:
        stream = io.StringIO()
        stream.isatty = lambda: is_terminal
        monkeypatch.setattr(progress_module.sys, "stderr", stream)
        assert list(progress([1, 2, 3], "base", show)) == [1, 2, 3]
        return stream.getvalue()

    assert shown(False, True).startswith("base: ") and shown(False, True).count("\n") == 1
    assert shown(False, False) == ""
    assert "base: " in shown(True, True) and "\r" in shown(True, True)


# --- Trackers ------------------------------------------------------------------------------------


def test_tensorboard_in_the_run_folder(start, tmp_path):
    """Metrics, completions and images, in the folder of the run; a resumed run goes on there."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    config = small_grpo(start, folder, steps=2, max_new_tokens=2, log_with="tensorboard",
                        sample_every=1)  # fmt: skip
    grpo.main(config)
    grpo.main(small_grpo(start, folder, steps=3, max_new_tokens=2, log_with="tensorboard",
                         sample_every=1, resume=True))  # fmt: skip

    seen = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    seen.Reload()
    tags = seen.Tags()
    assert {"reward", "loss", "grad_norm"} <= set(tags["scalars"])
    assert [event.step for event in seen.Scalars("reward")] == [1, 2, 3]
    logged = [record["reward"] for record in read_jsonl(folder / "metrics.jsonl")]
    assert [event.value for event in seen.Scalars("reward")] == pytest.approx(logged)

    sample = read_jsonl(folder / "samples.jsonl")[0]
    text = seen.Tensors("completions/text_summary")[0].tensor_proto.string_val[0].decode()
    assert all(part.replace("\n", " ") in text for part in sample["completions"])
    image = Image.open(io.BytesIO(seen.Images("image")[0].encoded_image_string))
    there = Image.open(folder / sample["images"][0])
    assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(there))


def test_a_tracker_that_is_not_there_names_its_pip_line(monkeypatch):
    monkeypatch.setattr("harness.ranks.get_available_trackers", lambda: [])
    for name in ("wandb", "trackio", "tensorboard"):
        with pytest.raises(ValueError, match=f"--log_with {name}: .*pip install {name}"):
            check_tracker(name)
    with pytest.raises(ValueError, match="--log_with nonsense: not a tracker"):
        check_tracker("nonsense")
    check_tracker("")


# --- A question of one's own ---------------------------------------------------------------------


def test_ask_prints_each_models_answer(tmp_path, capsys):
    """Side by side, after the prompt; nothing is written."""
    base = str(ROOT / "toy/base")
    blank().save(tmp_path / "x.png")
    config = evaluate.Config(
        models=f"base={base},other={base}",
        ask="how many red things are there ?",
        image=str(tmp_path / "x.png"),
        run_dir=str(tmp_path / "run"),
    )
    evaluate.main(config)
    lines = capsys.readouterr().out.splitlines()
    assert "[image 84x84, 9 tokens]" in "\n".join(lines)
    assert "first think between <think>" in "\n".join(lines), "an instruction that it can read"

    head = next(i for i, line in enumerate(lines) if line.split() == ["base", "other"])
    left, right = lines[head + 1][:40].strip(), lines[head + 1][40:].strip()
    assert left == right != ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "more, words",
    [
        ({"image": "nowhere.png"}, "--image: image cannot be read"),
        ({"ask": "wieviele ?"}, "--ask: .* wieviele"),
    ],
)
def test_ask_refuses_what_it_cannot_read(more, words):
    base = str(ROOT / "toy/base")
    settings = {"models": f"base={base}", "ask": "how many red things are there ?", **more}
    with pytest.raises(ValueError, match=words):
        evaluate.main(evaluate.Config(**settings))
    with pytest.raises(ValueError, match="--image goes with --ask"):
        evaluate.Config(image="x.png")
    with pytest.raises(ValueError, match="as in --models zero=runs/zero/model"):
        evaluate.Config(models="runs/zero/model")


def test_more_models_than_fit_stand_below_each_other(monkeypatch):
    size = SimpleNamespace(columns=40)
    monkeypatch.setattr("sources.asking.shutil.get_terminal_size", lambda fallback: size)
    text = side_by_side({"a": "one two three four five", "b": "x", "c": "y"})
    assert text.splitlines()[0].split() == ["a", "b"]
    assert text.splitlines()[1] == "one two three four  x"
    assert "c" in text.splitlines()
    assert max(len(line) for line in text.splitlines()) <= 40
