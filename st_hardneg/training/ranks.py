"""Several processes that train together: what one of them has found, all of them get."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch.nn.parallel import DistributedDataParallel

from st_hardneg.encoders.ranks import from_first_rank
from st_hardneg.hosts import gather_object
from st_hardneg.training.rescoring import is_cross_encoder

if TYPE_CHECKING:
    from st_hardneg.dataset import HardNegativeDataset


def start_from_first_rank(datasets: Iterable[HardNegativeDataset]) -> None:
    """Let every rank begin with the negatives of rank 0: weights that round differently mine differently.

    Raises:
        ValueError: On all ranks, if the live view of one of them has other rows.
    """
    for hard_negatives in datasets:
        first = from_first_rank(hard_negatives.live.starting_state())
        problem = None
        try:
            hard_negatives.live.start_from(first)
        except ValueError as error:
            problem = str(error)
        # If one rank raised alone, the others would wait for it until their time-out.
        if found := [one for one in gather_object([problem]) if one is not None]:
            raise ValueError(found[0])


def refuse_unseen_outputs(trainer: Any) -> None:
    """Raise if the ranks would fail in the first backward pass of a cross encoder, whatever it is trained on.

    Trainers let DistributedDataParallel look for parameters that had no part in a step, from the outputs of the model
    backwards. It looks into dictionaries; a cross encoder returns a ``BatchEncoding``, which is none. So it finds nothing,
    takes every parameter for unused, and fails when their gradients come ("mark a variable ready only once").

    Args:
        trainer: The trainer, or None.

    Raises:
        ValueError: If so.
    """
    wrapped = getattr(trainer, "model_wrapped", None)
    if not isinstance(wrapped, DistributedDataParallel) or not is_cross_encoder(trainer.model):
        return
    if not wrapped.find_unused_parameters or isinstance(trainer.model.preprocess([("a", "b")]), dict):
        return
    raise ValueError(
        "Expected `ddp_find_unused_parameters=False` for a CrossEncoder on several ranks, got "
        f"{trainer.args.ddp_find_unused_parameters!r}: DistributedDataParallel would look for unused parameters, which it "
        "cannot do in what a CrossEncoder returns, and would fail in the first backward pass. Pass "
        "`CrossEncoderTrainingArguments(..., ddp_find_unused_parameters=False)`."
    )
