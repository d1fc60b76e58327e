"""How far members of an ensemble usually disagree on where a plan leads: levels for `CertificationProblem.certainty`.

An optimiser that plans with a learned model finds where the model is wrong in its favour, and tubes one predicted standard
deviation wide do not tell. Members that were started apart agree where they have seen data and part where they have not; so a
plan on which they part more than on what was flown before is refused. This is the idea of certainty constraints in predictive
safety filters (UPSi, Frauenknecht et al. 2026), here on the members' nominal paths, of which the search has the derivatives
already.

It is a heuristic: agreeing members can be wrong together, and levels from data that the members were trained on are those of
familiar plans. It claims nothing, and a certificate claims nothing more by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.tube.ensemble import EnsembleTube

__all__ = ["certainty_levels"]


def certainty_levels(
    model: EnsembleTube,
    episodes: Sequence[tuple[Tensor, Tensor]],
    *,
    steps: int,
    share: float = 0.95,
    limit: int = 512,
) -> Tensor:
    """Levels (T, nx), in units of x, that a share of the recorded stretches of T steps keeps to in all steps and coordinates.

    Every member is rolled out from the first state of a stretch under its recorded inputs. With d_kj the largest |x̄_k − c_k|_j
    among members, c the mean of their paths, and s_kj its root mean square over stretches, the level is q·s_kj, q the
    ⌈(n + 1)·share⌉-th smallest of the n values max_kj d_kj/s_kj, the largest if there is none.

    Args:
        model: of M ≥ 2 members.
        episodes: measured states (t + 1, nx) and inputs (t, nu) each; those of fewer than T steps are left out.
        steps: T.
        share: in (0, 1).
        limit: at most about so many stretches are rolled out, evenly spread over all there are.

    Raises:
        ValueError: with one member, which always agrees, or without a stretch of T steps.
    """
    where = "certainty_levels"
    if not isinstance(model, EnsembleTube):
        raise _require.fail(where, "an EnsembleTube", type(model).__name__)
    if model.num_members < 2:
        raise _require.fail(where, "an ensemble of at least 2 members", model.num_members)
    steps, limit = _require.count(where, "steps", steps), _require.count(where, "limit", limit)
    share = _require.probability(where, "share", share)
    places = [(i, j) for i, (_, u) in enumerate(episodes) for j in range(len(u) - steps + 1)]
    if not places:
        raise _require.fail(where, f"an episode of at least {steps} steps", [len(u) for _, u in episodes])
    chosen = places[:: -(-len(places) // limit)]
    starts = torch.stack([episodes[i][0][j] for i, j in chosen])
    inputs = torch.stack([episodes[i][1][j : j + steps] for i, j in chosen])
    x, gaps = starts.unsqueeze(-2).expand(-1, model.num_members, -1), []
    with torch.no_grad():  # the published recursion: the same inputs for every member
        for k in range(steps):
            x = model.mean(x, inputs[:, k].unsqueeze(-2))
            gaps.append((x - x.mean(-2, keepdim=True)).abs().amax(-2))
    apart = torch.stack(gaps, dim=1)  # (n, T, nx)
    if not bool(torch.isfinite(apart).all()):
        raise _require.fail(where, "recorded stretches on which all members stay finite", "one that diverges")
    spread = apart.square().mean(0).sqrt().clamp_min(1e-12)
    scores = (apart / spread).flatten(1).amax(1).sort().values
    rank = min(math.ceil((len(scores) + 1) * share), len(scores))
    return float(scores[rank - 1]) * spread
