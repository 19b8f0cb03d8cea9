"""Change the code in every small way that mutmut knows, and count how many changes the tests notice.

python tests/mutation/score.py [filters] [sampling] [table] [hardness] [--sample 30] [--floor 85]

Without names it takes all four modules: some minutes on two cores. Which tests are run is in ``pyproject.toml`` under
``tool.mutmut``. ``mutmut show NAME`` prints a mutant; those that survive are explained in ``survivors.txt``.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from mutmut.mutation.file_mutation import mutate_file_contents

ROOT = Path(__file__).parents[2]
MODULES = ["filters", "sampling", "table", "hardness"]
MUTMUT = [sys.executable, "-m", "mutmut"]


def mutants_of(module: str) -> list[str]:
    """Return the names of a module's mutants."""
    path = f"st_hardneg/{module}.py"
    mutated = mutate_file_contents(path, (ROOT / path).read_text(encoding="utf-8"), None, None)
    return [f"st_hardneg.{module}.{name}" for name in mutated.mutant_names]


def main() -> int:
    """Run mutmut; print a line for each module and every survivor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help=f"any of {MODULES}; all by default")
    parser.add_argument("--sample", type=int, help="take this many mutants of each module, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--floor", type=float, default=85.0, help="exit with 1 if a module's score is lower, in percent"
    )
    options = parser.parse_args()
    if unknown := set(options.modules) - set(MODULES):
        parser.error(f"expected modules from {MODULES}, got {sorted(unknown)}")

    chosen: dict[str, list[str]] = {}
    for module in options.modules or MODULES:
        names = mutants_of(module)
        few = options.sample is not None and options.sample < len(names)
        chosen[module] = random.Random(options.seed).sample(names, options.sample) if few else names
    # Verdicts of an earlier run would be kept for code that did not change, though tests did.
    shutil.rmtree(ROOT / "mutants", ignore_errors=True)
    wanted = [name for names in chosen.values() for name in names]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    ran = subprocess.run(
        [*MUTMUT, "run", *wanted], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    listed = subprocess.run([*MUTMUT, "results", "--all", "true"], cwd=ROOT, capture_output=True, text=True, check=True)
    verdicts = dict(line.strip().split(": ", 1) for line in listed.stdout.splitlines() if ": " in line)
    if any(verdicts.get(name, "not checked") == "not checked" for name in wanted):
        print(ran.stdout[-3000:], ran.stderr[-3000:], sep="\n")
        return 2

    lowest = 100.0
    for module, names in chosen.items():
        counts = Counter(verdicts[name] for name in names)
        score = 100 * (counts["killed"] + counts["timeout"]) / len(names)
        lowest = min(lowest, score)
        details = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
        print(f"{module:10} {score:5.1f} %  of {len(names)} mutants: {details}")
    for name in wanted:
        if verdicts[name] not in ("killed", "timeout"):
            shown = subprocess.run(
                [*MUTMUT, "show", name], cwd=ROOT, capture_output=True, text=True, check=False
            ).stdout
            print(f"\n{name}: {verdicts[name]}")
            print("\n".join(line for line in shown.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")))
    return int(lowest < options.floor)


if __name__ == "__main__":
    sys.exit(main())
