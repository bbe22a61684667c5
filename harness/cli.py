"""The command line of a stage, made from its settings.

    settings dataclass          each field has a type, a default, and a help text made by `flag`
      -> argparse               one flag a field: the stage's own first, shared settings in groups
      -> settings instance      checked by the dataclass' __post_init__

`@file` on the command line reads flags from a file (see configs/). `#` starts a comment there.
"""

import argparse
import dataclasses
import difflib
import sys
import typing


def flag(default, text: str, alias: str | None = None):
    """A dataclass field that becomes a command-line flag.

    default: value if the flag is not given.
    text: help text, in the order: what it is, unit, source.
    alias: a second name of the flag, which works as well.
    """
    return dataclasses.field(default=default, metadata={"help": text, "alias": alias})


def parse_cli(config_class, doc: str, argv: list[str] | None = None):
    """Read the command line into an instance of a settings dataclass.

    A wrong flag or value ends the program with a message that names it. An unknown flag also names
    the nearest flag that exists. A bool `--name` has a twin `--no_name`.

    doc: the first part of --help, usually the stage's module docstring.
    argv: the arguments; None reads those of the process.
    """
    parser = make_parser(config_class, doc)
    values, unknown = parser.parse_known_args(argv)

    if unknown:
        parser.error(unknown_flag_message(unknown[0], parser))
    try:
        return config_class(**vars(values))
    except ValueError as error:  # __post_init__ checks which values go together
        parser.error(str(error))


def split_names(text: str, flag_name: str) -> dict[str, str]:
    """The text "NAME=FOLDER,NAME=FOLDER" as a dictionary; "" is an empty one.

    Raises ValueError naming the flag if a part has no `=`.
    """
    folders = {}
    for part in text.split(","):
        if not part:
            continue
        if "=" not in part:
            raise ValueError(f"{flag_name} {text}: wanted NAME=FOLDER,NAME=FOLDER")
        name, folder = part.split("=", 1)
        folders[name] = folder
    return folders


def run_stage(main, config) -> None:
    """Run a stage's main. An error that the user can mend is one line instead of a traceback."""
    try:
        main(config)
    except (ValueError, FileExistsError) as error:
        sys.exit(f"error: {error}")


def make_parser(config_class, doc: str) -> argparse.ArgumentParser:
    """An argparse parser with the flags of a stage, then those of each shared settings class."""
    parser = argparse.ArgumentParser(
        description=doc,
        allow_abbrev=False,
        fromfile_prefix_chars="@",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.convert_arg_line_to_args = lambda line: line.split("#")[0].split()

    hints = typing.get_type_hints(config_class)
    for owner, fields in fields_by_class(config_class).items():
        if owner is config_class:
            group = parser.add_argument_group("settings of this stage")
        else:
            group = parser.add_argument_group(owner.__doc__.splitlines()[0].rstrip("."))
        for field in fields:
            add_flag(group, field, value_type(hints[field.name]))
    return parser


def fields_by_class(config_class) -> dict[type, list[dataclasses.Field]]:
    """The fields of a settings class by the class that introduces them, the stage's own first.

    A stage that overrides a shared default leaves the field with the class it comes from.
    """
    classes = [owner for owner in config_class.__mro__ if dataclasses.is_dataclass(owner)]
    introduced_by = {}
    for owner in classes:  # from the stage to its bases: the base comes last, and stays
        for name in vars(owner).get("__annotations__", {}):
            introduced_by[name] = owner

    by_class = {owner: [] for owner in classes if owner in introduced_by.values()}
    for field in dataclasses.fields(config_class):
        by_class[introduced_by[field.name]].append(field)
    return by_class


def value_type(hint) -> type:
    """The type of a flag's value: int for fields of type `int` and `int | None`."""
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    return members[0] if members else hint


def add_flag(group, field: dataclasses.Field, kind: type) -> None:
    """Add the flag of one field, with its alias; a bool also gets its `--no_` twin."""
    alias = field.metadata["alias"]
    names = [f"--{field.name}"] + ([f"--{alias}"] if alias else [])
    text = f"{field.metadata['help']} (default: {field.default})"

    if kind is not bool:
        options = {"type": kind, "metavar": kind.__name__}
    else:
        options = {"action": "store_true"}
        text += f"; --no_{field.name} turns it off" if field.default else ""
        # Both twins get the default: argparse takes the one of the first, and `store_false` has
        # True.
        group.add_argument(
            f"--no_{field.name}", dest=field.name, action="store_false", default=field.default,
            help=argparse.SUPPRESS,
        )  # fmt: skip
    text = text.replace("%", "%%")  # argparse would take a bare % as a format
    group.add_argument(*names, dest=field.name, default=field.default, help=text, **options)


def unknown_flag_message(flag_text: str, parser: argparse.ArgumentParser) -> str:
    """What to say about a flag that does not exist: the nearest one that does."""
    known = [name for action in parser._actions for name in action.option_strings]
    nearest = difflib.get_close_matches(flag_text.split("=")[0], known, n=1)
    hint = f", did you mean {nearest[0]}?" if nearest else "; see --help"
    return f"unknown flag {flag_text}{hint}"
