"""The pairs of a folder without those of one corruption.

    python -m experiments.leave_out PREFS OUT --corruption "answer in words"

Each remaining pair stays as it is. With fewer pairs a cold start has fewer steps.
"""

import argparse
from pathlib import Path

from sources.tables import open_table


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("prefs", help="folder of build_prefs.py")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--corruption", required=True, help="the one to leave out")
    args = parser.parse_args(argv)

    table = open_table(args.prefs, "train", "PREFS")
    corruptions = table["corruption"]
    kept = [i for i, corruption in enumerate(corruptions) if corruption != args.corruption]
    (args.out / "data").mkdir(parents=True, exist_ok=True)
    table.select(kept).to_parquet(args.out / "data" / "train-00000-of-00001.parquet")
    print(f"{len(kept)} of {len(table)} pairs are left")


if __name__ == "__main__":
    main()
