"""MathVision's testmini for real, end to end: 304 questions with their images through a model.

    export SPECS_REAL_DATA=FOLDER
    python benchmarks/mathvision_testmini.py --out runs/mathvision
    python benchmarks/mathvision_testmini.py --out runs/mathvision --model FOLDER_OR_HUB_NAME

The folder holds mathvision_test.jsonl.gz, mathvision_testmini_ids.txt and the images. They become a
parquet file in the public columns (id, question, options, image, decoded_image, answer, solution,
level, subject), which `evaluate.py --benchmark mathvision --benchmark_dir` reads as it reads the
hub's. Printed are its report, what was refused and why, the time, and the peak of memory.

With the default model, the base of the embedded world, the score is that of a model that knows
neither the words nor the images: it shows that the way is whole, not what a model can do.
"""

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import datasets

ROOT = Path(__file__).resolve().parent.parent


def public_rows(folder: Path) -> list[dict]:
    """The rows of testmini, images as encoded files."""
    wanted = (folder / "mathvision_testmini_ids.txt").read_text().split()
    with gzip.open(folder / "mathvision_test.jsonl.gz", "rt", encoding="utf-8") as lines:
        questions = {row["id"]: row for row in map(json.loads, lines)}
    rows = []
    for name in wanted:
        image = (folder / "mathvision_testmini_images" / f"{name}.jpg").read_bytes()
        decoded = {"bytes": image, "path": f"images/{name}.jpg"}
        rows.append({**questions[name], "decoded_image": decoded})
    return rows


def write_parquet(rows: list[dict], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_list(rows)
    table.cast_column("decoded_image", datasets.Image()).to_parquet(str(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder for the data and the run")
    parser.add_argument("--model", default="toy/base", help="folder or hub name")
    parser.add_argument("--items", type=int, default=304, help="questions, the first ones")
    parser.add_argument("--max_new_tokens", type=int, default=32)
    parser.add_argument("--max_pixels", type=int, default=200_704, help="256 image tokens")
    args = parser.parse_args()

    rows = public_rows(Path(os.environ["SPECS_REAL_DATA"]))
    write_parquet(rows, args.out / "data" / "testmini-00000-of-00001.parquet")
    command = [
        sys.executable, "evaluate.py", "--benchmark", "mathvision", "--greedy_only",
        "--benchmark_dir", str((args.out / "data").resolve()), "--items", str(args.items),
        "--models", f"model={args.model}", "--max_new_tokens", str(args.max_new_tokens),
        "--max_pixels", str(args.max_pixels), "--sample_batch", "32", "--overwrite",
        "--run_dir", str((args.out / "run").resolve()), "--allow_unknown",
    ]  # fmt: skip
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.monotonic() - start

    if done.returncode != 0:
        sys.exit(done.stderr[-2000:])
    print(done.stdout)
    refused = [line for line in done.stderr.split("\n") if "skipped:" in line]
    print("\n".join(refused))
    peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"{len(refused)} of {args.items} refused, {seconds:.0f} s, peak {peak_gb:.2f} GB")


if __name__ == "__main__":
    main()
