"""Reads what `pairs.py` wrote, or any table with its columns: pairs as groups, a few at a time.

    check_pairs    every pair once, shared out over ranks: can it be used, how long is it, its hash
      -> Pairs     what all ranks know of all pairs; `groups` encodes those of a step
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import datasets
from torch import Tensor

from harness.ranks import gather_objects
from model.prompts import PromptEncoder
from model.qwen import Policy
from model.records import ExampleError, Group
from sources.lazily import Lazily, usable
from sources.tables import open_table, read_record

COLUMNS = {"images", "question", "instruction", "chosen", "rejected"}


@dataclass(frozen=True)
class PairReader:
    """Encodes the pairs of a table, one by one."""

    table: datasets.Dataset
    encoder: PromptEncoder
    eos_id: int
    suppressed: Tensor  # (V,) bool, on the CPU
    max_prompt_tokens: int
    max_response_tokens: int

    def read(self, i: int) -> Group:
        """Pair i as [chosen, rejected]. Raises ExampleError if it cannot be used."""
        record = read_record(self.table, i)
        record["id"] = str(record.get("id") or i)
        prompt = self.encoder.encode(record, self.max_prompt_tokens)
        texts = [record[side][-1]["content"] for side in ("chosen", "rejected")]
        responses = [self.encoder.encode_completion(text, self.eos_id) for text in texts]

        name = f"example {record['id']}"
        longest = max(len(ids) for ids in responses)
        if longest > self.max_response_tokens:
            # Cut off, it would lose the EOS and teach the model not to stop.
            raise ExampleError(
                f"{name}: response of {longest} tokens is over --max_response_tokens"
            )
        if not all(text.strip() for text in texts):
            raise ExampleError(f"{name}: empty response")
        if any(self.suppressed[ids].any() for ids in responses):  # logp would be -inf
            raise ExampleError(f"{name}: response holds an image, special or unknown token")
        return Group(prompt, responses)


@dataclass(frozen=True)
class Pairs:
    """The usable pairs of a table, the same ones on every rank."""

    rows: list[int]  # where each is in the table
    lengths: list[int]  # tokens of the longer response
    digest: str  # of everything that is encoded
    chosen_only: bool
    lazily: Lazily[Group]

    def __len__(self) -> int:
        return len(self.lengths)

    def first(self) -> Group:
        """The first pair, for filler passes."""
        return next(self.batches([[0]]))[0]

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[list[Group]]:
        """The groups of each batch of pairs: [chosen, rejected], or [chosen] for --loss sft.

        The next batch is encoded while one is in use.
        """
        rows = [[self.rows[i] for i in batch] for batch in batches]
        for groups in self.lazily.batches(rows):
            if self.chosen_only:
                groups = [Group(group.prompt, group.completions[:1]) for group in groups]
            yield groups


def load_pairs(
    cfg, encoder: PromptEncoder, policy: Policy, warn: Callable[[str], None], accelerator
) -> Pairs:
    """The pairs of --pairs, from the settings of `dpo_sft.py`.

    Pairs that cannot be used are named to `warn` and skipped, the same ones whatever the loss.
    Raises ValueError naming --pairs if a column is missing, or too few pairs can be used.
    """
    table = open_table(cfg.pairs, "train", "--pairs", cfg.revision)
    missing = COLUMNS - set(table.column_names)
    if missing:
        raise ValueError(
            f"--pairs {cfg.pairs}: columns {sorted(missing)} are missing; "
            "build_prefs.py writes them"
        )
    reader = PairReader(
        table,
        encoder,
        policy.eos_ids[0],
        policy.suppressed.cpu(),
        cfg.max_prompt_tokens,
        cfg.max_response_tokens,
    )
    lazily = Lazily(reader.read)
    checked = check_pairs(lazily, len(table), warn, accelerator)

    world_size = accelerator.num_processes
    if not checked:
        raise ValueError(f"--pairs {cfg.pairs}: none of its {len(table)} pairs can be used")
    if len(checked) < world_size:
        raise ValueError(
            f"--pairs {cfg.pairs}: {len(checked)} pairs for {world_size} processes, each needs one"
        )
    return Pairs(
        rows=[pair.row for pair in checked],
        lengths=[pair.length for pair in checked],
        digest=hashlib.sha256("".join(pair.digest for pair in checked).encode()).hexdigest(),
        chosen_only=cfg.loss == "sft",
        lazily=lazily,
    )


@dataclass(frozen=True)
class Checked:
    """What every rank keeps of a usable pair."""

    row: int  # in the table
    length: int  # tokens of the longer response
    digest: str


def check_pairs(
    lazily: Lazily[Group], count: int, warn: Callable[[str], None], accelerator
) -> list[Checked]:
    """Encode every pair once, each rank its share; what all ranks found, in order."""
    mine = range(accelerator.process_index, count, accelerator.num_processes)
    checked = []
    for i, group in usable(lazily, mine, warn):
        length = max(len(ids) for ids in group.completions)
        checked.append(Checked(i, length, digest_of(group)))

    everything = sum(gather_objects(checked, accelerator), [])
    return sorted(everything, key=lambda pair: pair.row)


def digest_of(group: Group) -> str:
    """A hash of token ids, positions and pixels.

    Trap: if one of them were left out, a later run could silently read reference log-probs of
    other pairs (test_reference_cache_key).
    """
    tensors = [group.prompt.ids, group.prompt.positions, *group.completions]
    if group.prompt.pixel_values is not None:
        tensors.append(group.prompt.pixel_values)

    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
