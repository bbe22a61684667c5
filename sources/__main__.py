"""What a training set holds: `python -m sources NAME [NAME ...] --peek 5`.

NAME is what --data takes: orsta:FOLDER, virl39k:FOLDER, a file, toy. Printed are the first examples
as they become, how many there are of each type, kind and source, how long they are in tokens and
image tokens, how many are refused and why, how many come twice, and with --against BENCHMARK:FOLDER
how many are questions of an evaluation. --write FOLDER writes what remains as a data set of the
project's own columns, for --data.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import datasets

from harness.progress import progress
from model.loading import load_model
from model.records import ExampleError
from scoring import find_benchmark, load_questions
from sources import load_examples
from sources.duplicates import Seen, fingerprint, leaked

REASON = 70  # characters of a refusal that are told apart
ROWS_A_FILE = 500  # images of so many examples are in memory while they are written
TEXTS = ("id", "question", "answer", "answer_type", "kind", "format")
TEXT = datasets.Value("string")
FEATURES = datasets.Features(
    {name: TEXT for name in TEXTS}
    | {"images": datasets.List(datasets.Image()), "choices": datasets.List(TEXT)}
)


def survey(examples, encoder, evaluation: list, seen: Seen, limit: int | None) -> dict:
    """Counts, lengths, and the examples that are kept: indices, in order."""
    counts = {name: Counter() for name in ("type", "kind", "source", "refused", "dropped")}
    lengths, image_tokens, kept, names = [], [], [], []
    count = len(examples) if limit is None else min(limit, len(examples))
    for index in progress(range(count), "reading", show=True):
        try:
            example = examples[index]
            prompt = encoder.encode(example)
            found = fingerprint(example)
        except ExampleError as error:
            counts["refused"][str(error).split(": ", 1)[-1][:REASON]] += 1
            continue
        counts["type"][example["answer_type"]] += 1
        counts["kind"][example["kind"] or "-"] += 1
        counts["source"][example.get("source") or "-"] += 1
        lengths.append(len(prompt.ids))
        image_tokens.append(int((prompt.ids == encoder.image_token_id).sum()))

        twin, item = seen.find(found), leaked(found, evaluation)
        if twin is not None:
            counts["dropped"]["the same as another"] += 1
        elif item is not None:
            counts["dropped"]["an evaluation item"] += 1
            names.append(f"{found.id} is {item.id}")
        else:
            seen.add(found)
            kept.append(index)
    return {**counts, "tokens": lengths, "image tokens": image_tokens, "kept": kept,
            "leaks": names}


def show_examples(name: str, examples, count: int) -> None:
    """The first ones that can be read, as they become."""
    print(f"\n{name}: {len(examples)} rows")
    for index in range(min(count, len(examples))):
        try:
            example = examples[index]
        except ExampleError as error:
            print(f"  refused: {error}")
            continue
        print(f"  {example['id']}: {len(example['images'])} images, {example['answer_type']}")
        print(f"    {example['question'][:300]!r}\n    gold {example['answer'][:100]!r}")


def show_survey(found: dict) -> None:
    for name in ("type", "kind", "source", "refused", "dropped"):
        print(f"  by {name}: {found[name].total()}" if name in ("refused", "dropped")
              else f"  by {name}")
        for key, count in found[name].most_common(20):
            print(f"    {count:>7}  {key}")
    for name in ("tokens", "image tokens"):
        values = sorted(found[name]) or [0]
        shown = [values[int(q * (len(values) - 1))] for q in (0, 0.5, 0.95, 1)]
        print(f"  {name}: least {shown[0]}, median {shown[1]}, 95 % {shown[2]}, most {shown[3]}")
    for leak in found["leaks"][:20]:
        print(f"  leak: {leak}")
    print(f"  kept: {len(found['kept'])}")


def write_kept(parts: list, folder: Path) -> None:
    """The kept examples as parquet files, with the columns that --data reads.

    parts    (examples, indices of the kept ones) of each source

    Trap: as one table, 47,000 examples would be in memory with all their images
    (test_what_is_kept_is_written_file_by_file).
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("train-*.parquet"):
        old.unlink()
    kept = [(examples, index) for examples, indices in parts for index in indices]
    files = [kept[start : start + ROWS_A_FILE] for start in range(0, len(kept), ROWS_A_FILE)]

    for number, rows in enumerate(progress(files, f"writing {folder}", show=True)):
        records = [{column: examples[index][column] for column in FEATURES}
                   for examples, index in rows]  # fmt: skip
        table = datasets.Dataset.from_list(records, features=FEATURES)
        table.to_parquet(str(folder / f"train-{number:05d}-of-{len(files):05d}.parquet"))
    print(f"wrote {len(kept)} examples to {folder}")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m sources", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", metavar="NAME", help="what --data takes")
    parser.add_argument("--columns", default="", help="as --columns of the stages")
    parser.add_argument("--peek", type=int, default=5, help="examples to show")
    parser.add_argument("--limit", type=int, default=None, help="rows of each to look at")
    parser.add_argument("--against", nargs="*", default=[], metavar="BENCHMARK:FOLDER")
    parser.add_argument("--model", default="toy/base", help="whose tokens are counted")
    parser.add_argument("--write", default="", help="folder for what remains")
    args = parser.parse_args(arguments)

    _, encoder = load_model(args.model)
    evaluation = []
    for name in args.against:
        benchmark, _, folder = name.partition(":")
        questions = load_questions(find_benchmark(benchmark).name, folder, count=None, seed=7,
                                   instruction="", warn=print)
        evaluation += [fingerprint(question) for question in questions]
    seen, parts = Seen(), []
    for name in args.names:
        examples = load_examples(name, columns=args.columns)
        show_examples(name, examples, args.peek)
        found = survey(examples, encoder, evaluation, seen, args.limit)
        show_survey(found)
        parts.append((examples, found["kept"]))
    if args.write:
        write_kept(parts, Path(args.write))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
