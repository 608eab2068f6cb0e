"""Donors that are nearest in covariates, within a caliper of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.data.covariates import JUST_WITHIN, numbers

Numbers = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
TIE = 1e-9  # calipers


@dataclass(frozen=True)
class Near:
    """Covariates of images, in calipers: images are alike where none of theirs is more than 1 apart."""

    scaled: pd.DataFrame  # by row of the samples, of the images that have every covariate

    @classmethod
    def of(cls, frame: pd.DataFrame, calipers: Mapping[str, float]) -> Near:
        """Read the covariates of samples."""
        scaled = pd.DataFrame(numbers(frame, calipers) / list(calipers.values()), index=frame.index)
        return cls(scaled.dropna())

    def known(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the images that have every covariate."""
        return frame[frame["row"].isin(self.scaled.index)]

    def at(self, rows: pd.Series) -> Numbers:
        """Return the covariates (N, C) of rows of the samples."""
        return self.scaled.loc[rows].to_numpy(dtype=np.float64)

    def alike(self, first: pd.Series, second: pd.Series) -> npt.NDArray[np.bool_]:
        """Tell of each pair of rows whether they are alike."""
        apart = np.abs(self.at(first) - self.at(second)).max(axis=1, initial=0.0)
        return np.asarray(apart <= JUST_WITHIN)

    def pair_up(self, first: pd.Series, second: pd.Series, rng: np.random.Generator) -> tuple[Places, Places]:
        """Pair each row, in random order, with the nearest that is free; return the places of both in their series."""
        own, others = self.at(first), self.at(second)
        order = np.argsort(others[:, 0], kind="stable")
        others, free = others[order], np.ones(len(others), dtype=bool)
        found = []
        for place in rng.permutation(len(own)):
            window = _window(others[:, 0], own[place, 0])
            apart = np.where(free[window], np.abs(others[window] - own[place]).max(axis=1), np.inf)
            if len(apart) and apart.min() <= JUST_WITHIN:
                nearest = window.start + int(apart.argmin())
                free[nearest] = False
                found.append((int(place), int(order[nearest])))
        left, right = np.array(found, dtype=np.int64).reshape(-1, 2).T
        return left, right

    def nearest_pairs(
        self, recipients: pd.DataFrame, kinds: npt.NDArray[np.object_], pairs: pd.DataFrame, rng: np.random.Generator
    ) -> Places:
        """Return for each recipient the nearest pair of donors that it is not in (its place in ``pairs``), or -1.

        Both donors are alike with it. A pair serves no more than its share of each kind of recipients, unless no other
        is alike; of pairs that are equally near, the one that serves fewest. Images of one subject with the same
        covariates have the same pair.
        """
        values = [self.at(pairs[f"row_{side}"]) for side in ("group", "reference")]
        order = np.argsort(values[0][:, 0], kind="stable")
        group, reference = (each[order] for each in values)
        inside = pairs[["subject_group", "subject_reference"]].to_numpy()[order]
        subjects, own = recipients["subject"].to_numpy(), self.at(recipients["row"])
        codes = pd.factorize(recipients["subject"])[0]
        keys, of_key = np.unique(np.column_stack([codes, own]), axis=0, return_inverse=True)
        first = np.unique(of_key, return_index=True)[1]
        share = {kind: -(-int((kinds[first] == kind).sum()) // len(pairs)) for kind in set(kinds)}
        uses = {kind: np.zeros(len(pairs), dtype=np.int64) for kind in share}
        chosen = np.full(len(keys), -1, dtype=np.int64)
        for key in rng.permutation(len(keys)):
            place = first[key]
            window = _window(group[:, 0], own[place, 0])
            apart = np.maximum(np.abs(group[window] - own[place]), np.abs(reference[window] - own[place])).max(axis=1)
            apart[(inside[window] == subjects[place]).any(axis=1)] = np.inf
            used = uses[kinds[place]][window]
            free = np.where(used < share[kinds[place]], apart, np.inf)
            apart = free if free.min(initial=np.inf) <= JUST_WITHIN else apart
            if apart.min(initial=np.inf) <= JUST_WITHIN:
                ties = np.flatnonzero(apart <= apart.min() + TIE)
                pair = ties[used[ties].argmin()]
                used[pair] += 1  # a view
                chosen[key] = order[window][pair]
        result: Places = chosen[of_key.reshape(-1)]
        return result


def _window(rising: Numbers, around: float) -> slice:
    """Return where numbers that rise are within a caliper of one."""
    low, high = np.searchsorted(rising, [around - JUST_WITHIN - TIE, around + JUST_WITHIN + TIE])
    return slice(int(low), int(high))
