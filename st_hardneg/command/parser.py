"""The words of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

import st_hardneg

_DESCRIPTION = "Mine hard negatives, look at them, correct them, publish them."
_INPUT = "Hub id, saved dataset, BEIR folder, or .csv / .tsv / .json / .jsonl / .parquet file"


class _Parser(argparse.ArgumentParser):
    """Says which flag may have been meant, and where all of them are listed."""

    flags: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        said, _, unknown = message.partition("unrecognized arguments: ")
        names = [word.partition("=")[0] for word in unknown.split() if word.startswith("--")] if not said else []
        meant = [near for name in names for near in get_close_matches(name, self.flags, 1)]
        hint = f" Did you mean {meant[0]}?" if meant else ""
        super().error(f"{message}.{hint}" if hint else message)


def make_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser. The flags of the recipe take seconds to import, and are there where they are asked for.

    Args:
        words: The command line.
    """
    parser = _Parser(prog="st-hardneg", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"st-hardneg {st_hardneg.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    command = next((word for word in words if not word.startswith("-")), None)
    _demo(commands)
    _mine(commands, with_recipe=command == "mine")
    _report(commands)
    _review(commands)
    _export(commands)
    _push(commands)
    if command in commands.choices:
        parser.flags = list(commands.choices[command]._option_string_actions)
    return parser


def _command(commands: Any, name: str, what: str, module: str, function: str = "run") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
    parser.add_argument("--verbose", action="store_true", help="say more, and show where an error comes from")

    def run(asked: argparse.Namespace) -> None:
        from importlib import import_module

        getattr(import_module(f"st_hardneg.command.{module}"), function)(asked)

    parser.set_defaults(run=run)
    return parser


def _demo(commands: Any) -> None:
    parser = _command(
        commands, "demo", "mine and train on Python's own docstrings, offline, in a minute or two", "demo"
    )
    parser.add_argument("--output", default="st-hardneg-demo", help="folder for what it writes (default: %(default)s)")


def _mine(commands: Any, *, with_recipe: bool) -> None:
    parser = _command(commands, "mine", "mine hard negatives for (anchor, positive) rows", "mine")
    parser.add_argument("input", help=_INPUT)
    parser.add_argument("--config", help="YAML file with any of the options below, written as in Python")
    parser.add_argument("--dry-run", action="store_true", help="mine a sample, estimate the cost, write nothing")
    run = parser.add_argument_group("what is mined, and with what")
    run.add_argument("--output", help="folder to save to (default: hard-negatives)")
    run.add_argument("--report", help="page to write (default: the folder's name and .html)")
    run.add_argument("--model", help="Sentence Transformer: a name or a folder")
    run.add_argument(
        "--corpus", help="texts to search besides the positives: a file with a column `text`, or a .txt file"
    )
    run.add_argument("--anchor-column-name", help="the anchor column")
    run.add_argument("--positive-column-name", help="the positive column")
    run.add_argument("--split", help="split of a Hub dataset, a saved DatasetDict or a BEIR folder (default: train)")
    run.add_argument("--subset", help="configuration of a Hub dataset")
    run.add_argument("--cross-encoder", help="CrossEncoder that rescores every candidate: a name or a folder")
    run.add_argument("--batch-size", type=int, help="texts encoded at once (default: 32)")
    run.add_argument("--cache-folder", help="folder to keep vectors in")
    run.add_argument("--use-faiss", action="store_true", default=None, help="search with FAISS")
    if with_recipe:
        from st_hardneg.command.recipe import add_flags

        add_flags(parser)


def _report(commands: Any) -> None:
    parser = _command(
        commands, "report", "print the report of a mined dataset, and write it as a page", "look", "report"
    )
    parser.add_argument("dataset", help="folder that `mine` has written")
    parser.add_argument("--output", help="the page (default: the folder's name and .html)")
    parser.add_argument("--projection", choices=["pca", "umap"], default="pca", help="how the map is laid out")


def _review(commands: Any) -> None:
    parser = commands.add_parser("review", help="let a person label the most doubtful texts")
    parts = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    export = _command(parts, "export", "write the most doubtful texts as a page, CSV or JSON lines", "review", "export")
    export.add_argument("dataset", help="folder that `mine` has written")
    export.add_argument("--output", default="review.html", help=".html, .csv or .jsonl (default: %(default)s)")
    export.add_argument("--number", type=int, default=100, help="how many texts (default: %(default)s)")
    export.add_argument("--cross-encoder", help="CrossEncoder that proposes labels: a name or a folder")
    export.add_argument(
        "--lowest-percentile", type=float, help="of the right answers' scores, to propose (default: 25)"
    )
    export.add_argument("--max-shared-words", type=float, help="with a right answer, to propose (default: 0.9)")
    apply = _command(parts, "apply", "make labels part of the dataset; mine it again afterwards", "review", "apply")
    apply.add_argument("dataset", help="folder that `mine` has written")
    apply.add_argument("labels", help=".jsonl or .csv file")
    apply.add_argument("--output", required=True, help="folder to save to; may be the same one")
    apply.add_argument("--accept-proposals", action="store_true", help="take a rule's proposal where no label is given")


def _export(commands: Any) -> None:
    parser = _command(commands, "export", "write a mined dataset in another format", "export")
    parser.add_argument("dataset", help="folder that `mine` has written")
    parser.add_argument("output", help=".jsonl, .csv or .parquet file, or a folder for `load_from_disk`")
    formats = "triplet, n-tuple, labeled-pair, labeled-list, provenance, flag-embedding, tevatron, ids or beir"
    parser.add_argument("--format", default="triplet", help=f"{formats} (default: %(default)s)")
    parser.add_argument("--scores", action="store_true", help="with scores")
    parser.add_argument("--keep-columns", action="store_true", help="with the other columns of the dataset")


def _push(commands: Any) -> None:
    parser = _command(commands, "push", "publish a mined dataset on the Hugging Face Hub", "push")
    parser.add_argument("dataset", help="folder that `mine` has written")
    parser.add_argument("repo_id", help="the repository, such as me/my-hard-negatives")
    parser.add_argument("--config-name", default="default", help="name of the configuration (default: %(default)s)")
    parser.add_argument("--split", help="name of the split")
    parser.add_argument("--format", default="n-tuple", help="as for export (default: %(default)s)")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch")
    parser.add_argument("--commit-message", help="message of the commit")
    parser.add_argument(
        "--dry-run", nargs="?", const=True, default=False, metavar="FOLDER", help="write it to a folder"
    )
