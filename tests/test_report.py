"""The page: it holds what the folders hold, asks for nothing from outside, and can be used."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from report import gallery
from report.__main__ import ROLLOUT_BYTES, build_page, main
from report.charts import lines_of, unique_ids
from report.images import ImageStore, data_url
from report.lecture import explain_update
from report.runs import load_runs
from report.verdicts import experiment_sections
from sources.pairs import pair_record, write_table
from sources.toy import toy_examples
from test_experiments import made_up_metrics

HOSTILE = '</script><img src="http://outside.example/x.png" onerror="alert(1)">'


# --- Folders as the stages leave them, made up ---------------------------------------------------


def make_sample(step: int, run: Path, texts: list[str], accuracies: list[float], moved: float):
    """One line of samples.jsonl; the tokens are words, each moved by `moved` nats."""
    example = toy_examples(step + 1, 3)[step]
    (run / "images").mkdir(parents=True, exist_ok=True)
    name = f"images/step{step}_{example['id']}_0.png"
    example["images"][0].save(run / name)

    tokens = [text.split() for text in texts]
    formats = [float(text.startswith("<think>")) for text in texts]
    return {
        "step": step,
        **{key: example[key] for key in ("id", "question", "instruction", "format", "kind")},
        "prompt": example["question"],
        "gold": example["answer"],
        "completions": texts,
        "truncated": [False] * len(texts),
        "rewards": [{"format": f, "accuracy": a} for f, a in zip(formats, accuracies)],
        "totals": [0.5 * f + a for f, a in zip(formats, accuracies)],
        "reasons": ["block: equal number"] * len(texts),
        "tokens": tokens,
        "logp_sampler": [[-1.0] * len(line) for line in tokens],
        "logp": [[-1.0 + moved * (t + 1) for t in range(len(line))] for line in tokens],
        "images": [name],
    }


def write_lines(file: Path, records: list[dict]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def make_grpo_run(folder: Path, samples: list[dict] | None = None) -> Path:
    """A run of two steps, with two recorded groups of four completions."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"run_dir": str(folder), "group_size": 4, "clip_low": 0.2, "clip_high": 0.28,
              "divide_by_std": True, "reward_weights": "format=0.5,accuracy=1"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    metrics = {"reward": 0.5, "format": 0.4, "accuracy": 0.3, "length": 9.0, "entropy": 0.2}
    write_lines(folder / "metrics.jsonl", [{"step": step, **metrics} for step in (1, 2)])
    texts = ["<think> a </think> <answer> 2 </answer>", "that is 3 .", HOSTILE, "that is 2 ."]
    if samples is None:
        samples = [make_sample(1, folder, texts, [1.0, 0.0, 0.0, 1.0], moved=0.1),
                   make_sample(2, folder, texts, [0.0, 0.0, 0.0, 0.0], moved=-0.1)]  # fmt: skip
    write_lines(folder / "samples.jsonl", samples)
    return folder


def make_pairs_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"run_dir": "", "coupled": False}))
    chosen, rejected = "<think> a </think> <answer> 2 </answer>", "<think> a </think> 2"
    pairs = []
    for i, example in enumerate(toy_examples(9, 0)):
        corruption = "no answer tags" if i < 8 else "no tags"
        pairs.append(pair_record(example, chosen, rejected, corruption))
    write_table(pairs, folder / "data" / "train-00000-of-00001.parquet")
    return folder


def make_evaluation(folder: Path) -> Path:
    """Two models; the images of the first question were kept."""
    (folder / "images").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"run_dir": "", "pass_items": 0}))
    examples = toy_examples(2, 5)
    examples[0]["images"][0].save(folder / "images" / f"{examples[0]['id']}_0.png")
    rate = {"mean": 0.5, "low": 0.3, "high": 0.7, "count": 2, "unscored": 0}
    report = {"id sampled": {"format": rate, "accuracy": rate, "length": 9.0}, "guessing": 0.15,
              "pass@k": {"1": rate, "2": rate}}  # fmt: skip
    gf = [{"step": 0, "id": 0.4, "gf": 0.0}, {"step": 8, "id": 0.9, "gf": 0.3}]
    models = {"base": report, "final": report}
    (folder / "report.json").write_text(json.dumps({"models": models, "gf": {"SFT": gf}}))
    records = []
    for model, score in (("base", 0.0), ("final", 1.0)):
        for example in examples:
            records.append({
                "model": model, "set": "id", "mode": "sampled", "question_id": example["id"],
                "question": example["question"], "gold": "2", "kind": example["kind"],
                "response": "that is 2 .", "score": score, "reason": "r", "in_format": 0.0,
            })  # fmt: skip
    write_lines(folder / "completions.jsonl", records)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a run of each kind but the cold start."""
    root = tmp_path_factory.mktemp("runs")
    make_grpo_run(root / "zero")
    make_pairs_run(root / "prefs")
    make_evaluation(root / "report")
    (root / "zero" / "model").mkdir()  # a model folder has a config.json too, and is no run
    (root / "zero" / "model" / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    return root


@pytest.fixture(scope="module")
def page(runs) -> str:
    return build_page([runs])


# --- What is in it -------------------------------------------------------------------------------


def test_runs_are_found_and_told_apart(runs):
    """By their settings, wherever they lie; a model folder is not taken for a run."""
    stages = {run.name: run.stage for run in load_runs([runs])}
    assert stages == {"zero": "GRPO", "prefs": "pairs", "report": "evaluation"}
    assert [run.name for run in load_runs([runs / "zero", runs])][0] == "zero"
    with pytest.raises(ValueError, match="no run in it"):
        load_runs([runs / "zero" / "images"])


def test_the_page_asks_for_nothing_from_outside(page):
    """Every address is data inside the page, or a place in it."""
    markup = re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)
    addresses = re.findall(r'(?:src|href)="([^"]*)"', markup)
    addresses += re.findall(r"url\(([^)]*)\)", markup)
    assert addresses
    assert [a for a in addresses if not a.startswith(("#", "data:"))] == []
    assert "@import" not in markup


def test_what_a_model_wrote_stays_text(page):
    """A completion that ends the script and loads an image does neither."""
    assert HOSTILE not in page
    assert "outside.example" in page, "it is shown, in another spelling"


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_gallery_holds_the_records(page):
    """Texts, numbers and images arrive as they are in the folders."""
    data = data_of(page)
    assert [(g["run"], g["step"], len(g["completions"])) for g in data["groups"]] == [
        ("zero", 1, 4), ("zero", 2, 4),
    ]  # fmt: skip
    completion = data["groups"][0]["completions"][2]
    assert "".join(completion["tokens"]) == HOSTILE.replace(" ", "")
    assert data["groups"][0]["mean"] == (1.5 + 0 + 0 + 1) / 4
    assert len(data["journeys"]) == 1, "only a question with its image"
    assert [a["model"] for a in data["journeys"][0]["answers"]] == ["base", "final"]
    assert "pass@2 50.0 [30,70]" in page
    kinds = [pair["corruption"] for pair in data["pairs"]]
    assert kinds == ["no answer tags"] * gallery.PAIRS_PER_CORRUPTION + ["no tags"]
    used = {n for part in ("groups", "pairs", "journeys") for e in data[part] for n in e["images"]}
    assert used == set(range(len(data["images"])))


def test_which_tokens_are_clipped():
    """A ratio above 1 + high stops a better completion only, one below 1 - low a worse one.

    The wrong version, "outside of the band is clipped", would mark the other two as well.
    """
    ratios = [0.7, 1.0, 1.4]
    line = [math.log(ratio) for ratio in ratios]
    sample = {
        "totals": [1.0, 0.0], "completions": ["", ""], "logp": [line, line],
        "logp_sampler": [[0.0] * 3] * 2,
    }  # fmt: skip
    advantages = gallery.group_advantages(gallery.torch.tensor([sample["totals"]]))[0]
    config = {"clip_low": 0.2, "clip_high": 0.28}
    assert gallery.clipped_tokens(sample, advantages, config) == [[2], [0]]
    outside = [t for t, ratio in enumerate(ratios) if not 0.8 <= ratio <= 1.28]
    assert outside == [0, 2]


def test_the_lecture_adds_up(runs):
    """Rewards to loss again, by plain loops over the recorded numbers."""
    told = explain_update(load_runs([runs / "zero"]))
    sample = json.loads((runs / "zero" / "samples.jsonl").read_text().split("\n")[0])
    assert told["step"] == 1, "the other group has equal rewards, and nothing to tell"

    totals = sample["totals"]
    mean = sum(totals) / 4
    std = math.sqrt(sum((t - mean) ** 2 for t in totals) / 3)
    loss, tokens = 0.0, 0
    for total, new, old in zip(totals, sample["logp"], sample["logp_sampler"]):
        advantage = (total - mean) / (std + 1e-6)
        for a, b in zip(new, old):
            ratio = math.exp(a - b)
            band = min(max(ratio, 0.8), 1.28)
            loss -= min(ratio * advantage, band * advantage)
            tokens += 1
    assert told["mean"] == pytest.approx(mean)
    assert told["std"] == pytest.approx(std)
    assert told["num_tokens"] == tokens
    assert told["loss_sum"] == pytest.approx(loss, rel=1e-5)
    assert told["loss"] == pytest.approx(loss / tokens, rel=1e-5)


def test_a_variants_update_is_not_explained_by_grpos_loss(runs):
    """GSPO has one ratio a completion: the numbers would be those of another loss."""
    run = load_runs([runs / "zero"])[0]
    run.config["file"] = "runs/variants/gspo/grpo.py"
    assert explain_update([run]) is None
    run.config["file"] = "grpo.py"  # started in the project's folder
    assert explain_update([run]) is not None
    run.config["history"] = [{"changed": {"code": ["a", "b"]}}]  # it went on with other code
    assert explain_update([run]) is None


def test_a_record_of_an_older_run_is_shown(tmp_path):
    """Without log-probabilities there are words and rewards, and no lecture."""
    folder = make_grpo_run(tmp_path / "old")
    sample = make_sample(1, folder, ["that is 2 .", "3"], [1.0, 0.0], moved=0.1)
    for key in ("tokens", "logp", "logp_sampler", "question", "kind", "format", "instruction"):
        del sample[key]
    make_grpo_run(folder, [sample])
    config = json.loads((folder / "config.json").read_text())
    del config["divide_by_std"]
    (folder / "config.json").write_text(json.dumps(config))
    page = build_page([folder])
    assert data_of(page)["groups"][0]["completions"][0]["tokens"] == ["that", "is", "2", "."]
    assert 'id="lecture"' not in page


def test_experiments_stand_beside_the_papers_numbers():
    """Of made-up seeds in which DPO+SFT is above SFT: both numbers, the verdict, one sentence."""
    first = experiment_sections(made_up_metrics(0.2))[0]
    row = first["rows"][0]
    assert row["verdict"] == "agrees" and row["seeds"] == 3
    assert row["paper"] == "DPO+SFT 95.4 · SFT 73.6"
    assert first["sentence"].startswith("With up to 3 seeds, ")
    assert len(first["charts"]) == 3


# --- Size ----------------------------------------------------------------------------------------


def test_a_page_of_800_steps_is_under_20_mb(tmp_path, monkeypatch):
    """81 records of long completions with a photograph each, at a tenth of the size and the limit.
    """
    monkeypatch.setattr("report.__main__.ROLLOUT_BYTES", ROLLOUT_BYTES // 10)
    folder = tmp_path / "long"
    folder.mkdir()
    sample = make_sample(0, folder, [" ".join(["word"] * 100)] * 8, [1.0] + [0.0] * 7, moved=0.001)
    noise = np.random.default_rng(0).integers(0, 255, (100, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((400, 400)).save(folder / "images" / "photo.png")
    samples = [{**sample, "step": 10 * i, "images": ["images/photo.png"]} for i in range(81)]

    page = build_page([make_grpo_run(folder, samples)])
    assert len(page.encode()) < 2e6
    shown = [group["step"] for group in data_of(page)["groups"]]
    gaps = {b - a for a, b in zip(shown, shown[1:])}
    assert len(shown) >= 10 and len(gaps) == 1, "what does not fit is left out evenly"
    assert f"{len(shown)} of 81 recorded groups are shown" in page


def test_long_completions_lose_their_middle():
    """Head and tail are kept, with their own numbers, and the page says how many are missing."""
    count = gallery.FIRST_TOKENS + gallery.LAST_TOKENS + 50
    numbers = [-float(t) for t in range(count)]
    tokens = [str(t) for t in range(count)]
    sample = {"tokens": [tokens], "logp": [numbers], "logp_sampler": [numbers]}
    data = gallery.token_data(sample, 0, [[0, gallery.FIRST_TOKENS + 10, count - 1]])
    assert data["left_out"] == {"after": gallery.FIRST_TOKENS, "count": 50}
    assert data["tokens"][gallery.FIRST_TOKENS] == str(gallery.FIRST_TOKENS + 50)
    assert data["clipped"] == [0, len(data["tokens"]) - 1]
    assert [str(int(-value)) for value in data["logp"]] == data["tokens"]


def test_images_are_stored_once_and_small():
    """A large photograph becomes a small JPEG, a drawing stays a PNG, to the pixel."""
    store = ImageStore()
    drawing = toy_examples(1, 0)[0]["images"][0]
    assert [store.add(drawing), store.add(drawing.copy())] == [0, 0]
    assert store.urls[0].startswith("data:image/png")
    noise = np.random.default_rng(0).integers(0, 255, (1200, 1600, 3), dtype=np.uint8)
    assert len(data_url(Image.fromarray(noise))) < 150_000


def test_charts_share_no_ids_and_seeds_are_one_line(tmp_path):
    """Two charts of a page each clip by their own path; seeds of one arm become one band."""
    svg = '<svg><clipPath id="p"/><g clip-path="url(#p)"/><use xlink:href="#p"/></svg>'
    first, second = unique_ids(svg), unique_ids(svg)
    assert set(re.findall(r'id="([^"]+)"', first)).isdisjoint(re.findall(r'id="([^"]+)"', second))
    assert len(set(re.findall(r"#([\w-]+)", first))) == 1

    folders = [make_grpo_run(tmp_path / f"seed{i}" / "zero") for i in range(3)]
    loaded = load_runs(folders)
    assert [run.name for run in loaded] == ["seed0/zero", "seed1/zero", "seed2/zero"]
    assert {arm: len(seeds) for arm, seeds in lines_of(loaded, "reward").items()} == {"zero": 3}


# --- In a browser --------------------------------------------------------------------------------


def find_browser() -> str | None:
    """A Chromium of the system, or the one that playwright has installed."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return shutil.which(name)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).is_file() else None


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, one for all tests."""
    pytest.importorskip("playwright", reason="playwright is not installed")
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium, or playwright install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(runs, browser, tmp_path, width):
    """No error and no request, images drawn, nothing wider than the window, filters work."""
    file = tmp_path / "page.html"
    main([str(runs), "--out", str(file)])
    trouble, requests = [], []
    view = browser.new_page(viewport={"width": width, "height": 850})
    view.on("console", lambda message: trouble.append(message.text))
    view.on("pageerror", lambda error: trouble.append(str(error)))
    view.on("request", lambda request: requests.append(request.url))
    view.goto(file.as_uri())

    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    images = view.evaluate("[...document.images].map(i => i.naturalWidth)")
    assert len(images) >= 4 and min(images) > 0
    charts = view.evaluate("[...document.querySelectorAll('figure svg')].map(s => s.clientWidth)")
    assert charts and min(charts) > 200

    filters = view.locator("#filters")
    count = view.locator("#count")
    assert count.inner_text() == "2 groups, 8 completions"
    filters.locator("select[name=right]").select_option("1")
    assert count.inner_text() == "1 groups, 2 completions"
    filters.locator("select[name=format]").select_option("0")
    assert count.inner_text() == "1 groups, 1 completions"
    filters.locator("select[name=step]").select_option("2")
    assert count.inner_text() == "0 groups, 0 completions"
    assert view.locator(".group").count() == 1, "the journey alone"
    for name in ("right", "format", "step"):
        filters.locator(f"select[name={name}]").select_option("")

    view.locator("#groups .tokens span").nth(1).hover()
    tip = view.locator("#tip").inner_text()
    assert "logp -0.800" in tip and "logp_sampler -1.000" in tip and "ratio 1.221" in tip
    view.locator("#pair-filters select").select_option("no tags")
    assert view.locator("#pair-list .pair").count() == 1
    assert trouble == []
    view.close()
