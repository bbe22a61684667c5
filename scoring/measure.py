"""What it takes to ask a model, beside the asking itself (evaluate.py).

    open_model         in the dtype that samples
    first_questions    those of a rank
    mean_over_ranks    of a field of the records of all ranks
"""

from harness.ranks import gather_objects
from model.loading import load_model
from model.prompts import PromptEncoder
from model.qwen import Policy
from model.sampling import sampling_dtype
from sources.lazily import Prompts


def open_model(folder: str, flag_name: str, cfg, accelerator) -> tuple[Policy, PromptEncoder]:
    """A model that only samples; `flag_name` is the flag that an error names.

    cfg   --max_pixels is read
    """
    return load_model(
        folder, flag=flag_name, freeze_vision=True, max_pixels=cfg.max_pixels,
        dtype=sampling_dtype(accelerator), device=accelerator.device)


def first_questions(prompts: Prompts, limit: int | None, accelerator) -> Prompts:
    """Those of this rank's prompts that are among the first `limit` questions of their set.

    Trap: the first so many *prompts* are not those of the first questions. Where a question was
    skipped, a later one would take its place, on one rank and not on another
    (test_a_skipped_question_has_no_substitute).
    """
    if limit is None:
        return prompts
    # Rank r of R has the questions r, r + R, r + 2 R, ...
    own = range(accelerator.process_index, limit, accelerator.num_processes)
    return prompts.among_first(len(own))


def mean_over_ranks(records: list[dict], field: str, name: str, accelerator) -> float:
    """The mean of a field over the records of all ranks, all of one set; `name` is the model's.

    Raises ValueError if no response could be graded. Trap: a mean of 0 instead would give a GF that
    looks measured (test_gf_of_what_cannot_be_scored_is_an_error).
    """
    # Only the field that is averaged goes to the other ranks, not the responses.
    values_of_rank = [float(record[field]) for record in records if record[field] is not None]
    values = sum(gather_objects(values_of_rank, accelerator), [])
    if not values:
        set_name = records[0]["set"] if records else "a set"
        raise ValueError(f"--gf_runs {name}: no response to {set_name} could be graded")
    return sum(values) / len(values)
