"""Examples to prompts: an endless shuffled stream for GRPO, lists for the other stages.

An example that cannot be used (an over-long prompt, a broken image) raises ExampleError. Here it is
skipped and reported through `warn`: one bad example does not end a run, and none is lost silently.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from harness.randomness import random_of
from model.prompts import PromptEncoder
from model.records import ExampleError, Prompt
from sources.lazily import Lazily, Prompts, Room, without_refused
from sources.mixture import digest_of_answers

MOST_REPORTED = 5  # examples that are named, of those that cannot be used

Value = TypeVar("Value")


class PromptStream:
    """Endless encoded prompts of this rank's part of the examples, reshuffled every epoch.

    All ranks agree on the shuffled order of an epoch; rank r of R takes every R-th example of it,
    from the r-th on (test_ranks_get_disjoint_prompts). What remains when the examples are not a
    multiple of R, the end of the order, waits for another epoch and its other order.

    The next prompts are encoded in the background while the last ones are in use; only those that
    were taken count as read (test_a_stream_is_encoded_ahead).

    Trap: if the first ranks took the remainder as well, their epochs would be longer than those of
    the others. Ranks would drift apart, and meet at the same example in different epochs
    (test_ranks_go_from_epoch_to_epoch_together). Only a skipped example moves its rank ahead.

    position: examples read so far. Setting it resumes the stream exactly.
    skipped: how many of them could not be used.
    """

    def __init__(
        self,
        examples: Sequence[dict],
        encoder: PromptEncoder,
        *,
        seed: int,
        max_prompt_tokens: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        warn: Callable[[str], None] = print,
    ):
        if len(examples) < world_size:
            raise ValueError(
                f"--data: {len(examples)} examples for {world_size} processes, each needs one"
            )
        self.examples = examples
        self.encoder = encoder
        self.seed = seed
        self.max_prompt_tokens = max_prompt_tokens
        self.warn = warn

        self.position = 0
        self.skipped = 0
        self.reported: set[int] = set()  # examples that were warned about: once, not every epoch
        shared_out = len(examples) - len(examples) % world_size  # equally, without the remainder
        # Positions in the shuffled order, of any epoch, that belong to this rank.
        self.places = range(rank, shared_out, world_size)
        self.orders: dict[int, list[int]] = {}  # epoch -> order of the examples
        self.answers = digest_of_answers(examples)
        self.lazily = Lazily(self.encode, Room(left=0))

    def __iter__(self) -> Iterator[Prompt]:
        skipped_in_a_row = 0
        while True:
            index = self.next_index()
            try:
                prompt = self.lazily.get([index])[0]
            except ExampleError as error:
                self.report(index, error)
                self.skipped += 1
                skipped_in_a_row += 1
                # A single good one may be the first of an epoch and the last of the next.
                if skipped_in_a_row > 2 * (len(self.places) - 1):  # there is none
                    raise ValueError(
                        f"--data: none of {len(self.places)} examples can be used, "
                        f"the last: {error}"
                    ) from error
                continue
            skipped_in_a_row = 0
            yield prompt

    def next_index(self) -> int:
        """The index of the next example, and one step forward."""
        index = self.index_at(self.position)
        self.position += 1
        return index

    def index_at(self, position: int) -> int:
        """The index of the example at a position, of any epoch."""
        epoch, step = divmod(position, len(self.places))
        if epoch not in self.orders:
            now = self.position // len(self.places)
            self.orders = {e: order for e, order in self.orders.items() if e >= now}
            self.orders[epoch] = list(range(len(self.examples)))
            # All ranks shuffle alike.
            random_of(self.seed, f"order of epoch {epoch}").shuffle(self.orders[epoch])
        return self.orders[epoch][self.places[step]]

    def preview(self, count: int) -> list[Prompt]:
        """Up to `count` prompts from all over the examples; the stream stays where it is.

        Those that cannot be used are left out and warned about, by the first rank alone.
        """
        apart = max(1, len(self.examples) // count)
        prompts = []
        for index in range(0, len(self.examples), apart)[:count]:
            try:
                prompts.append(self.encode(index))
            except ExampleError as error:
                if self.places.start == 0:
                    self.report(index, error)
        return prompts

    def report(self, index: int, error: ExampleError) -> None:
        """Warn about an example that cannot be used: once, not every epoch, and not about all."""
        if index in self.reported:
            return
        self.reported.add(index)
        if len(self.reported) <= MOST_REPORTED:
            self.warn(f"skipped, in every epoch: {error}")
        if len(self.reported) == MOST_REPORTED:
            self.warn("others that cannot be used are counted only, as skipped_examples")

    def encode(self, index: int) -> Prompt:
        return self.encoder.encode(self.examples[index], self.max_prompt_tokens)

    def state(self) -> dict[str, int | str]:
        """What `restore` needs to go on exactly here."""
        return {
            "position": self.position,
            "skipped": self.skipped,
            "examples": len(self.examples),
            "answers": self.answers,
        }

    def restore(self, state: dict[str, int | str]) -> None:
        """Go on where `state` was saved. Raises ValueError if the data are others than then."""
        if state.get("answers", self.answers) != self.answers:
            raise ValueError(
                "--resume: the answers in --data are not those that the run was saved with. "
                "Restore the data, or start anew"
            )
        saved = state.get("examples", len(self.examples))
        if saved != len(self.examples):
            raise ValueError(
                f"--resume: --data has {len(self.examples)} examples now, and had {saved} when the "
                "run was saved: their order would be another one. Restore the data, or start anew"
            )
        self.position = state["position"]
        self.skipped = state["skipped"]

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts; as many behind them begin to be encoded."""
        stream = iter(self)
        prompts = [next(stream) for _ in range(count)]
        following = range(self.position, self.position + count)
        self.lazily.start(self.index_at(position) for position in following)
        return prompts


def read_usable(
    read: Callable[[int], Value], indices: Iterable[int], warn: Callable[[str], None]
) -> list[Value]:
    """`read(i)` for every index for which it works, in order; `warn` reports the others."""
    return [value for _, value in without_refused(read, indices, warn)]


def read_all(examples: Sequence[dict], warn: Callable[[str], None]) -> list[dict]:
    """Every example that can be read, in order."""
    return read_usable(examples.__getitem__, range(len(examples)), warn)


def encode_all(
    examples: Sequence[dict],
    encoder: PromptEncoder,
    max_prompt_tokens: int | None = None,
    warn: Callable[[str], None] = print,
    rank: int = 0,
    world_size: int = 1,
) -> Prompts:
    """The prompts of this rank's part of the examples. Raises ValueError without any."""
    indices = range(rank, len(examples), world_size)
    prompts = Prompts(examples, encoder, max_prompt_tokens, warn, indices)
    if not prompts:
        raise ValueError(f"--data: none of {len(examples)} examples can be used")
    return prompts


class EncodedSets:
    """This rank's share of each set, encoded once per distinct tokenizer, chat template and image
    processor.

    Models that share these share the prompts. Rank r of R takes every R-th example; of a small set
    it may get none.
    """

    def __init__(
        self,
        sets: dict[str, list[dict]],
        accelerator,
        max_prompt_tokens: int | None,
        warn: Callable[[str], None],
    ):
        rank, world_size = accelerator.process_index, accelerator.num_processes
        self.sets = {name: examples[rank::world_size] for name, examples in sets.items()}
        self.max_prompt_tokens = max_prompt_tokens
        self.warn = warn
        self.encoded: dict[str, dict[str, Prompts]] = {}
        self.room = Room()  # of all sets together

    def for_encoder(self, encoder: PromptEncoder) -> dict[str, Prompts]:
        """Name of the set -> its prompts."""
        key = self.key(encoder)
        if key not in self.encoded:
            prompts = {}
            for name, examples in self.sets.items():
                rows = range(len(examples))
                prompts[name] = Prompts(
                    examples, encoder, self.max_prompt_tokens, self.warn, rows, self.room
                )
                if examples and not prompts[name]:
                    raise ValueError(f"--data: none of {len(examples)} examples can be used")
            self.encoded[key] = prompts
        return self.encoded[key]

    def key(self, encoder: PromptEncoder) -> str:
        """All that the prompts depend on: vocabulary, chat template, how images are resized."""
        tokenizer = encoder.tokenizer
        vocabulary = tokenizer.backend_tokenizer.to_str()
        return f"{vocabulary} {tokenizer.chat_template} {encoder.image_processor}"
