"""Count what more donors, both halves in both roles, and a tree of parts find at equal cost, and how often wrongly.

    python benchmarks/power/run.py --work DIR     # some minutes on one core; resumes

Writes results.json and the tables of README.md, both beside this file.
"""

from __future__ import annotations

import datetime
import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere

import click  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402

from audit import __version__  # noqa: E402
from audit.evidence.effects import SwapEffects, lay_out  # noqa: E402
from audit.evidence.stats import Array  # noqa: E402
from audit.store import write_text  # noqa: E402
from benchmarks.pages import write_figures  # noqa: E402
from benchmarks.power.count import SETTINGS, Arm, Figures, one_draw, summed  # noqa: E402
from benchmarks.power.decide import RULES  # noqa: E402
from benchmarks.power.effects import HEADS, MLPS, World, draw, heads_alone, people, shares, tree  # noqa: E402
from benchmarks.power.plans import more_where_answers_move, one_pair  # noqa: E402
from benchmarks.power.tables import tables  # noqa: E402

HERE = Path(__file__).parent
SAMPLE = ROOT / "reports" / "sample" / "effects"
CROWD = 1_000  # people of a label and group, by whom the simulation's own shares are known

TODAY = "one pair, as today"
CAPPED_COST = "as many patches"
CAPPED = {
    TODAY: Arm(130, at_most=260),
    "one pair each, of its own": Arm(130, at_most=260, shared=False),
    "two, half the recipients": Arm(130, at_most=130, donors=2),
    "four, a quarter": Arm(130, at_most=65, donors=4),
    "two on average, more where answers move; half": Arm(130, at_most=130, donors=4, on_average=2),
}
ALL = {
    TODAY: Arm(65),
    "two": Arm(65, donors=2),
    "two on average, more where answers move": Arm(65, donors=4, on_average=2),
    "four": Arm(65, donors=4),
}
THREE_IMAGES = {TODAY: Arm(45, images_each=3), "two": Arm(45, images_each=3, donors=2)}
DONORS: Mapping[str, Mapping[str, Arm]] = {
    "all recipients": ALL,
    "all recipients, three images a person": THREE_IMAGES,
    CAPPED_COST: CAPPED,
}
NOTHING = "nothing"
AT_ONCE = {True: 50, False: 20}  # draws of a part, where nothing carries anything and where something does
OF_HEADS = {
    NOTHING: World(),
    "three heads": World(((8, 0.45), (33, 0.45), (60, 0.45))),
}
A_LAYER = tuple(range(5 * HEADS, 6 * HEADS))
OF_PARTS = {
    NOTHING: World(),
    "one head": World(((33, 0.6),)),
    "six heads of a layer": World(tuple((k, 0.4) for k in A_LAYER)),
    "the same, each alone a third of it": World(tuple((k, 0.4) for k in A_LAYER), alone=1 / 3),
    "all heads, a little": World(tuple((k, 0.4) for k in range(MLPS))),
    "MLPs of the middle third": World(tuple((MLPS + k, 0.4) for k in range(4, 8))),
}
NODES = tree()
TREES: Mapping[str, tuple[Arm, Array, Sequence[str]]] = {
    "heads": (Arm(65), heads_alone(), ["head"] * MLPS),
    "tree, as many patches": (Arm(65, at_most=260 * MLPS // len(NODES[1]) // 4 * 4), *NODES),
    "tree, all recipients": (Arm(65), *NODES),
}
RULES_OF = {
    "all recipients": (TODAY, "two on average, more where answers move"),
    "all recipients, three images a person": (TODAY,),
}


def of_sample() -> Figures:
    """Return what the spread of effects is made of in the stored audit, over its contrasts and splits."""
    swap = pd.read_parquet(SAMPLE / "swap-seed-0.parquet")
    unpatched = pd.read_parquet(SAMPLE / "unpatched.parquet").query("seed == 0")
    subjects = pd.read_parquet(SAMPLE / "samples.parquet")["subject"]
    parts = [lay_out(rows, unpatched, subjects, "smiling") for _, rows in swap.groupby(["contrast", "split"])]
    return _averaged([shares(part) | spared(part) for part in parts])


def of_simulation(seed: int) -> Figures:
    """Return the same of the simulation."""
    half = people(CROWD)
    effects = draw(World(), half, one_pair(half, seed), heads_alone(), np.random.default_rng(seed))
    return _averaged([shares(effects) | spared(effects)])


def spared(effects: SwapEffects) -> dict[str, float]:
    """Return how wide intervals would be with two pairs a recipient on average, more where answers move.

    Beside one pair each, and beside two each, as far as recipients of a pair share nothing: from effects of one pair.
    """
    cells = pd.DataFrame(effects.difference).groupby(2 * effects.label + effects.is_group)
    square = (pd.DataFrame(effects.difference) - cells.transform("mean")).to_numpy() ** 2
    rows = pd.DataFrame({"recipient": np.repeat(np.arange(len(square)), 4)})
    kept = more_where_answers_move(rows, np.repeat(effects.unpatched, 4), 2)
    pairs = np.bincount(rows["recipient"].to_numpy()[kept])[:, None]
    width = float(np.median(np.sqrt((square / pairs).sum(axis=0) / square.sum(axis=0))))
    return {"width_with_more": width, "width_beside_two": width * float(np.sqrt(2))}


def _averaged(rows: Sequence[Mapping[str, float]]) -> Figures:
    values = {name: [row[name] for row in rows] for name in rows[0]}
    return {name: {"mean": round(float(np.mean(v)), 3), "least": round(min(v), 3), "most": round(max(v), 3)}
            for name, v in values.items()}  # fmt: skip


@dataclass(frozen=True)
class Counted:
    """An arm in a world: what is patched, of which level each is, and whether all images are tested at once too."""

    key: tuple[int, ...]
    arm: Arm
    world: str
    carried: World
    sets: Array
    levels: Sequence[str] | None = None
    pooled: bool = False

    def draw(self, seed: int, part: int, work: Path) -> Figures:
        """Draw one part of all draws, or take what was drawn."""
        path = work / f"{'-'.join(map(str, (seed, *self.key, part)))}.json"
        if not path.is_file():
            started = time.process_time()
            times = AT_ONCE[self.world == NOTHING]
            numbers = range(part * times, (part + 1) * times)
            draws = [
                one_draw(self.arm, self.carried, self.sets, (seed, *self.key), number, pooled=self.pooled)
                for number in numbers
            ]
            write_text(path, json.dumps({"draws": draws, "seconds": time.process_time() - started}))
        done: Figures = json.loads(path.read_text(encoding="utf-8"))
        return done

    def told(self, seed: int, parts: int, work: Path) -> Figures:
        """Put all parts together."""
        drawn = [self.draw(seed, part, work) for part in range(parts)]
        draws = [one for part in drawn for one in part["draws"]]
        truth = self.carried.truth(self.sets)
        rules = {name: summed([one[name] for one in draws], truth, self.levels) for name in RULES if name in draws[0]}
        enough = float(np.mean([one["enough"] for one in draws]))
        return rules | {"enough": enough, "seconds": round(sum(part["seconds"] for part in drawn), 2)}


def of_donors() -> dict[tuple[str, str], list[Counted]]:
    """Return every plan, in every world."""
    return {
        (cost, name): [
            Counted((i, j, k), arm, world, carried, heads_alone(), pooled=name in RULES_OF.get(cost, ()))
            for k, (world, carried) in enumerate(OF_HEADS.items())
        ]
        for i, (cost, arms) in enumerate(DONORS.items())
        for j, (name, arm) in enumerate(arms.items())
    }


def of_trees() -> dict[tuple[str, str], Counted]:
    """Return the tree and heads alone, in every world."""
    return {
        (world, name): Counted((9, j, k), arm, world, carried, sets, levels)
        for k, (world, carried) in enumerate(OF_PARTS.items())
        for j, (name, (arm, sets, levels)) in enumerate(TREES.items())
    }


def put_together(seed: int, parts: int, work: Path) -> Figures:
    """Draw what is not drawn, and return it all."""
    plans, trees = of_donors(), of_trees()
    for part in range(parts):  # of all a part, then the next, so that what is done of all is alike
        for counted in [*(one for worlds in plans.values() for one in worlds), *trees.values()]:
            counted.draw(seed, part, work)
        click.echo(f"{part + 1} of {parts}")
    told: Figures = {"donors": {}, "trees": {}}
    for (cost, name), worlds in plans.items():
        found = {one.world: one.told(seed, parts, work) for one in worlds}
        told["donors"].setdefault(cost, {})[name] = worlds[0].arm.size() | {"worlds": found}
    for (world, name), one in trees.items():
        size = one.arm.size()
        size["patches"] *= one.sets.shape[1]
        told["trees"].setdefault(world, {})[name] = one.told(seed, parts, work) | size
    return told


def seconds_of(told: Figures) -> float:
    """Return the seconds of everything that was counted."""
    below = (seconds_of(of) for of in told.values() if isinstance(of, dict))
    return float(told.get("seconds", 0.0)) + sum(below)


@click.command()
@click.option(
    "--parts", default=8, show_default=True, help="Fifty draws of each world without, and twenty with, a truth."
)
@click.option("--seed", default=25, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="What is done lies there; it resumes.")
@click.option("--json", "out", type=click.Path(path_type=Path), default=HERE / "results.json")
def main(parts: int, seed: int, work: Path, out: Path) -> None:
    """Count, and write what came out."""
    told = put_together(seed, parts, work)
    results = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": platform.processor() or platform.machine(),
        "version": __version__,
        "cpu_minutes": round(seconds_of(told) / 60, 2),
        "settings": {
            "null": parts * AT_ONCE[True], "draws": parts * AT_ONCE[False], "seed": seed,
            "permutations": SETTINGS.permutations, "bootstrap": SETTINGS.bootstrap,
            "rules_of": RULES_OF,
        },
        "shares": {"sample": of_sample(), "simulation": of_simulation(seed)},
        **told,
    }  # fmt: skip
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if out == HERE / "results.json":
        write_figures(HERE / "README.md", tables(results))


if __name__ == "__main__":
    main()
