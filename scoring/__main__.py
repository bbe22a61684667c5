"""MEGA-Bench and its authors' tool.

    python -m scoring megabench-results completions.jsonl OUT    a file that the tool scores, a
                                                                 model each: OUT.MODEL.json
    python -m scoring megabench-scores data_with_scores.json [all_task_meta.json]    its scores
"""

import json
import sys
from pathlib import Path

from scoring.megabench import read_scores, write_results
from scoring.responses import read_records


def main(arguments: list[str]) -> None:
    if len(arguments) == 3 and arguments[0] == "megabench-results":
        for model, records in read_records(arguments[1]).items():
            greedy = [r for r in records if (r["set"], r["mode"]) == ("id", "greedy")]
            file = Path(f"{arguments[2]}.{model}.json")
            write_results(greedy, file)
            print(f"wrote {len(greedy)} responses to {file}")
    elif len(arguments) in (2, 3) and arguments[0] == "megabench-scores":
        scored, *meta = [json.loads(Path(file).read_text()) for file in arguments[1:]]
        for heading, scores in read_scores(scored, *meta).items():
            print(f"by {heading}")
            for name, score in scores.items():
                print(f"  {name:<44}{100 * score:6.2f}")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
