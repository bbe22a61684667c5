"""The command line of a stage, made from its settings.

    settings dataclass          each field has a type, a default, and a help text made by `flag`
      -> argparse               one flag per field: the stage's own first, shared ones in groups
      -> settings instance      checked by the dataclass' __post_init__

`@file` on the command line reads flags from a file (see configs/). Its lines are split as a shell
splits them: `#` starts a comment, and quotes keep a value with blanks together.
"""

import argparse
import dataclasses
import difflib
import inspect
import os
import shlex
import sys
import typing
from pathlib import Path

from harness.plan import plan
from harness.ranks import is_lost_rank, leave_without
from harness.resume import settings_of_run
from harness.stopping import listening


def flag(default, text: str, alias: str | None = None, changeable: bool = False):
    """A dataclass field that becomes a command-line flag.

    default      value if the flag is not given
    text         help text, in the order: what it is, unit, source
    alias        a second name of the flag, which works as well
    changeable   --resume may change it: it decides how long, how often or how fast, and not what is
                 computed
    """
    metadata = {"help": text, "alias": alias, "changeable": changeable}
    return dataclasses.field(default=default, metadata=metadata)


# --- What the stages call ------------------------------------------------------------------------


def parse_cli(config_class, doc: str, argv: list[str] | None = None):
    """Read the command line into an instance of a settings dataclass.

    config_class   the settings of the stage
    doc            the first part of --help, usually the stage's module docstring
    argv           the arguments; None reads those of the process

    With --resume, what is not given is as in the run that goes on (`harness/resume.py`).

    A wrong flag or value ends the program with a message that names it. For an unknown flag the
    message also names the nearest flag that exists.
    """
    parser = make_parser(config_class, doc)
    try:
        values, unknown = parser.parse_known_args(argv)
        if unknown:
            raise ValueError(unknown_flag_message(unknown[0], config_class))
        given = vars(values)
        if given.get("resume"):
            given = settings_of_run(config_class, given)
        return config_class(**given)  # its __post_init__ checks which values go together
    except ValueError as error:
        parser.error(str(error))


def run_stage(main, config) -> None:
    """Run a stage's main, or print its --plan.

    A mistake of the user ends it with one line instead of a traceback.

    ValueError and OSError are such mistakes, for example a wrong path or a full disk. An error in
    the code can look the same, so the message says how to see the traceback. Ctrl-C and SIGTERM end
    the run after its step (`harness/stopping.py`). If another rank has died, this one ends as well.
    """
    show_traceback = os.environ.get("SPECS_TRACEBACK") == "1"
    try:
        if config.plan:
            print(plan(config))
        else:
            with listening():
                main(config)
    except (ValueError, OSError, RuntimeError) as error:
        if show_traceback:
            raise
        if is_lost_rank(error):
            leave_without(error)
        if isinstance(error, RuntimeError):
            raise
        sys.exit(f"error: {error}\n(SPECS_TRACEBACK=1 in the environment shows the traceback)")


def split_names(text: str, flag_name: str) -> dict[str, str]:
    """The text "NAME=FOLDER,NAME=FOLDER" as a dictionary; "" is an empty one.

    Raises ValueError naming the flag if a part has no `=`, or if two have one name.
    """
    folders = {}
    for part in text.split(","):
        if not part:
            continue
        if "=" not in part:
            # The model of a run is in its folder `model`; --gf_runs wants the run itself.
            is_run = flag_name == "--models" and Path(part, "model").is_dir()
            folder = f"{part}/model" if is_run else part
            name = Path(folder).parent.name or "model"
            raise ValueError(
                f"{flag_name} {part}: wanted NAME=FOLDER, as in {flag_name} {name}={folder}"
            )
        name, folder = part.split("=", 1)
        if name in folders:
            raise ValueError(f"{flag_name} {text}: the name {name} is given twice")
        folders[name] = folder
    return folders


# --- From a dataclass to argparse ----------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong; a list of all flags would push it off the screen."""

    def error(self, message: str):
        usage = f"usage: {self.prog} [@FILE] [--FLAG VALUE ...]      (--help lists the flags)"
        self.exit(2, f"error: {message}\n{usage}\n")


def make_parser(config_class, doc: str) -> argparse.ArgumentParser:
    """An argparse parser with one group of flags for the stage, and one per shared class.

    What it parses holds only the flags that were given: defaults are those of the dataclass.
    """
    parser = Parser(
        description=doc,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        fromfile_prefix_chars="@",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.convert_arg_line_to_args = split_line

    hints = typing.get_type_hints(config_class)
    classes = inspect.getmro(config_class)  # the stage's class first, then its base classes
    for owner in classes:
        fields = [
            field for field in dataclasses.fields(config_class)
            if first_class_with(field.name, classes) is owner
        ]  # fmt: skip
        if not fields:
            continue
        title = "settings of this stage"
        if owner is not config_class:
            title = owner.__doc__.splitlines()[0].rstrip(".")
        group = parser.add_argument_group(title)
        for field in fields:
            add_flag(group, field, value_type(hints[field.name]))
    return parser


def first_class_with(name: str, classes: tuple[type, ...]) -> type:
    """The class that introduces a field: --help shows the flag in the group of this class.

    Example: `settings.Optimizer` introduces `lr`, and `dpo_sft.Config` gives it another default.
    So `dpo_sft.py --help` shows `lr` with that default, in the group of `Optimizer`.
    """
    for owner in reversed(classes):  # base classes first
        if name in inspect.get_annotations(owner):
            return owner
    raise KeyError(name)


def value_type(hint) -> type:
    """The type of a flag's value: int for fields of type `int` and of type `int | None`."""
    members = typing.get_args(hint)  # (int, NoneType) for `int | None`, () for `int`
    return members[0] if members else hint


def add_flag(group, field: dataclasses.Field, kind: type) -> None:
    """Add the flag of one field, with its alias. A bool `--name` also gets its twin `--no_name`."""
    names = [f"--{field.name}"]
    if field.metadata["alias"]:
        names.append(f"--{field.metadata['alias']}")
    text = f"{field.metadata['help']} (default: {field.default})"
    text = text.replace("%", "%%")  # argparse would read a bare % as a format
    common = {"dest": field.name, "default": argparse.SUPPRESS}

    if kind is not bool:
        group.add_argument(*names, **common, help=text, type=kind, metavar=kind.__name__)
        return

    if field.default:
        text += f"; --no_{field.name} turns it off"
    group.add_argument(*names, **common, help=text, action="store_true")
    group.add_argument(
        f"--no_{field.name}", **common, help=argparse.SUPPRESS, action="store_false"
    )


def split_line(line: str) -> list[str]:
    """One line of an @file as arguments. Raises ValueError if a quote is not closed."""
    try:
        return shlex.split(line, comments=True)
    except ValueError as error:
        raise ValueError(f"{error} in the line: {line}") from error


# What other trainers call it.
SYNONYMS = {
    "num_generations": "group_size", "max_completion_length": "max_new_tokens",
    "output_dir": "run_dir", "dataset": "data", "train_file": "data", "epsilon": "clip_low",
    "epsilon_high": "clip_high", "num_train_epochs": "epochs", "model_name_or_path": "model",
    "batch_size": "prompts_per_step", "per_device_train_batch_size": "batch_pairs",
    "save_steps": "save_every", "report_to": "log_with", "pref_beta": "beta",
}  # fmt: skip
# What another stage calls it.
OTHER_STAGES = {
    "steps": "max_steps", "max_steps": "steps", "items": "max_examples",
    "questions": "max_examples", "max_examples": "items", "rows": "items",
    "prompts_per_step": "batch_pairs", "batch_pairs": "prompts_per_step",
    "samples": "group_size", "group_size": "samples",
}  # fmt: skip


def unknown_flag_message(flag_text: str, config_class) -> str:
    """What to say about a flag that does not exist: the nearest one that does."""
    nearest = nearest_flag(flag_text.split("=")[0].lstrip("-").replace("-", "_"), config_class)
    hint = f", did you mean --{nearest}?" if nearest else "; see --help"
    return f"unknown flag {flag_text}{hint}"


def nearest_flag(name: str, config_class) -> str | None:
    """The flag that other trainers call so, that its help calls so, or that is spelt most alike."""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    for names in (SYNONYMS, OTHER_STAGES):
        if names.get(name) in fields:
            return names[name]

    close = difflib.get_close_matches(name, fields, n=1, cutoff=0.75)
    if close:
        return close[0]
    words = name.replace("_", " ")
    for field in fields.values():
        if words in field.metadata["help"]:
            return field.name
    close = difflib.get_close_matches(name, fields, n=1)
    return close[0] if close else None
