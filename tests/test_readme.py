"""The documents say what is there: files, functions, tests, flags, metrics, commands, links."""

import re
from pathlib import Path

import pytest

import dpo_sft
import grpo
from scoring.benchmark import grade_response
from test_cli import STAGES, stage_module

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "benchmarks/README.md"]


def python_files() -> list[Path]:
    """Every Python file of the project, whatever its folder; not those of .venv and of runs."""
    files = list(ROOT.glob("*.py"))
    for folder in ROOT.iterdir():
        if folder.is_dir() and not folder.name.startswith(".") and folder.name != "runs":
            files += folder.rglob("*.py")
    return files


FILES = python_files()
FOLDERS = sorted({path.parent for path in FILES})
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text() for path in FILES if path.parent.name != "tests"
}
TEST_FILES = {path.stem: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
TESTS = {n for text in TEST_FILES.values() for n in re.findall(r"^def (test_\w+)", text, re.M)}

# A reference to code: [`file.py`](file.py), perhaps in a folder, then perhaps names in it.
LINKED_NAMES = re.compile(r"\[`([\w/]+\.py)`\]\(([\w/]+\.py)\)((?:,? `\w+`)*)")


def read(document: str) -> str:
    return (ROOT / document).read_text()


README = read("README.md")


# --- Files and links -----------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    """Every relative link and image of a document is a file or folder of the project."""
    folder = (ROOT / document).parent
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", read(document))
    missing = [link for link in links if "://" not in link and not (folder / link).exists()]
    assert not missing, f"{document} links to {missing}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_named_in_the_readme_exist(document):
    """Every `name.py`, `name.sh`, `configs/name.args`, ... in code style; a length says nothing.

    A name without a folder may lie beside the document or in any folder of the project.
    """
    places = [(ROOT / document).parent, ROOT, *FOLDERS]
    named = re.findall(r"`((?:[\w.]+/)*\w[\w.]*\.(?:py|args|yaml|ini|toml))`", read(document))
    missing = [name for name in named if not any((place / name).is_file() for place in places)]
    assert not missing, f"{document} names {missing}"


# --- Functions -----------------------------------------------------------------------------------


def defines(source: str, name: str) -> bool:
    return re.search(rf"^\s*(def|class) {name}\b", source, re.M) is not None


def test_functions_in_the_recipe_exist():
    """A file that is linked with functions behind it, in whatever folder, has these functions."""
    found = LINKED_NAMES.findall(README)
    assert any(names for _, _, names in found), "the recipe names functions"

    for title, file, names in found:
        assert title == file
        for name in re.findall(r"`(\w+)`", names):
            assert defines(SOURCES[file], name), f"{file} has no {name}"


def test_functions_named_beside_a_test_exist():
    """(`function`, `test_of_it`) or (`Class.method`, `test_of_it`): some source defines them."""
    everything = "\n".join(SOURCES.values())
    found = re.findall(r"\(((?:`(?!test_)[\w.]+`,\s+)+)`test_\w+`", README)
    assert found, "the questions name functions and their tests"

    for names in found:
        for name in re.findall(r"`((?!test_)[\w.]+)`", names):
            for part in name.split("."):
                assert defines(everything, part), f"no source defines {name}"


# --- Tests and traps -----------------------------------------------------------------------------


def test_every_named_test_exists():
    """A trap or an answer that names a test is only worth something while that test is there."""
    texts = {**SOURCES, **{document: read(document) for document in DOCUMENTS}}
    for name, text in texts.items():
        named = set(re.findall(r"\btest_\w+(?!\w*\.py)", text))
        missing = named - TESTS - TEST_FILES.keys()
        assert not missing, f"{name} names {missing}"


def trap_without_test(text: str) -> str | None:
    """The first `Trap:` of a source that names no existing test within its paragraph."""
    for trap in re.finditer(r"Trap:", text):
        # To the end of the docstring or comment, and no further than the next trap.
        rest = text[trap.end() : trap.end() + 700].split("Trap:")[0]
        names = re.findall(r"\((test_\w+)", rest)
        if not any(name in TESTS for name in names):
            return text[trap.start() : trap.start() + 80]
    return None


def test_every_trap_names_its_test():
    """Each `Trap:` of every source file names the test that guards it, and that test exists."""
    for name, text in SOURCES.items():
        assert trap_without_test(text) is None, f"{name}: {trap_without_test(text)!r}"

    assert trap_without_test("Trap: a mistake (test_that_nobody_wrote).") is not None
    assert trap_without_test("Trap: one. Trap: two (test_every_trap_names_its_test).") is not None
    assert trap_without_test("Trap: one (test_every_trap_names_its_test).") is None


# --- Flags, metrics, commands --------------------------------------------------------------------

CONFIGS = sorted(f"configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("document", ["README.md", *CONFIGS])
def test_flags_in_commands_exist(document):
    """Every --flag of a command line in the documents is one of that stage's."""
    for stage, arguments in re.findall(r"(\w+\.py)\s+([^`\n]*)", read(document)):
        if stage not in STAGES:
            continue
        known = stage_module(stage).Config.__dataclass_fields__
        for name in re.findall(r"--(\w+)", arguments):
            assert name in known, f"{document}: {stage} --{name}"


def test_metrics_of_the_glossary_are_logged():
    """The glossary names what the stages print."""
    section = README.split("## Metrics")[1].split("\n## ")[0]
    glossary = set(re.findall(r"`([\w%]+)`", section))

    assert {"reward", "format", "accuracy", *grpo.COLUMNS} <= glossary
    assert {*dpo_sft.COLUMNS} <= glossary


def test_make_and_ci_run_what_the_readme_says():
    """`make specs`, `make test` and `make test-slow` exist, and CI runs both of the tests."""
    makefile, ci = read("Makefile"), read(".ci/run")
    for target in ("specs", "test", "test-slow"):
        assert re.search(rf"^{target}:", makefile, re.M), target

    assert {"make test", "make test-slow"} <= set(ci.splitlines())
    assert README.index("make specs") < README.index("What happens")

    first_screen = README[: README.index("make specs took")]
    assert first_screen.count("\n") < 40, "the last printed lines come before line 40"


def test_the_example_of_a_benchmark_works():
    """The README's twenty lines are run, and score by hand."""
    code = re.search(r"```python\n(\"\"\"Pets.*?)```", README, re.S)[1]
    assert len([line for line in code.split("\n") if line]) <= 20
    names: dict = {}
    exec(code, names)  # our own document
    benchmark = names["BENCHMARK"]

    row = {"id": 1, "question": "A cat?", "answer": "yes", "image": "a.png", "animal": "cat"}
    example = benchmark.read(row)
    assert example["categories"] == {"animal": ["cat"]}
    response = "<think> no ? </think> <answer> Yes, there is. </answer>"
    right = grade_response(benchmark, example, response)
    assert (right.score, right.extracted) == (1.0, "yes")
    assert grade_response(benchmark, example, "No.").score == 0.0
