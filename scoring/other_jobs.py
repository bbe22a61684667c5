"""What evaluate.py does instead of an evaluation, by one of three flags.

    --rescore FILE                   grade a completions.jsonl again, by repaired rules, or against
                                     gold answers that were edited in it
    --benchmark NAME --score FILE    grade responses that were made elsewhere
    --ask QUESTION --image FILE      ask each of --models one question, print the answers
"""

from collections.abc import Callable

from harness.cli import split_names
from harness.run import check_models
from rewards import make_judge
from scoring.responses import rescore
from scoring.score_file import score_responses
from sources.asking import ask_models, side_by_side


def do_other_job(cfg, summarize: Callable[[list[dict]], dict],
                 accuracy: Callable[[list[dict]], dict]) -> None:
    """The job of the flag that is given.

    cfg         the settings of evaluate.py
    summarize   records of a model -> its report
    accuracy    records -> the share of right ones, with its interval
    """
    if cfg.rescore:
        print(rescore(cfg.rescore, make_judge(cfg), summarize))
    elif cfg.score:
        score_responses(cfg, make_judge(cfg), accuracy)
    else:
        check_models(cfg.models, "--models")
        print(side_by_side(ask_models(cfg, split_names(cfg.models, "--models"))))
