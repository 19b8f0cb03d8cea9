"""What a refresh searches with: the model in training, a retriever in its place, or one that finds candidates for it."""

from __future__ import annotations

from typing import Any

from st_hardneg.config import MiningConfig
from st_hardneg.encoders import Encodings, LateInteraction
from st_hardneg.encoders.multi_vector import is_multi_vector
from st_hardneg.training.prompts import training_encodings
from st_hardneg.training.targets import Target


def searched_with(
    retriever: Any, trained: Any, target: Target, args: Any, config: MiningConfig
) -> tuple[Any, Encodings]:
    """Return the model to search with, and its prompts and routes.

    Args:
        retriever: What finds the candidates in place of the model in training, or None.
        trained: The model in training. One with a vector for every token compares what the retriever finds.
        target: What is mined for.
        args: The training arguments.
        config: The recipe in force.
    """
    if retriever is not None and retriever is not trained and is_multi_vector(trained):
        model = retriever if isinstance(retriever, LateInteraction) else LateInteraction(trained, retriever)
        return model, training_encodings(target.hard_negatives, args, target.dataset_name, config)
    if retriever is not None:
        # Another model has prompts of its own.
        return retriever, Encodings.from_config(config, target.hard_negatives.batch_size)
    return trained, training_encodings(target.hard_negatives, args, target.dataset_name, config)


def module_of(model: Any) -> Any:
    """Return the model that encodes, of which ranks share the work."""
    return model.model if isinstance(model, LateInteraction) else model
