"""A cross encoder in training: another model finds the candidates, and it rescores them with the weights of the moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from st_hardneg.encoders.dense import as_found
from st_hardneg.training.targets import Target


def is_cross_encoder(model: object) -> bool:
    """Tell whether a model is a CrossEncoder, which scores pairs and cannot search."""
    return any(kind.__name__ == "CrossEncoder" for kind in type(model).__mro__)


class TrainedCrossEncoder:
    """Scores pairs with a cross encoder in training, which is left in the mode in which it was found.

    With two classes, the score is by how much the logit of the second, label 1, is above that of the first.

    Args:
        model: The CrossEncoder.
        prompt: The prompt that it is trained with; None for its own.
        task: The route of a Router that it is trained through, if there is one.
    """

    def __init__(self, model: Any, prompt: str | None = None, task: str | None = None) -> None:
        self.model = model
        self._options = {"prompt": prompt, **({} if task is None else {"task": task})}

    def __getstate__(self) -> dict[str, Any]:
        # A process that mines in the background has the model already.
        return {**self.__dict__, "model": None}

    def predict(self, pairs: list[tuple[str, str]], **options: Any) -> Tensor:
        """Return a score for each pair, float32 of shape ``(len(pairs),)``; see ``CrossEncoder.predict``."""
        with as_found(self.model):
            scores = self.model.predict(pairs, **self._options, **options)
        scores = torch.as_tensor(scores)
        return scores[:, 1] - scores[:, 0] if scores.dim() == 2 and scores.shape[1] == 2 else scores


def rescorer_of(model: Any, args: Any, dataset_name: str | None) -> TrainedCrossEncoder | None:
    """Return the rescorer of a training, with the prompt and the route of one of its datasets; None for other models."""
    if not is_cross_encoder(model):
        return None
    settings = (getattr(args, name, None) for name in ("prompts", "router_mapping"))
    prompt, task = (setting.get(dataset_name) if isinstance(setting, Mapping) else setting for setting in settings)
    return TrainedCrossEncoder(model, prompt or None, task or None)


def check_retriever(targets: Sequence[Target], model: Any, retriever: Any) -> bool:
    """Tell whether refreshes only find again what a frozen model has found, and refuse what cannot be refreshed.

    Args:
        targets: The datasets that are refreshed.
        model: The model in training.
        retriever: What mines in its place, or None.

    Raises:
        ValueError: As :func:`check_cross_encoder` and :func:`check_scores` say.
    """
    is_frozen = retriever is not None and retriever is not model
    check_scores(targets, model, is_frozen=is_frozen)
    if is_cross_encoder(model):
        check_cross_encoder(model, retriever, targets)
        return False
    return is_frozen


def check_cross_encoder(model: Any, retriever: Any, targets: Iterable[Target]) -> None:
    """Raise if a cross encoder in training cannot rescore what is mined.

    Args:
        model: The CrossEncoder.
        retriever: What finds the candidates, or None.
        targets: The datasets that are refreshed.

    Raises:
        ValueError: If nothing finds candidates for it, it has more than two classes, or a dataset has another cross
            encoder.
    """
    if retriever is None:
        raise ValueError(
            "A CrossEncoder cannot search for negatives, as it scores pairs. Pass what finds the candidates, which it "
            "then rescores: `MiningCallback(hard_negatives, retriever=SentenceTransformer(...))`."
        )
    if (num_labels := getattr(model, "num_labels", 1)) > 2:
        raise ValueError(
            f"Expected a CrossEncoder with one output, or with two classes, to rescore candidates, got `num_labels="
            f"{num_labels}`. Load it with `CrossEncoder(name, num_labels=1)`, or train without a MiningCallback."
        )
    for target in targets:
        own = target.hard_negatives.cross_encoder
        if own is not None and own is not model:
            raise ValueError(
                "The dataset has a `cross_encoder` of its own, and so has the training: both cannot order the candidates. "
                "Leave `cross_encoder` out; to learn from the scores of another one, pass it as `teacher`."
            )


def check_columns(model: Any, args: Any, targets: Iterable[Target]) -> None:
    """Raise if a cross encoder is to have prompts or routes by column: they would not be used, as it reads pairs.

    Args:
        model: The model in training.
        args: The training arguments.
        targets: The datasets that are refreshed.

    Raises:
        ValueError: If so; what works is named.
    """
    if not is_cross_encoder(model):
        return
    owners = [target.hard_negatives for target in targets]
    columns = {name for owner in owners for name in (owner.anchor_column_name, owner.positive_column_name)}
    datasets = {target.dataset_name for target in targets}
    for name in ("prompts", "router_mapping"):
        setting = getattr(args, name, None)
        keys = list(setting) if isinstance(setting, Mapping) else []
        if used := [key for key in keys if key not in datasets and (key in columns or key.startswith("negative_"))]:
            one = repr(setting[used[0]])  # type: ignore[index]
            by_dataset = f"`{name}={{dataset_name: {one}}}` with several datasets"
            alone = f"`prompts={one}`, or {by_dataset}" if name == "prompts" else by_dataset
            raise ValueError(
                f"`{name}` in the training arguments go by column, {used}, and a CrossEncoder reads pairs, so that none "
                f"of them would be used. Pass {alone}."
            )


def check_scores(targets: Iterable[Target], model: Any, *, is_frozen: bool) -> None:
    """Raise if a training would learn from scores that its own model gives: it would be told what it thinks already.

    Args:
        targets: The datasets that are refreshed.
        model: The model in training.
        is_frozen: Whether what mines is not trained.

    Raises:
        ValueError: If so.
    """
    for target in targets:
        owner = target.hard_negatives
        gives_scores = owner.teacher or owner.cross_encoder
        has_teacher = gives_scores not in (None, model) or (is_frozen and not is_cross_encoder(model))
        if owner.live.has_scores and not has_teacher:
            raise ValueError(
                "The live view has scores, and refreshes would fill in those of the model in training, which it cannot "
                "learn from. Give the dataset a `teacher`, a CrossEncoder or any model that encodes; a frozen model that "
                "mines, `MiningCallback(hard_negatives, retriever=...)`, teaches a SentenceTransformer, too."
            )
