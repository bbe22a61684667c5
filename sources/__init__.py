"""Where examples come from, how they become prompts, and what is kept of the responses.

    tables.py      folders, files and hub data sets, opened by the `datasets` library
    orsta.py, virl39k.py, mm_eureka.py       public training sets, on rows.py
    duplicates.py  the same question twice, in training or in an evaluation
    columns.py     which of their columns is what, and a record as an example
    mixture.py     several sources as one, with shares
    understood.py  what is said about the data before the first step
    toy.py         the embedded world: its examples, its evaluation sets, its formats
    held_out.py    examples that a run does not train on, to measure its accuracy on
    stream.py      examples to prompts: an endless shuffled stream, or a list
    responders.py  who writes the responses of stage 2a: a model that is sampled here, or others
    elsewhere.py   responses of others: from a file, or from an endpoint
    pairs.py       writes the preference pairs of stage 2a
    funnel.py      counts what became of the responses that stage 2a sampled

An *example* is a dictionary, the same for every source:

    id            str    names the example in errors and files
    images        list   PIL images, paths or encoded files (`model/images.py`), in the order of the
                         `<image>` placeholders (without placeholders all images come first)
    question      str    without any format instruction
    instruction   str    the format that is asked for ("" for none), appended to the question
    format        str    name of that format, for reports
    answer        str    gold, never empty
    answer_type   str    "number", "choice", "math", "text" or "boxes": how `rewards` compares
    choices       list   option texts of a "choice" example, [] otherwise
    kind          str    a label to report by (question type, category)
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from model.prompts import PromptEncoder
from sources.columns import refuse_columns_of_none
from sources.held_out import HeldOut, split_held_out
from sources.mixture import Mixture, parse_sources
from sources.mm_eureka import mm_eureka_examples
from sources.orsta import orsta_examples
from sources.stream import PromptStream, read_all, read_usable
from sources.tables import table_examples
from sources.toy import evaluation_sets, toy_examples
from sources.virl39k import virl39k_examples

PUBLIC = {  # NAME, or NAME:FOLDER
    "orsta": orsta_examples,
    "virl39k": virl39k_examples,
    "mm_eureka": mm_eureka_examples,
}
EVALUATED = 510  # questions in each set of `toy`, where nobody says how many


def load_examples(
    source: str,
    *,
    split: str = "train",
    count: int | None = None,
    seed: int = 0,
    instruction: str | None = None,
    columns: str = "",
    revision: str = "",
) -> Sequence[dict]:
    """The examples of a source, or of several.

    source: `toy`, `orsta:FOLDER`, `virl39k:FOLDER` (without a folder: from the hub),
        `mm_eureka:FILE`, or what `datasets` opens: a folder, a file (parquet, jsonl, json, csv) or
        a hub name, with at least the columns `question` and `answer`.
        Several of these, separated by commas, are mixed (`mixture.py`).
    split: a split of a folder or hub data set. A file has none, so there `split` has no effect.
        `toy` has "train", and any other name is the held-out split.
    count: how many examples, the first ones of a table; None for all (`toy`: 2048).
    seed: of the questions that `toy` draws. A table ignores it.
    instruction: the format instruction of each example; None for the one of the source.
    columns: which columns are what, if they have other names (`columns.py`). In a mixture a name
        holds for every table that has this column.
    revision: of a hub data set.

    Raises ValueError naming --data if there is no example. Examples of a table are read, and their
    images still encoded, when they are asked for: one that cannot be used raises ExampleError then.
    """
    sources = parse_sources(source)
    table = dict(split=split, seed=seed, instruction=instruction)
    table |= dict(columns=columns, revision=revision)
    if len(sources) == 1:
        examples = examples_of(sources[0].name, count, **table)
    else:
        table["of_a_mixture"] = True
        parts = [examples_of(part.name, None, **table) for part in sources]
        refuse_columns_of_none(columns, parts, source)
        examples = Mixture(sources, parts, count)
    if not len(examples):
        raise ValueError(f"--data {source}: split {split!r} has no examples")
    return examples


def examples_of(
    source: str,
    count: int | None,
    *,
    split: str,
    seed: int,
    instruction: str | None,
    columns: str,
    revision: str,
    of_a_mixture: bool = False,
) -> Sequence[dict]:
    """The examples of one source; the arguments are those of `load_examples`."""
    name, _, folder = source.partition(":")
    if source == "toy":
        return toy_examples(count, seed, held_out=split != "train", instruction=instruction)
    if name in PUBLIC:
        return PUBLIC[name](folder, count, instruction)
    return table_examples(source, split, count, instruction, columns, revision, of_a_mixture)


def load_evaluation_sets(
    source: str,
    *,
    split: str,
    count: int | None,
    seed: int,
    instruction: str | None,
    columns: str = "",
    revision: str = "",
    warn: Callable[[str], None],
    say: Callable[[str], None] = print,
) -> dict[str, list[dict]]:
    """Held-out examples by name of the set; `id` (in-distribution) is drawn like the training data.

    `shuffled` is `id` with the images of other questions, where there are images to shuffle; `toy`
    has other sets as well. The arguments are those of `load_examples`; examples that cannot be read
    are reported through `warn`.
    """
    if source == "toy":
        sets = evaluation_sets(EVALUATED if count is None else count, seed)
    else:
        examples = load_examples(
            source, split=split, count=count, instruction=instruction, columns=columns,
            revision=revision,
        )  # fmt: skip
        say("\n".join(examples.understood()))
        sets = {"id": with_unique_ids(read_all(examples, warn), warn)}

    shuffled = with_shuffled_images(sets["id"], warn)
    if shuffled:
        sets["shuffled"] = shuffled
    return sets


def with_unique_ids(examples: list[dict], warn: Callable[[str], None]) -> list[dict]:
    """The same examples; of those that share an id, all but the first get another one.

    Trap: pass@k puts the responses of one id together (test_ids_that_come_twice_are_told_apart).
    """
    seen: Counter[str] = Counter()
    result = []
    for example in examples:
        seen[example["id"]] += 1
        number = seen[example["id"]]
        name = example["id"] if number == 1 else f"{example['id']} ({number})"
        result.append({**example, "id": name})

    repeats = seen.total() - len(seen)
    if repeats:
        name = f"{seen.most_common(1)[0][0]} (2)"
        warn(f"{repeats} examples have the id of another; they are counted on, as in {name!r}")
    return result


def with_shuffled_images(
    examples: list[dict], warn: Callable[[str], None] = print
) -> list[dict]:
    """Each question with the images of another one that has equally many, in the same order.

    The other one is a third of the list away, in the list of examples with that number of images:
    neighbours in a file are often questions about one image, and would get the right one. An
    example is left out if no other has that number, and `warn` says how many these are. Examples
    without images are left out as well.

    Trap: with images of any other example, some questions would have more or fewer `<image>`
    placeholders than images. Such prompts are refused, and what remains is another set of questions
    than `id` (test_shuffled_images_are_equally_many).
    """
    by_count: dict[int, list[int]] = defaultdict(list)  # number of images -> indices
    for i, example in enumerate(examples):
        if example["images"]:
            by_count[len(example["images"])].append(i)

    other_of: dict[int, int] = {}  # index of an example -> index of the one whose images it gets
    alone = 0
    for indices in by_count.values():
        if len(indices) == 1:
            alone += 1
            continue
        shift = max(1, len(indices) // 3)
        other_of.update(zip(indices, indices[shift:] + indices[:shift]))

    if alone:
        left_out = f"{alone} of {len(examples)} examples are left out"
        warn(f"shuffled images: {left_out}, no other has as many images")
    return [{**examples[i], "images": examples[other_of[i]]["images"]} for i in sorted(other_of)]


def build_stream(
    cfg, encoder: PromptEncoder, accelerator, warn
) -> tuple[PromptStream, HeldOut]:
    """This rank's stream of prompts to train on, and its held-out ones.

    cfg: the settings of `grpo.py`. Without --eval_every nothing is held out.
    """
    examples = load_examples(
        cfg.data, count=cfg.max_examples, seed=cfg.seed, instruction=cfg.instruction,
        columns=cfg.columns, revision=cfg.revision,
    )  # fmt: skip
    held_out = []
    if cfg.eval_every:
        examples, held_out = split_held_out(examples, cfg)

    rank, world_size = accelerator.process_index, accelerator.num_processes
    stream = PromptStream(
        examples,
        encoder,
        seed=cfg.seed,
        max_prompt_tokens=cfg.max_prompt_tokens,
        rank=rank,
        world_size=world_size,
        warn=warn,
    )
    prompts = read_usable(
        lambda i: encoder.encode(held_out[i], cfg.max_prompt_tokens),
        range(rank, len(held_out), world_size),
        warn,
    )
    return stream, HeldOut(prompts)
