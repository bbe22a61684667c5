"""Write a patched copy of a stage: `python variants/apply.py gspo` or `make variant NAME=gspo`.

A variant is a patch of a stage, `variants/NAME.patch`: first a sentence and its paper, then the few
lines that change. The copy goes to runs/variants/NAME/. Run it like the stage, from the project's
folder:

    PYTHONPATH=. .venv/bin/python runs/variants/gspo/grpo.py --clip_low 3e-4 --clip_high 4e-4
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
VARIANTS = PROJECT / "variants"
STAGES = ("grpo.py", "dpo_sft.py")  # those with a loss


def names() -> list[str]:
    """The names of all variants."""
    return sorted(file.stem for file in VARIANTS.glob("*.patch"))


def apply(name: str, out: Path) -> Path:
    """Write a patched copy of the stage that a variant changes.

    name      of the variant
    out       folder for the copy
    returns   the file written

    Raises ValueError if there is no such variant, or if its patch no longer fits the stage.
    """
    if name not in names():
        raise ValueError(f"no variant {name!r}; there are {', '.join(names())}")
    patch_file = VARIANTS / f"{name}.patch"
    changed = re.findall(r"^--- a/(\S+)", patch_file.read_text(), re.MULTILINE)
    if len(changed) != 1 or changed[0] not in STAGES:
        raise ValueError(
            f"variants/{name}.patch changes {', '.join(changed) or 'nothing'}: a variant changes "
            "one of grpo.py and dpo_sft.py. Wanted a sentence, its paper, and then what "
            "`git diff grpo.py` prints"
        )
    stage = changed[0]

    out.mkdir(parents=True, exist_ok=True)
    copy = out / stage
    shutil.copyfile(PROJECT / stage, copy)

    # No fuzz: fail if the context has changed. `patch` would otherwise guess where the lines go.
    command = ["patch", "--fuzz=0", "--no-backup-if-mismatch", str(copy), str(patch_file)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        copy.unlink()
        copy.with_name(stage + ".rej").unlink(missing_ok=True)
        if "previously applied" in result.stdout:
            raise ValueError(
                f"variants/{name}.patch: {stage} has this change already; `git checkout {stage}` "
                "takes it back, then the copy has it alone"
            )
        raise ValueError(
            f"variants/{name}.patch no longer fits {stage}, whose lines have changed: redo the "
            f"change by hand and regenerate the patch.\n{result.stdout}{result.stderr}"
        )
    return copy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("name", nargs="?", default="", help=f"one of {', '.join(names())}")
    parser.add_argument("--out", type=Path, help="folder; default runs/variants/NAME")
    args = parser.parse_args()

    try:
        copy = apply(args.name, args.out or Path("runs/variants") / args.name)
    except ValueError as error:
        sys.exit(f"error: {error}")

    patch = (VARIANTS / f"{args.name}.patch").read_text()
    sentence_and_paper = re.split(r"^(?:diff --git|--- a/)", patch, flags=re.MULTILINE)[0].strip()
    print(sentence_and_paper)
    print(f"\nwrote {copy}; run it with: PYTHONPATH=. .venv/bin/python {copy}")


if __name__ == "__main__":
    main()
