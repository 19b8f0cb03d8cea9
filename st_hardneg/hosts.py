"""Every name of the host libraries that is private or likely to move, in one place, with words for when it has moved.

Everything is looked up when it is asked for, so importing this module imports no host library. Names are imported from
here, ``from st_hardneg.hosts import distributed_evaluation``; private attributes of objects are read and set by functions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    from datasets import Dataset
    from transformers import Trainer

NAMES: dict[str, tuple[str, str]] = {
    # datasets: tables in memory, and how the cache of `map` identifies a function or a transform
    "InMemoryTable": ("datasets.table", "InMemoryTable"),
    "TableBlock": ("datasets.table", "TableBlock"),
    "generate_random_fingerprint": ("datasets.fingerprint", "generate_random_fingerprint"),
    "pklregister": ("datasets.utils._dill", "pklregister"),
    # sentence_transformers: batch samplers, encoding over the ranks, losses
    "BatchSamplers": ("sentence_transformers.base.sampler", "BatchSamplers"),
    "GroupByLabelBatchSampler": ("sentence_transformers.base.sampler", "GroupByLabelBatchSampler"),
    "DefaultBatchSampler": ("sentence_transformers.base.sampler", "DefaultBatchSampler"),
    "distributed_evaluation": ("sentence_transformers.util.distributed", "distributed_evaluation"),
    "embed_columns": ("sentence_transformers.base.losses.merged_forward", "embed_columns"),
    "uses_gradient_cache": ("sentence_transformers.base.losses.gradcache", "uses_gradient_cache"),
    "all_gather": ("sentence_transformers.util", "all_gather"),
    "all_gather_with_grad": ("sentence_transformers.util", "all_gather_with_grad"),
    "get_rank": ("sentence_transformers.util", "get_rank"),
    # accelerate: objects from rank to rank
    "broadcast_object_list": ("accelerate.utils", "broadcast_object_list"),
    "gather_object": ("accelerate.utils", "gather_object"),
    # torch: the concatenation in which a trainer reads a DatasetDict
    "ConcatDataset": ("torch.utils.data", "ConcatDataset"),
}
"""Where each name is defined today: the module, and its name there."""


def __getattr__(name: str) -> Any:
    """Return a name of a host library.

    Raises:
        ImportError: If it is not where it was.
    """
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = NAMES[name]
    try:
        value = getattr(import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        # Not an AttributeError: `from st_hardneg.hosts import …` would put words of its own in place of these.
        raise ImportError(moved(f"{module}.{attribute}", module.split(".")[0])) from error
    globals()[name] = value  # from now on it is found without this function
    return value


def moved(what: str, library: str) -> str:
    """Return what to say when something of a host library is not where it was.

    Args:
        what: The name that was looked for.
        library: The package that it belongs to.
    """
    try:
        version = metadata.version(library.replace("_", "-"))
    except metadata.PackageNotFoundError:
        version = "of an unknown version"
    return (
        f"`{what}` is not there in {library} {version}, and st_hardneg needs it. This release of {library} is newer or "
        "older than those that st_hardneg was tested with: install another one, or a later st_hardneg."
    )


def _private(host: object, name: str, library: str) -> Any:
    """Return a private attribute of an object of a host library.

    Raises:
        AttributeError: If it has none of this name; the release of the library is named.
    """
    try:
        return getattr(host, name)
    except AttributeError:
        owner = host if isinstance(host, type) else type(host)
        raise AttributeError(moved(f"{owner.__qualname__}.{name}", library)) from None


# --- datasets ---------------------------------------------------------------------------------------------------------


def in_memory_dataset(table: pa.Table, *, kind: type[Dataset] | None = None, **options: Any) -> Dataset:
    """Return a Dataset of an Arrow table, without the hash of all of its bytes that ``datasets`` would compute.

    Args:
        table: The table.
        kind: A subclass of ``Dataset`` to make.
        **options: Further arguments of ``Dataset``: ``info``, ``split``; a ``fingerprint`` in place of a random one.
    """
    from datasets import Dataset

    if "fingerprint" not in options:
        options["fingerprint"] = __getattr__("generate_random_fingerprint")()
    return (kind or Dataset)(__getattr__("InMemoryTable")(table), **options)


def row_indices(dataset: Dataset) -> npt.NDArray[np.int64] | None:
    """Return which row of its table each row of a dataset is, int64 of shape ``(len(dataset),)``; None: all in order."""
    indices = _private(dataset, "_indices", "datasets")
    return None if indices is None else indices.column(0).to_numpy().astype("int64", copy=False)


def shows_all_columns(dataset: Dataset) -> bool:
    """Tell whether no format hides columns of a dataset."""
    return _private(dataset, "_format_columns", "datasets") is None


def features_of_batch(batch: object) -> Mapping[str, Any]:
    """Return the features of the columns of a batch that ``map`` hands out, or none where it does not tell them."""
    features = getattr(getattr(batch, "formatter", None), "features", None)
    return features if isinstance(features, Mapping) else {}


def transform_of(dataset: object) -> Any:
    """Return the transform that ``set_transform`` gave a dataset, or None; also of an object that is no dataset."""
    form = getattr(dataset, "format", None)
    return form.get("format_kwargs", {}).get("transform") if isinstance(form, Mapping) else None


def set_fingerprint(dataset: Dataset, fingerprint: str) -> None:
    """Change what identifies a dataset, and with it what ``map`` derives from it from now on."""
    _private(dataset, "_fingerprint", "datasets")
    dataset._fingerprint = fingerprint


def replace_table(dataset: Dataset, table: Any) -> None:
    """Let a dataset read another table of ``datasets``, all of its rows in order, in place."""
    for name in ("_data", "_indices"):
        _private(dataset, name, "datasets")
    dataset._data, dataset._indices = table, None


# --- torch ------------------------------------------------------------------------------------------------------------


def read_in_batches(dataset: object, make_reader: Callable[[list[Any]], Callable[[list[int]], list[Any]]]) -> None:
    """Let a dataloader read a concatenation of datasets batch by batch, in place; nothing is done to other datasets.

    A DataLoader asks a dataset for ``__getitems__``, which torch's concatenation lacks, and no subclass can be given to it
    once it is made.

    Args:
        dataset: What the dataloader reads.
        make_reader: Makes a function from row numbers to rows out of the datasets that are concatenated.
    """
    if isinstance(dataset, __getattr__("ConcatDataset")):
        setattr(dataset, "__getitems__", make_reader(list(_private(dataset, "datasets", "torch"))))  # noqa: B010


def computes_bfloat16(device_type: str) -> bool:
    """Tell whether a kind of device multiplies matrices of bfloat16 natively; elsewhere it is emulated, and slow."""
    import torch

    if device_type == "cuda":  # pragma: no cover - needs an accelerator
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device_type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in names)


def weights_versions(model: object) -> int:
    """Return a number that changes when a weight of a model is changed in place, as an optimizer does; 0 for others."""
    parameters = getattr(model, "parameters", None)
    if not callable(parameters):
        return 0
    return hash(
        tuple(
            (_private(parameter, "_version", "torch"), parameter.data_ptr(), str(parameter.dtype))
            for parameter in parameters()
        )
    )


# --- transformers -----------------------------------------------------------------------------------------------------


def _frames_of_trainers() -> Iterator[tuple[Trainer, Mapping[str, Any]]]:
    """Yield the trainers whose methods are being called, innermost first, with the local variables of these calls."""
    from transformers import Trainer

    frame = sys._getframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer):
            yield caller, frame.f_locals
        frame = frame.f_back  # type: ignore[assignment]


def calling_trainer() -> Trainer | None:
    """Return the trainer whose loop is calling, or None.

    Callbacks are given everything but the trainer, and only its ``log`` reaches every reporter and the log history.
    """
    return next((trainer for trainer, _ in _frames_of_trainers()), None)


def resumed_checkpoint() -> str | None:
    """Return the checkpoint from which the calling training loop resumes, or None; no callback is told."""
    folders = (variables.get("resume_from_checkpoint") for _, variables in _frames_of_trainers())
    return next((folder for folder in folders if isinstance(folder, str)), None)


def output_dir(trainer: Trainer) -> str:
    """Return the folder that holds the checkpoints of a trainer.

    A search for hyper-parameters gives every trial a folder of its own.
    """
    is_search = _private(trainer, "hp_search_backend", "transformers") is not None
    trial = _private(trainer, "_trial", "transformers") if is_search else None
    return str(_private(trainer, "_get_output_dir", "transformers")(trial))


def is_sharded(trainer: Trainer | None) -> bool:
    """Tell whether no rank has the whole model, so that every rank has to run it together with the others."""
    if trainer is None:
        return False
    flags = ("is_fsdp_enabled", "is_deepspeed_enabled")
    return any(bool(_private(trainer, flag, "transformers")) for flag in flags)


# --- sentence_transformers --------------------------------------------------------------------------------------------


def loss_components(trainer: Any) -> dict[str, Any]:
    """Return what a trainer has summed up for its next log line of the training, by name, with the number of steps."""
    components: dict[str, Any] = _private(trainer, "accum_loss_components", "sentence_transformers")["train"]
    return components


def delegated_attributes(loss_class: type) -> tuple[str, ...]:
    """Return the parameters that a loss with a gradient cache passes on to the loss that it wraps."""
    return tuple(_private(loss_class, "_delegated_to_wrapped_loss", "sentence_transformers"))


def length_of_input(model: Any, one: Any) -> int:
    """Return the length of a text or of a pair of texts, by which a model orders what it encodes, longest first."""
    return int(_private(model, "_input_length", "sentence_transformers")(one))
