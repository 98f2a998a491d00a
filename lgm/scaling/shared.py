"""One law of several families: terms that they share are told by all of their runs.

Families that are trained on the same images towards the same error have one E, which no run of any of them passes;
where they are shown the data alike they may share beta, too. Each further law is E + A/N^alpha + B/D^beta of its
family, fitted to all tables at once by least squares of ln L; draws are fits to tables simulated with each family's own
noise.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lgm.scaling import cells, forms, noise
from lgm.scaling.families import Family, Settings
from lgm.scaling.forms import PLAIN, Fitted, Form

CHANCE = 1e-3  # of an F test that finds so much lost by sharing where nothing is


def share(analysed: Sequence[Family], names: Sequence[str], settings: Settings) -> tuple[list[Family], str | None]:
    """The families with laws whose terms `names`, of E, alpha and beta, are one; or as they are, and why.

    Families without a law, and those for which another form predicts, keep theirs.
    """
    unknown = [name for name in names if name not in ("E", "alpha", "beta")]
    if unknown or not names:
        raise ValueError(f"--share={','.join(names)} must name terms of E, alpha and beta, by commas")
    able = [family for family in analysed if not family.reason and family.form is None]
    if len(able) < 2:
        return list(analysed), "fewer than two families have a law of the plain form"
    places = _places(len(able), names)
    found = [cells.gather(family.runs) for family in able]
    member = np.concatenate([np.full(len(f.n), i) for i, f in enumerate(found)])
    x, y = (np.concatenate([np.log(getattr(f, name)) for f in found]) for name in "nd")
    target = np.concatenate([f.mean(np.log(family.runs.loss)) for f, family in zip(found, able, strict=True)])
    weights = np.concatenate([f.rows for f in found])
    joint = Form("shared", "", (), lambda theta, x, y, u: _joint(theta, places, member, x, y), None)
    alone = np.stack([np.concatenate([law[:3], np.log(np.maximum(law[3:], 1e-3))])
                      for law in (family.estimates[settings.method].fit.law for family in able)])
    start = np.zeros(places.max() + 1)
    for place in range(len(start)):
        start[place] = alone[places == place].mean()
    theta, squares = forms.newton(joint, start[None], x, y, 0.0, target[None], weights)
    # separately, by the same least squares
    apart, rows = 0.0, 0
    for i, family in enumerate(able):
        some = member == i
        _, least = forms.newton(PLAIN, alone[i][None], x[some], y[some], 0.0, target[some][None], weights[some])
        apart, rows = apart + float(least[0]), rows + len(np.unique(family.runs.run))
    more, free = alone.size - len(start), rows - alone.size
    if free < 1 or _by_chance(float(squares[0]) - apart, more, apart, free) < CHANCE:
        return list(analysed), (f"the families do not share {' and '.join(names)}: with one for all the errors grow by "
                                f"{100 * (np.sqrt(float(squares[0]) / max(apart, 1e-300)) - 1):.2g}%")
    value = joint.log_loss(theta[0], x, y, 0.0)
    errors = []
    for i, (f, family) in enumerate(zip(found, able, strict=True)):
        own = theta[0][places[i]]
        left = np.log(family.runs.loss) - PLAIN.log_loss(own, np.log(family.runs.n), np.log(family.runs.d), 0.0)
        jacobian = forms.jacobian(PLAIN, own[None], np.log(f.n), np.log(f.d), 0.0)[0]
        errors.append(noise.measure(f, left, jacobian, np.inf).draw(forms.DRAWS, settings.seed + i))
    drawn, _ = forms.newton(joint, np.repeat(theta, forms.DRAWS, 0), x, y, 0.0,
                            value + np.concatenate(errors, -1), weights)
    kept = iter(enumerate(able))
    return [_with(family, next(kept)[0], theta[0], drawn, places, names) if family in able else family
            for family in analysed], None


def _with(family: Family, place: int, theta: np.ndarray, drawn: np.ndarray, places: np.ndarray, names) -> Family:
    own, runs = theta[places[place]], family.runs
    left = np.log(runs.loss) - PLAIN.log_loss(own, np.log(runs.n), np.log(runs.d), 0.0)
    form = dataclasses.replace(PLAIN, name="shared", words=f"{' and '.join(names)} shared by the families")
    sizes = float(runs.n.min()), float(runs.n.max())
    return dataclasses.replace(family, form=Fitted(form, own, drawn[:, places[place]], None, None, left, sizes))


def _places(families: int, names: Sequence[str]) -> np.ndarray:
    """[families, 5]: where in the joint unknowns each family's A, B, E, alpha and beta stand."""
    places, count, common = np.zeros((families, 5), int), 0, {}
    for i in range(families):
        for j, name in enumerate(PLAIN.unknowns):
            if name in names and name in common:
                places[i, j] = common[name]
                continue
            places[i, j] = common[name] = count
            count += 1
    return places


def _joint(theta: np.ndarray, places: np.ndarray, member: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """ln L [..., points] of joint unknowns [..., k], or [batch, 1, k] as a batch of fits has them."""
    each = (theta[..., 0, :] if theta.ndim == 3 else theta)[..., places[member]]
    return PLAIN.log_loss(each, x, y, 0.0)


def _by_chance(gain: float, more: int, rest: float, free: int) -> float:
    from scipy.special import fdtrc

    return float(fdtrc(more, free, max(gain, 0.0) / more / (rest / free + 1e-300)))
