"""Files from others: nothing in them is run."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import torch

import st_hardneg
from st_hardneg.files.save import read, save
from st_hardneg.training.checkpoint import write_checkpoint
from tests.files.states import make_state, values_of
from tests.training.test_checkpoint_files import make_checkpoint_state, read_back


def test_nothing_is_unpickled_when_files_are_read(tmp_path, monkeypatch):
    """A save and a checkpoint are read with every way to unpickle out of order."""
    state, kept = make_state(), make_checkpoint_state()
    save(str(tmp_path / "saved"), state)
    write_checkpoint(str(tmp_path / "checkpoint"), None, kept)

    def refuse(*_, **__):
        raise AssertionError("something was unpickled")

    with monkeypatch.context() as patch:
        for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
            patch.setattr(module, name, refuse)
        loaded = read(str(tmp_path / "saved"))
        found = read_back(tmp_path / "checkpoint", kept)
    assert values_of(loaded.mining) == values_of(state.mining)
    assert found is not None and values_of(found.mining) == values_of(kept.mining)


FORBIDDEN = {"eval", "exec", "compile_command", "__import__", "import_module", "Unpickler", "trust_remote_code"}
WAYS_TO_UNPICKLE = {"pickle", "dill", "joblib", "shelve", "marshal"}
# What goes from one process of a training to another one, through a pipe, and is never on disk.
THROUGH_A_PIPE = {"messages.py", "background.py", "helper.py"}
# Names of modules that are written in the code: the tables of hosts and of evaluators, the front door and the commands
# that import on use.
ONLY_NAMED_MODULES = {"hosts.py", "evaluation.py", "__init__.py", "parser.py"}


def test_no_code_from_files_is_run():
    """The package calls nothing that unpickles or evaluates files, and loads arrays without pickles only."""
    calls = []
    for path in Path(st_hardneg.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        forbidden = FORBIDDEN - ({"import_module"} if path.name in ONLY_NAMED_MODULES else set())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                found = {name.split(".")[0] for name in names} & WAYS_TO_UNPICKLE
                assert not found or (path.parent.name == "training" and path.name in THROUGH_A_PIPE), path
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called.endswith(".eval") and not node.args:
                continue  # a torch module's evaluation mode
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert called.split(".")[-1] not in forbidden and "trust_remote_code" not in keywords, (path, node.lineno)
            if called in ("np.load", "numpy.load", "torch.load", "yaml.load"):
                calls.append(called)
                assert called == "np.load" and keywords.get("allow_pickle") == "False", (path, node.lineno)
    assert calls == ["np.load"] * 3  # vectors in `cache_folder`, and files of vectors; the check sees them
