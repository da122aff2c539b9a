"""How strong each of several competitors is, from who beat whom (Bradley and Terry 1952)."""

import numpy as np

from cs_pipeline.errors import PipelineError

_STEPS, _CLOSE = 20_000, 1e-9


def log_strengths(wins: np.ndarray) -> np.ndarray:
    """Log strengths [..., n] of ``wins`` [..., n, n]: how often the first beat the second, a tie being half a win for each.

    The difference of two is the log-odds that the first wins; all together sum to 0. By minorisation and maximisation
    (Hunter 2004, MM algorithms for generalized Bradley-Terry models). The competitors are one of ``groups``. Raises
    PipelineError where there is no maximum, because one or some never lost to the others, or never won.
    """
    met = wins + np.swapaxes(wins, -1, -2)
    won = wins.sum(axis=-1)
    strengths = np.ones(won.shape)
    for _ in range(_STEPS):
        shares = met / (strengths[..., :, None] + strengths[..., None, :])
        with np.errstate(divide="ignore", invalid="ignore"):
            new = won / shares.sum(axis=-1)
            new /= np.exp(np.log(new).mean(axis=-1, keepdims=True))
        if not (np.isfinite(new).all() and (new > 0).all()):
            break
        if np.abs(np.log(new / strengths)).max(initial=0) < _CLOSE:
            return np.log(new)
        strengths = new
    raise PipelineError(
        "The votes give no strengths: somebody has won or lost all of them.",
        "Collect votes on more pairs; until then look at the win rates.",
    )


def groups(met: np.ndarray) -> np.ndarray:
    """The number of the group, from 0, that each of n competitors belongs to: those who met, over however many others.

    ``met`` [n, n] says how often two met. Strengths of different groups do not compare.
    """
    from scipy.sparse.csgraph import connected_components

    return connected_components(met > 0, directed=False)[1]
