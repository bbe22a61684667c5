"""The documents say what is there: files, functions, tests, flags, commands."""

import re
from pathlib import Path

import pytest
from test_runs import STAGES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SOURCES = {path.name: path.read_text() for path in [*ROOT.glob("*.py"), *(ROOT / "toy").glob("*.py")]}
TESTS = {name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}


def test_every_named_test_exists():
    """A trap or an answer that names a test is only worth something while that test is there."""
    for name, text in {**SOURCES, "README.md": README, "benchmarks": (ROOT / "benchmarks/README.md").read_text()}.items():
        missing = set(re.findall(r"\btest_\w+(?!\w*\.py)", text)) - TESTS - {p.stem for p in (ROOT / "tests").glob("*.py")}
        assert not missing, f"{name} names {missing}"


def test_every_trap_names_its_test():
    """Each `Trap:` comment or docstring ends with the test that guards it."""
    for name, text in SOURCES.items():
        for i in [m.start() for m in re.finditer(r"Trap:", text)]:
            assert re.search(r"\(test_\w+", text[i : i + 600]), f"{name}: {text[i : i + 80]!r} names no test"


def test_line_counts_of_the_file_table():
    """Within 15 lines of the truth; and no file is too long to read in one sitting."""
    rows = re.findall(r"^\| \[`(\w+\.py)`\]\(\1\) \|.*\| (\d+) \|$", README, re.M)
    assert {name for name, _ in rows} == {path.name for path in ROOT.glob("*.py")}
    for name, stated in rows:
        actual = SOURCES[name].count("\n")
        assert abs(actual - int(stated)) <= 15 and actual <= 420, f"{name} has {actual} lines, README says {stated}"
    assert README.count("\n") <= 250


def test_functions_in_the_recipe_exist():
    for file, names in re.findall(r"\[`(\w+\.py)`\]\(\1\) ((?:`\w+`(?:, )?)+)", README):
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^\s*(def|class) {name}\b", SOURCES[file], re.M), f"{file} has no {name}"


@pytest.mark.parametrize("where", ["README.md", *sorted(p.name for p in (ROOT / "configs").glob("*.yaml"))])
def test_flags_in_commands_exist(where):
    """Every --flag of a command line in the documents is one of that stage's."""
    text = README if where == "README.md" else (ROOT / "configs" / where).read_text()
    known = {s: set(__import__(s[:-3]).Config.__dataclass_fields__) for s in STAGES}
    for stage, rest in re.findall(r"(\w+\.py)\s+([^`\n]*)", text):
        for name in re.findall(r"--(\w+)", rest) if stage in known else []:
            assert name in known[stage], f"{where}: {stage} --{name}"


def test_metrics_of_the_glossary_are_logged():
    """The glossary names what the stages print."""
    import dpo_sft
    import grpo

    glossary = set(re.findall(r"`([\w%]+)`", README.split("## Metrics")[1].split("## Questions")[0]))
    assert {*grpo.COLUMNS} <= glossary and {*dpo_sft.COLUMNS} <= glossary


def test_make_and_ci_run_what_the_readme_says():
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^specs:", makefile, re.M) and re.search(r"^test:", makefile, re.M)
    assert "make test" in (ROOT / ".ci/run").read_text() and README.index("make specs") < README.index("What happens")
    assert README[: README.index("make specs took")].count("\n") < 40, "the last printed lines come before line 40"
