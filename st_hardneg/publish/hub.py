"""One commit on the Hub: what stands in a folder, or nothing at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from datasets import Dataset, DatasetInfo, Features
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

from st_hardneg.errors import PushError
from st_hardneg.publish.card import Contents, Origin, infos_of, repository_of
from st_hardneg.publish.folder import CARD, files_in, new_folder, write_contents

_KEPT = ("description", "citation", "homepage", "license", "dataset_name", "version")
_DATA_FILE = re.compile(r".*\.(parquet|arrow|csv|tsv|json|jsonl|txt)(\.gz|\.zst)?", re.IGNORECASE)
_CONFLICT = 412


def keep_info(dataset: Dataset, source: Dataset) -> Dataset:
    """Let a dataset that was made of another one say of itself what that says: description, citation, license, name."""
    for name in _KEPT:
        setattr(dataset.info, name, getattr(source.info, name))
    return dataset


@dataclass(frozen=True)
class Target:
    """Where is pushed to.

    Args:
        token: An access token; the stored one if None.
        private: Whether a new repository is private.
        revision: The branch.
        commit_message: Message of the commit.
    """

    token: str | None = field(default=None, repr=False)
    private: bool | None = None
    revision: str | None = None
    commit_message: str | None = None


def publish(contents: Contents, figure: str, target: Target, dry_run: bool | str | os.PathLike[str] = False) -> Any:
    """Write everything into a folder, and push it in one commit.

    Args:
        contents: What is published.
        figure: The figure of the card, as SVG.
        target: Where is pushed to.
        dry_run: Write only, and return the folder: this one, or a new one if True. Nothing is asked of the Hub.

    Returns:
        The commit, or the folder.

    Raises:
        PushError: If it cannot be pushed. The repository is as it was, and the folder is kept.
        FileExistsError: If the folder holds something else.
        ValueError: If the repository holds other splits of one of the configurations, with other columns, or data that
            the new card would hide.
    """
    if dry_run is not False:
        folder = new_folder() if dry_run is True else os.fspath(dry_run)
        return write_contents(folder, contents, figure, _origin(contents.source))
    folder = new_folder()
    try:
        return _pushed(folder, contents, figure, target)
    except PushError:
        raise
    except BaseException:
        shutil.rmtree(os.path.dirname(folder), ignore_errors=True)
        raise


def _pushed(folder: str, contents: Contents, figure: str, target: Target) -> Any:
    api = HfApi(token=target.token, library_name="st_hardneg", library_version=contents.version)
    with _asking(contents, figure, folder):
        repo_id, head, names = _settled(api, contents.repo_id, target)
        earlier = _card(api, repo_id, head) if CARD in names else None
        origin = _origin(contents.source, api=api)
    contents = replace(contents, repo_id=repo_id)
    _check(contents, earlier, names)
    write_contents(folder, contents, figure, origin, earlier)
    files = files_in(folder)
    stale = [name for name in names if name not in files and _is_replaced(name, contents)]
    with _asking(contents, figure, folder):
        done = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()),
                *(CommitOperationDelete(path_in_repo=name) for name in stale),
            ],
            commit_message=target.commit_message or f"Hard negatives: {contents.config_name}, {contents.split}",
            repo_type="dataset",
            revision=target.revision,
            parent_commit=head,
        )
    shutil.rmtree(os.path.dirname(folder), ignore_errors=True)
    return done


def _settled(api: HfApi, repo_id: str, target: Target) -> tuple[str, str | None, list[str]]:
    """Return the whole name of a repository that is there now, its last commit, and the names of its files."""
    repo_id = api.create_repo(repo_id, repo_type="dataset", private=target.private, exist_ok=True).repo_id
    if target.revision is not None and not target.revision.startswith("refs/"):
        api.create_branch(repo_id, branch=target.revision, repo_type="dataset", exist_ok=True)
    found = api.dataset_info(repo_id, revision=target.revision)
    return repo_id, found.sha, [file.rfilename for file in found.siblings or []]


@contextmanager
def _asking(contents: Contents, figure: str, folder: str) -> Iterator[None]:
    """Turn whatever goes wrong with the Hub into words, with everything ready in the folder."""
    try:
        yield
    except Exception as error:  # of whichever library the Hub's client asks with
        if not os.path.isdir(folder):
            write_contents(folder, contents, figure, _origin(contents.source))
        raise PushError(_what_to_do(contents.repo_id, folder, error)) from error


def _is_replaced(name: str, contents: Contents) -> bool:
    """Tell whether a file of the repository held an earlier push of the same."""
    return name.endswith(".parquet") and any(
        name.startswith(contents.pattern(part).removesuffix("*")) for part in contents.parts
    )


def _card(api: HfApi, repo_id: str, revision: str | None, *, is_local: bool = False) -> DatasetCard:
    """Return the card of a dataset repository; ``is_local`` looks on this machine only."""
    path = api.hf_hub_download(repo_id, CARD, repo_type="dataset", revision=revision, local_files_only=is_local)
    return DatasetCard.load(path, ignore_metadata_errors=True)


def _origin(source: DatasetInfo, *, api: HfApi | None = None) -> Origin:
    """Return what is to be said of the wrapped dataset; license and citation stand in the card of its repository.

    Args:
        source: What it says of itself.
        api: Who is asked for that card; None looks on this machine only.
    """
    if (repository := repository_of(source)) is None or (source.license and source.citation):
        return Origin.of(source)
    try:
        return Origin.of(source, _card(api or HfApi(), repository, None, is_local=api is None))
    except Exception:  # no answer is no reason not to push
        return Origin.of(source)


def _check(contents: Contents, card: DatasetCard | None, names: list[str]) -> None:
    """Raise if what the repository holds could not be read any more after the push.

    Raises:
        ValueError: If so.
    """
    for name, part in contents.parts.items():
        _check_other_splits(card, contents, name, part.features)
    ours = {contents.file("report.json")}
    hidden = [
        name for name in names if _DATA_FILE.fullmatch(name) and not _is_replaced(name, contents) and name not in ours
    ]
    if hidden and not (card is not None and card.data.get("configs")):
        raise ValueError(
            f"{contents.repo_id!r} holds data that its card says nothing of, such as {hidden[0]!r}, and that "
            "`load_dataset` would not find beside these. Name its configurations in the card, or push elsewhere."
        )


def _check_other_splits(card: DatasetCard | None, contents: Contents, config_name: str, features: Features) -> None:
    known = infos_of(card).get(config_name)
    others = [] if known is None else [name for name in known.splits or {} if name != contents.split]
    if known is not None and others and known.features != features:
        raise ValueError(
            f"The configuration {config_name!r} of {contents.repo_id!r} has the splits {others} with other columns than "
            "those to be pushed. Push under another `config_name`, or take those splits out of the repository first."
        )


def _what_to_do(repo_id: str, folder: str, error: Exception) -> str:
    """Return the words for a push that failed."""
    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # of several files at once, the first that failed
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, OfflineModeIsEnabled):
        why, then = "the Hub may not be asked (`HF_HUB_OFFLINE` is set)", "Unset it"
    elif isinstance(error, LocalTokenNotFoundError) or status in (401, 403):
        why, then = (
            "the Hub does not let this token write there",
            "Log in with `hf auth login`, or pass a `token` that may",
        )
    elif isinstance(error, HFValidationError):
        why, then = f"that is no name of a repository ({error})", "Name it like 'me/my-hard-negatives'"
    elif status == _CONFLICT:
        why, then = "somebody has changed the repository meanwhile", "Nothing of theirs is lost"
    elif status is not None:
        why, then = f"the Hub answered {status} ({_first_line(error)})", "Wait a moment"
    else:
        why, then = f"{type(error).__name__}: {_first_line(error)}", "Check the connection"
    return (
        f"Expected to push to {repo_id!r}, but {why}. The repository is as it was. {then}, and call `push_to_hub` again, "
        f"or push what is ready in {folder!r}: `hf upload {repo_id} {folder} --repo-type dataset`."
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
