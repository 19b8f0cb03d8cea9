"""Measure how long the training loop stands still for a refresh: in the loop, and in the background.

    python tests/benchmarks/refresh_stops.py --data PATH_OF_scifact --model NAME_OR_PATH --static [--seeds 1 2 3] [--check]
    python tests/benchmarks/refresh_stops.py --small

Printed are, for each seed, seconds of an epoch without refreshes, the median stop of a refresh in the loop as a share of
an epoch and that in the background as a share of the stop in the loop, and nDCG@10 of both. ``--check`` fails unless the
first is at most 15 %, the second at most 2 %, and the two means of nDCG@10 at most .01 apart.
"""

from __future__ import annotations

from refreshing import Bench, mean, parser


def main() -> None:
    """Train with refreshes in the loop and in the background, in turns."""
    options = parser(__doc__)
    options.add_argument("--check", action="store_true")
    arguments = options.parse_args()
    bench = Bench(arguments)
    arms = {"in the loop": {}, "background": {"background": True}}
    shares: dict[str, list[float]] = {name: [] for name in ("of an epoch", "of the loop", *(f"cpu {x}" for x in arms))}
    ndcg: dict[str, list[float]] = {name: [] for name in arms}
    for seed in arguments.seeds:
        found = {}
        for name, mining in arms.items():
            found[name] = bench.train(seed, mining_strategy="epoch", **mining)
            ndcg[name].append(found[name].ndcg)
        inline, background = found["in the loop"], found["background"]
        shares["of an epoch"].append(inline.stop[0] / inline.epoch[0])
        shares["of the loop"].append(background.stop[0] / inline.stop[0])
        shares["cpu in the loop"].append(inline.stop[1] / inline.epoch[1])
        shares["cpu background"].append(background.stop[1] / inline.stop[1])
        print(
            f"seed {seed}: epoch {inline.epoch[0]:.2f} s (processor {inline.epoch[1]:.2f}); refresh in the loop "
            f"{inline.stop[0]:.3f} s ({inline.stop[1]:.3f}), {shares['of an epoch'][-1]:.1%} "
            f"({shares['cpu in the loop'][-1]:.1%}) of it; the loop stops for one in the background "
            f"{background.stop[0] * 1e3:.1f} ms ({background.stop[1] * 1e3:.1f}), {shares['of the loop'][-1]:.2%} "
            f"({shares['cpu background'][-1]:.2%}) of that; put in force {background.staleness} steps later; nDCG@10 "
            f"{inline.ndcg:.4f} and {background.ndcg:.4f}"
        )
    means = {name: mean(values) for name, values in {**shares, **ndcg}.items()}
    print(f"mean: {', '.join(f'{name} {value:.4f}' for name, value in means.items())}")
    if arguments.check:
        assert means["of an epoch"] <= 0.15 and means["of the loop"] <= 0.02
        assert abs(means["in the loop"] - means["background"]) <= 0.01


if __name__ == "__main__":
    main()
