"""r_pop: how well a label predicts the feature on real text, from a few passages that stand for all of it.

    r_pop = (E[as] - E[a]E[s]) / sqrt((E[a^2] - E[a]^2)(E[s^2] - E[s]^2)),  E over tokens with Horvitz-Thompson weights

What decides its interval is rare: false positives among the many silent passages that nothing led to. A sample of 40
holds none of them most of the time, so resampling it says that there are none (in trials on synthetic text bootstraps
covered 5 to 92 % at nominal 95 %). Such cells are therefore not resampled but modelled: a mixture of passages in which
the label is predicted to fire (a Beta share, with what other labels of the same simulator show as its prior) and of
others.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp.metrics.correlation import F64, Interval, Moments, correlation_of

I64 = NDArray[np.int64]

JEFFREYS = (0.5, 0.5)
# Bounds of a pooled prior's weight, in passages. It never outweighs a label's own C by much: the spread over labels is
# poorly known, and where 60 labels fired falsely in .2 to 4 % of passages, priors of up to 200 passages covered 85 %.
STRENGTH = (1.0, 40.0)
HIT_WEIGHT = 5.0  # how many of its own false positives outweigh the pool's average one


class Background(NamedTuple):
    """What false positives of a simulator look like in one kind of cell, pooled over labels."""

    rate: float  # share of passages in which a label is predicted to fire
    strength: float  # weight of that share against a label's own passages, in passages
    hit: F64  # [6] mean moments of such a passage


class Cell(NamedTuple):
    """Passages of one kind in a scoring set, and what they stand for."""

    kind: str  # fires, claimed, token, neighbour, silent
    moments: Moments  # [passage]
    document: I64  # [passage]
    population: float  # passages of the split that they stand for
    panel: int | None = None  # how many panel passages the population is the share of; None: it is exact
    hit: NDArray[np.bool_] | None = None  # [passage] predicted to fire: the cell is modelled; None: it is resampled
    background: Background | None = None  # of a modelled cell; None where there is no pool: Jeffreys' prior

    @property
    def rows(self) -> F64:
        """Moments as [passage, 6]."""
        return np.stack([np.asarray(column, dtype=np.float64) for column in self.moments], axis=1)


def r_pop(cells: Sequence[Cell], panel_share: float, draws: int, random: np.random.Generator) -> Interval:
    """The correlation on the corpus with its 95 % interval; None throughout where either side is constant.

    cells        disjoint; together they stand for every passage of the split
    panel_share  panel passages / all passages of the split, 0..1
    draws        replicates; 0 gives the value alone
    One replicate: cells that are resampled take their documents with replacement (a cluster bootstrap, narrowed by
    sqrt(1 - n / N) where a cell holds n of its N passages); modelled cells draw their share of predicted passages from
    its Beta posterior; populations that are shares of the panel are drawn from the Dirichlet around them. The interval
    is the 2.5 to 97.5 % quantile. It speaks of this split's text, finite as it is. The value is the plug-in: posterior
    means for modelled cells.
    """
    if not 0 <= panel_share <= 1:
        raise ValueError(f"panel_share is a share of the split's passages, got {panel_share}")
    cells = [cell for cell in cells if len(cell.document)]
    if not cells:
        return Interval(None, None, None)
    typical = _typical_hit(cells)
    plain = sum(cell.population * _mean(cell, typical) for cell in cells)
    value = float(correlation_of(Moments(*np.asarray(plain)[:, None])))
    if np.isnan(value):
        return Interval(None, None, None)
    if not draws:
        return Interval(value, None, None)
    populations = _populations(cells, panel_share, draws, random)
    totals = np.zeros((draws, 6))
    for cell, population in zip(cells, populations, strict=True):
        make = _resampled if cell.hit is None else _modelled
        totals += population[:, None] * make(cell, typical, draws, random)
    replicates = correlation_of(Moments(*(totals[:, i : i + 1] for i in range(6))))
    replicates = replicates[~np.isnan(replicates)]
    if len(replicates) < draws / 2:
        return Interval(value, None, None)
    lo, hi = np.quantile(replicates, [0.025, 0.975])
    return Interval(value, float(lo), float(hi))


def pooled_background(cells: Sequence[Cell]) -> Background | None:
    """The prior of one kind of cell, from those of many labels of one simulator; None where nothing is predicted.

    None also where everything is: a share of exactly 1 is no prior, because it leaves no doubt. The share and its
    spread over labels by the method of moments for a beta-binomial (Kleinman 1973): pooled empirical Bayes. Labels that
    are alike make it strong, labels that differ weak; in between are STRENGTH passages.
    """
    found = [(cell, np.asarray(cell.hit, dtype=bool)) for cell in cells if cell.hit is not None and len(cell.document)]
    hits = np.array([hit.sum() for _, hit in found], dtype=np.float64)
    sizes = np.array([len(hit) for _, hit in found], dtype=np.float64)
    if not 0 < hits.sum() < sizes.sum():
        return None
    rate = float(hits.sum() / sizes.sum())
    spread = float((sizes * (hits / sizes - rate) ** 2).sum())
    free = sizes.sum() - (sizes**2).sum() / sizes.sum() - (len(sizes) - 1)
    alike = 0.0
    if free > 0:
        alike = (spread / (rate * (1 - rate)) - (len(sizes) - 1)) / free
    strength = STRENGTH[1] if alike <= 0 else float(np.clip(1 / alike - 1, *STRENGTH))
    return Background(rate, strength, np.concatenate([cell.rows[hit] for cell, hit in found]).mean(axis=0))


def _posterior(cell: Cell) -> tuple[float, float]:
    """Parameters of the Beta posterior of a modelled cell's share of predicted passages."""
    assert cell.hit is not None
    prior = JEFFREYS
    if cell.background is not None:
        rate, strength, _ = cell.background
        prior = (rate * strength, (1 - rate) * strength)
    hits = int(np.sum(cell.hit))
    return hits + prior[0], len(cell.hit) - hits + prior[1]


def _hit_moments(cell: Cell, typical: F64) -> F64:
    """Mean moments of a passage of the cell that is predicted to fire: its own, leaning on the pool's."""
    assert cell.hit is not None
    own = cell.rows[cell.hit]
    usual = typical if cell.background is None else cell.background.hit
    return (own.sum(axis=0) + HIT_WEIGHT * usual) / (len(own) + HIT_WEIGHT)


def _typical_hit(cells: Sequence[Cell]) -> F64:
    """A silent passage with one predicted token of the usual strength: what is expected where no pool shows one."""
    rows = np.concatenate([cell.rows for cell in cells])
    n, _, y, _, yy, _ = rows.sum(axis=0)
    strength = yy / y if y > 0 else 0.0
    return np.array([n / len(rows), 0.0, strength, 0.0, strength**2, 0.0])


def _mean(cell: Cell, typical: F64) -> F64:
    """Mean moments per passage: the average, or posterior means."""
    if cell.hit is None:
        return np.asarray(cell.rows.mean(axis=0))
    a, b = _posterior(cell)
    share = a / (a + b)
    return share * _hit_moments(cell, typical) + (1 - share) * _other_rows(cell, typical).mean(axis=0)


def _other_rows(cell: Cell, typical: F64) -> F64:
    """Moments of the passages that are not predicted to fire, [passage, 6]; never empty."""
    assert cell.hit is not None
    rows = cell.rows[~cell.hit]
    return rows if len(rows) else np.array([[typical[0], 0.0, 0.0, 0.0, 0.0, 0.0]])


def _resampled(cell: Cell, typical: F64, draws: int, random: np.random.Generator) -> F64:
    """Mean moments per passage, [draw, 6], by a cluster bootstrap over documents."""
    rows = cell.rows
    means = _cluster_bootstrap(rows, cell.document, draws, random)
    exact = cell.panel is None and cell.population > 0
    share = min(len(rows) / cell.population, 1.0) if exact else 0.0
    n = len(np.unique(cell.document))
    few = n / (n - 1) if n > 1 else 1.0  # a bootstrap of n documents is too narrow by this
    centre = rows.mean(axis=0)
    return np.asarray(centre + np.sqrt((1 - share) * few) * (means - centre))


def _modelled(cell: Cell, typical: F64, draws: int, random: np.random.Generator) -> F64:
    """Mean moments per passage, [draw, 6], of a mixture with a Beta share."""
    assert cell.hit is not None
    share = random.beta(*_posterior(cell), size=draws)
    size = max(round(cell.population), 1)
    share = random.binomial(size, share) / size  # so many of the passages there are
    others = _other_rows(cell, typical)
    document = cell.document[~cell.hit] if len(others) == int((~cell.hit).sum()) else np.zeros(1, dtype=np.int64)
    rest = _cluster_bootstrap(others, document, draws, random)
    return np.asarray(share[:, None] * _hit_moments(cell, typical) + (1 - share)[:, None] * rest)


def _cluster_bootstrap(rows: F64, document: I64, draws: int, random: np.random.Generator) -> F64:
    """Means over rows, [draw, column], with documents drawn with replacement."""
    cluster = np.unique(document, return_inverse=True)[1]
    n = int(cluster.max()) + 1
    sums = np.stack([np.bincount(cluster, weights=column, minlength=n) for column in rows.T], axis=1)
    times = random.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
    counts = times @ np.bincount(cluster, minlength=n)
    return np.asarray(times @ sums / counts[:, None])


def _populations(cells: Sequence[Cell], panel_share: float, draws: int, random: np.random.Generator) -> list[F64]:
    """[draw] passages that each cell stands for: exact, or a share of the panel with its uncertainty."""
    counted = [cell.panel for cell in cells if cell.panel is not None]
    whole = sum(cell.population for cell in cells if cell.panel is not None)
    # A panel that holds the whole split leaves no uncertainty; the larger its share, the tighter the Dirichlet.
    tight = 1 / max(1 - panel_share, 1e-9)
    drawn: Iterator[F64] = iter(
        random.dirichlet(np.array(counted, dtype=np.float64) * tight + 1e-9, size=draws).T if counted else []
    )
    return [np.full(draws, cell.population) if cell.panel is None else whole * next(drawn) for cell in cells]
