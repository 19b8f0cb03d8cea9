"""Change the code in every small way that mutmut knows, and count how many changes the tests notice.

python tests/mutation/score.py [mining.filters] [live.table] [hardness] [--sample 30] [--floor 85]

mutmut makes the mutants, all of them in one copy of the package. One process imports that copy and the tests, and forks
for each mutant: a fork takes milliseconds, importing torch takes seconds. Survivors are printed, and explained in
``survivors.txt``.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import gc
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.mutation.trampoline import set_mutant_under_test

ROOT = Path(__file__).parents[2]
TESTS = {
    "corpus.identity": ["tests/corpus/test_identity.py"],
    "corpus.known": ["tests/corpus/test_known.py"],
    "corpus.rows": ["tests/corpus/test_rows.py", "tests/test_dataset.py"],
    "corpus.labels": ["tests/corpus/test_rows.py", "tests/test_mapping.py"],
    "corpus.batches": ["tests/corpus/test_batches.py"],
    "corpus.given": ["tests/corpus/test_given.py", "tests/test_dataset.py"],
    "corpus.symmetric": ["tests/corpus/test_symmetric.py"],
    "corpus.digests": ["tests/corpus/test_digests.py"],
    "corpus.enumeration": ["tests/corpus/test_numbering.py"],
    "corpus.numbering": ["tests/corpus/test_numbering.py"],
    "corpus.pairs": ["tests/corpus/test_pairs.py"],
    "corpus.texts": ["tests/corpus/test_texts.py", "tests/corpus/test_numbering.py"],
    "corpus.judged": ["tests/test_reviewing.py", "tests/corpus/test_given.py"],
    "mining.filters": ["tests/mining/test_filters.py", "tests/mining/test_tables.py"],
    "mining.sampling": ["tests/mining/test_sampling.py", "tests/test_draws.py"],
    "mining.slots": ["tests/mining/test_slots.py", "tests/mining/test_notes.py"],
    "strategies": ["tests/test_strategies.py", "tests/mining/test_sampling.py"],
    "live.table": ["tests/live/test_table.py"],
    "live.view": ["tests/live/test_view.py", "tests/live/test_dataset.py"],
    "live.rows": [
        "tests/live/test_rows.py",
        "tests/live/test_dataset.py",
        "tests/live/test_every_method.py",
        "tests/live/test_view.py",
    ],
    "live.dataset": ["tests/live/test_dataset.py", "tests/live/test_view.py", "tests/live/test_every_method.py"],
    "live.batches": ["tests/live/test_batches.py"],
    "live.labeled": ["tests/live/test_labeled.py"],
    "live.negatives": ["tests/live/test_negatives.py"],
    "live.probe": ["tests/training/test_economy.py"],
    "losses.masking": ["tests/losses/test_masking.py"],
    "losses.in_batch": ["tests/losses/test_in_batch.py"],
    "losses.triplet": ["tests/losses/test_triplet.py"],
    "losses.contrastive": ["tests/losses/test_contrastive.py"],
    "losses.multiple_negatives_ranking": ["tests/losses/test_multiple_negatives_ranking.py"],
    "losses.cached_multiple_negatives_ranking": ["tests/losses/test_cached_multiple_negatives_ranking.py"],
    "losses.multi_vector": ["tests/losses/test_multi_vector.py"],
    "losses.weighted_sum": ["tests/losses/test_weighted_sum.py"],
    "losses.labels": ["tests/losses/test_labels.py"],
    "losses.distances": ["tests/losses/test_contrastive.py", "tests/losses/test_triplet.py"],
    "losses.diagnostics": ["tests/losses/test_diagnostics.py"],
    "losses.parts": ["tests/losses/test_weighted_sum.py"],
    "hardness": ["tests/test_hardness.py"],
}
DESELECTED = [
    "tests/test_hardness.py::test_the_definition_needs_torch_only",  # reads the source, in which mutmut has put its own
    # Is about other processes, for which mutants are out of reach, or counts on a machine that is not busy.
    "tests/live/test_table.py::test_a_mapped_file_stands_in_where_shared_memory_is_too_small",
    "tests/live/test_dataset.py::test_workers_follow_refreshes",
]
CPU_SECONDS, SECONDS = 20, 120
"""A mutant that computes or waits so much longer than the tests without one hangs, which a run of them would show."""


def mutate(folder: Path, module: str) -> tuple[list[str], str]:
    """Write a module with all of its mutants; return their names and the source."""
    path = folder / "st_hardneg" / f"{module.replace('.', '/')}.py"
    mutated = mutate_file_contents(str(path), path.read_text(encoding="utf-8"), None, None)
    path.write_text(mutated.code, encoding="utf-8")
    return list(mutated.mutant_names), mutated.code


def difference(code: str, name: str) -> list[str]:
    """Return the lines that a mutant removes and adds."""
    functions = {node.name: node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef)}
    original = f"{name.rpartition('__mutmut_')[0]}__mutmut_orig"
    before, after = (ast.unparse(functions[which]).replace(which, "").splitlines() for which in (original, name))
    changed = list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]
    return [line for line in changed if not line.startswith("@@")]


class Judge:
    """A plugin of pytest that runs the tests once for each mutant, in a process of its own, in place of once."""

    def __init__(self, mutants: dict[str, list[str]], jobs: int) -> None:
        self.mutants, self.jobs = mutants, jobs
        self.verdicts: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.failed = False

    def pytest_sessionstart(self) -> None:
        """Let a failure be enough: to look for the smallest one takes most of the time."""
        from hypothesis import Phase, settings

        settings.register_profile("mutation", phases=[Phase.explicit, Phase.generate], database=None)
        settings.load_profile("mutation")

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note that a test failed."""
        self.failed |= report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run without a mutant first, then each mutant."""
        set_mutant_under_test("")
        for item in session.items:
            before = time.process_time()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            self.seconds[item.nodeid] = time.process_time() - before
        if self.failed or session.testsfailed:
            return True
        gc.freeze()  # or every fork copies what it collects
        running: dict[int, str] = {}
        for module, names in self.mutants.items():
            items = [item for item in session.items if item.nodeid.split("::")[0] in TESTS[module]]
            for name in names:
                if len(running) == self.jobs:
                    self.wait(running)
                running[self.start(f"st_hardneg.{module}.{name}", items)] = f"{module}.{name}"
        while running:
            self.wait(running)
        return True

    def start(self, mutant: str, items: list[pytest.Item]) -> int:
        """Fork a process that exits with 1 as soon as a test fails."""
        process = os.fork()
        if process:
            return process
        usual = sum(self.seconds[item.nodeid] for item in items)
        limit = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) + 2 * usual) + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        signal.alarm(SECONDS + int(4 * usual))
        code = 1
        try:
            with open(os.devnull, "w", encoding="utf-8") as nothing:
                os.dup2(nothing.fileno(), 1)
                os.dup2(nothing.fileno(), 2)
            set_mutant_under_test(mutant)
            for item in items:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
                if self.failed:
                    break
            code = int(self.failed)
        finally:
            os._exit(code)

    def wait(self, running: dict[int, str]) -> None:
        """Wait for one of the processes, and note how it ended."""
        process, status = os.wait()
        if process in running:
            how = os.waitstatus_to_exitcode(status)
            self.verdicts[running.pop(process)] = {0: "survived", 1: "killed"}.get(how, "hung or crashed")


def main() -> int:
    """Print a line for each module, and every survivor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help=f"any of {list(TESTS)}; all by default")
    parser.add_argument("--sample", type=int, help="take this many mutants of each module, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--floor", type=float, default=85.0, help="exit with 1 if a module's score is lower, in percent"
    )
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if unknown := set(options.modules) - set(TESTS):
        parser.error(f"expected modules from {list(TESTS)}, got {sorted(unknown)}")

    started = time.perf_counter()
    mutants, code = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("st_hardneg", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        for module in options.modules or TESTS:
            mutants[module], code[module] = mutate(folder, module)
            if options.sample is not None and options.sample < len(mutants[module]):
                mutants[module] = random.Random(options.seed).sample(mutants[module], options.sample)
        judge = Judge(mutants, options.jobs)
        arguments = [test for module in mutants for test in TESTS[module]]
        arguments += ["-p", "no:terminal", "-p", "no:cacheprovider", *(f"--deselect={test}" for test in DESELECTED)]
        exit_code = pytest.main(arguments, plugins=[judge])
        os.chdir(ROOT)
    if exit_code not in (0, 5) or not judge.verdicts:
        print("The tests fail without any change.")
        return 2

    lowest = 100.0
    for module, names in mutants.items():
        counts = Counter(judge.verdicts[f"{module}.{name}"] for name in names)
        score = 100 * (1 - counts["survived"] / len(names))
        lowest = min(lowest, score)
        details = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
        print(f"{module:18} {score:5.1f} %  of {len(names)} mutants: {details}")
    print(f"{time.perf_counter() - started:.0f} s")
    for module, names in mutants.items():
        for mutant in names:
            if judge.verdicts[f"{module}.{mutant}"] == "survived":
                print(f"\n{module} {mutant}", *difference(code[module], mutant), sep="\n")
    return int(lowest < options.floor)


if __name__ == "__main__":
    sys.exit(main())
