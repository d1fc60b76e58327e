"""Checks certificates of gpsafe without gpsafe: `python gpsafe_check.py FILE…` needs the standard library and python-flint.

One line per check. Exit code 0: every file is accepted. 1: one is refused, at the line that says FAIL. 2: one is no certificate
(torn, another format or kind, a number that is not a finite float64, other fields, a hash that does not fit).

Numbers are strings that Python's `repr` writes of float64 and are taken as the rationals that they are. Plans on linear plants
and invariance are decided in rational arithmetic, hence exactly; what is said of a Gaussian process or a network in ball
arithmetic, at 128 bits and up to 2048 until it is decided. What is not decided then is refused. docs/certificates.md says what
is checked for each kind, and why that suffices.

In this order: reading; rational arithmetic; processes and bounds at a point (Process, check_bound, kernels); plans and
invariance of linear plants (Plan, check_plan, check_invariance); plans on what was learned (Known, spread, check_gp_plan;
Network, about, check_ensemble_plan); policies (ClippedLaw, check_membership, Average); files.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from operator import mul
from typing import Any

try:
    import flint
except ImportError:  # plans on linear plants and invariance need none
    flint: Any = None

FORMAT = "gpsafe-certificate/1"
FIELDS = ("format", "kind", "claim", "assumptions", "problem", "evidence", "sha256")
PRECISIONS = (128, 256, 512, 1024, 2048)
SENTENCES = {
    "RKHS_NORM": "‖f*_j − known part‖ ≤ B_j in the RKHS of the stated kernel of output j.",
    "SUBGAUSSIAN": "Given the past, the observation noise of output j is R_j-sub-Gaussian with mean zero.",
    "FIXED_KERNEL": "Kernel, length-scales, output scale, λ, known part and normaliser were chosen without looking at the data.",  # noqa: E501
    "ALL_OBSERVATIONS": "The data are one growing sequence: none dropped, none chosen by its outcome, each input fixed before its noise.",  # noqa: E501
    "NOISE_SCALES": "The noise of observation i is noise_scale[i] times as large as R, and that was known before it was made.",
    "KNOWN_OUTPUTS": "States without a process of their own follow the known part.",
    "TASK": "Initial state, horizon and cost of the plant are those of the `Task`.",
    "GAUSSIAN_NOISE": "The process noise is Gaussian with exactly the stated standard deviations, independent over time and of the state.",  # noqa: E501
    "NOISE_ELLIPSOID": "The process noise stays in the stated ellipsoid at every step of the plan.",
    "CALIBRATED": "At every point a member predicts the plant within the stated multiple of its deviation.",
    "EXACT_STATE": "The measured state is the plant's state.",
    "EXACT_INPUT": "The plant applies the input that was decided, unclipped and at once.",
    "TERMINAL_INVARIANT": "From that set the backup keeps the state in it, within limits, for ever.",
    "GIVEN": "Stated by the user, in the user's own words.",
}
GAUSSIAN = ("GAUSSIAN_NOISE", "noise exactly N(0, diag(noise_std^2)), independent over time")
EXACT = [("EXACT_STATE", "state measured exactly"), ("EXACT_INPUT", "input applied exactly")]
EXTRA = ("TERMINAL_INVARIANT", "GIVEN")  # may stand beside those that a kind needs: they only weaken its claim


class NotACertificate(Exception):
    """Exit code 2."""


class Refused(Exception):
    """Exit code 1."""


class Report:
    """Prints a line per check; the first that fails ends it."""

    def __init__(self, write) -> None:
        self.write = write

    def check(self, line: str, holds: bool, numbers: str) -> None:
        self.write(f"{'ok  ' if holds else 'FAIL'} {line}: {numbers}")
        if not holds:
            raise Refused(line)


# ----------------------------------------------------------------------------------------------------------- reading
def _pairs(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        raise NotACertificate(f"a key twice among {sorted(key for key, _ in pairs)}")
    return found


def _no_number(text):
    raise NotACertificate(f"the JSON number {text[:40]}: numbers are strings")


def fields(where: str, tree, names) -> list:
    """The values of exactly these fields."""
    if not isinstance(tree, dict) or set(tree) != set(names):
        got = sorted(set(tree) ^ set(names)) if isinstance(tree, dict) else type(tree).__name__
        raise NotACertificate(f"{where}: expected the fields {', '.join(names)}; more or less: {got}")
    return [tree[name] for name in names]


def number(where: str, text) -> str:
    """A finite float64, as repr writes it."""
    try:
        fine = isinstance(text, str) and math.isfinite(float(text)) and repr(float(text)) == text
    except ValueError:
        fine = False
    if not fine:
        raise NotACertificate(f"{where}: expected a finite float64 as Python writes it, got {text!r:.60}")
    return text


def rational(where: str, text) -> Fraction:
    """A fraction in lowest terms."""
    if not isinstance(text, str) or not re.fullmatch(r"-?[0-9]{1,4000}(/[0-9]{1,4000})?", text):
        raise NotACertificate(f"{where}: expected a fraction, got {text!r:.60}")
    if text.endswith("/0") or str(Fraction(text)) != text:
        raise NotACertificate(f"{where}: expected a fraction in lowest terms, got {text!r:.60}")
    return Fraction(text)


def count(where: str, value) -> int:
    """An integer ≥ 0."""
    if type(value) is not int or value < 0:
        raise NotACertificate(f"{where}: expected an integer >= 0, got {value!r:.60}")
    return value


def array(where: str, tree, *shape, read=number) -> list:
    """Nested lists of numbers of this shape; None stands for any length."""
    if not isinstance(tree, list) or (shape[0] is not None and len(tree) != shape[0]):
        got = f"{len(tree)}" if isinstance(tree, list) else type(tree).__name__
        raise NotACertificate(f"{where}: expected a list of {shape[0] or 'some'}, got {got}")
    if len(shape) == 1:
        return [read(where, item) for item in tree]
    return [array(where, item, *shape[1:], read=read) for item in tree]


def exact(tree) -> Any:
    """The rationals of numbers in nested lists."""
    return [exact(item) for item in tree] if isinstance(tree, list) else Fraction(float(tree))


def told(numbers: list) -> str:
    """A list in the words of claims."""
    return f"[{', '.join(numbers)}]"


def digest(tree) -> str:
    """SHA-256 of canonical JSON: keys sorted, no blanks, ASCII."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read(text: bytes) -> dict:
    """The certificate of a file, its hash checked."""
    try:
        tree = json.loads(
            text.decode("utf-8"), object_pairs_hook=_pairs, parse_float=_no_number, parse_constant=_no_number
        )
    except (ValueError, RecursionError) as error:
        raise NotACertificate(f"torn or foreign: {error!r:.120}") from None
    fields("certificate", tree, FIELDS)
    if tree["format"] != FORMAT:
        raise NotACertificate(f"format {tree['format']!r:.60}, expected {FORMAT!r}")
    if not isinstance(tree["kind"], str) or tree["kind"] not in KINDS:
        raise NotACertificate(f"kind {tree['kind']!r:.60}, expected one of {', '.join(KINDS)}")
    if flint is None and tree["kind"] not in ("plan", "invariance"):
        raise NotACertificate(f"kind {tree['kind']} needs python-flint, which cannot be imported")
    rest = {name: tree[name] for name in FIELDS if name != "sha256"}
    found = digest(rest)
    if tree["sha256"] != found:
        raise NotACertificate(f"sha256 {tree['sha256']!r:.20}…, that of the content is {found[:18]}…")
    return tree


def check_assumptions(report: Report, listed, needed: list) -> None:
    """Whether those that the claim needs are listed, word for word, and no other but those that a user may add."""
    if not isinstance(listed, list):
        raise NotACertificate("assumptions: expected a list")
    entries = []
    for i, entry in enumerate(listed):
        name, words, sentence = fields(f"assumptions[{i}]", entry, ("name", "words", "sentence"))
        if not isinstance(name, str) or not isinstance(words, str):
            raise NotACertificate(f"assumptions[{i}]: expected words")
        known = SENTENCES.get(name) == sentence
        report.check(f"assumptions[{i}]", known and (name in EXTRA or (name, words) in needed), f"{name} {words!r}")
        entries.append((name, words))
    missing = [words for name, words in needed if (name, words) not in entries]
    report.check("assumptions", not missing, f"missing {missing}" if missing else f"{len(entries)}, complete")


# ------------------------------------------------------------------------------------------------ rational arithmetic
def dot(a, b) -> Fraction:
    """Σ a_i b_i."""
    return sum((x * y for x, y in zip(a, b, strict=True) if x and y), Fraction(0))


def times(A, B) -> list:
    """The product of two matrices, lists of rows."""
    columns = list(zip(*B, strict=True))
    return [[dot(row, column) for column in columns] for row in A]


def plus(*vectors) -> list:
    """The sum of vectors."""
    return [sum(parts, Fraction(0)) for parts in zip(*vectors, strict=True)]


def apply(A, x) -> list:
    """A x."""
    return [dot(row, x) for row in A]


def at_least_root(value: Fraction, square: Fraction) -> bool:
    """value ≥ √square."""
    return value >= 0 and value * value >= square


def root(square: Fraction) -> Fraction:
    """A positive rational close to √square > 0."""
    shift = 64 - (square.numerator.bit_length() - square.denominator.bit_length()) // 2
    return Fraction(math.isqrt(int(square * Fraction(4) ** shift))) / Fraction(2) ** shift


def is_semidefinite(Q) -> bool:
    """Q ⪰ 0 for a symmetric Q, by elimination: no pivot is negative, and where one is 0, so is its row."""
    Q = [list(row) for row in Q]
    while Q:
        pivot, row = Q[0][0], Q[0][1:]
        if pivot < 0 or (pivot == 0 and any(row)):
            return False
        share = [v / pivot if v else v for v in row]
        Q = [[v - s * w for v, w in zip(other[1:], row, strict=True)] for s, other in zip(share, Q[1:], strict=True)]
    return True


def outer_sum(factors) -> list:
    """(Σ p_j) Σ L_jL_jᵀ/p_j ⪰ every ellipsoid in ⊕ E(0, L_jL_jᵀ), for p_j close to ‖L_j‖_F; summands 0 are left out."""
    d = len(factors[0])
    total, Q = Fraction(0), [[Fraction(0)] * d for _ in range(d)]
    for L in factors:
        square = sum((v * v for row in L for v in row), Fraction(0))
        if square:
            p = root(square)
            total += p
            Q = [[Q[i][j] + dot(L[i], L[j]) / p for j in range(d)] for i in range(d)]
    return [[total * v for v in row] for row in Q]


def diagonal(axes) -> list:
    """diag(axes)."""
    return [[a if i == j else Fraction(0) for j in range(len(axes))] for i, a in enumerate(axes)]


# ------------------------------------------------------------------------------------------------- confidence bounds
PROCESS = ("bound", "kernel", "regularizer", "rkhs_norm", "subgaussian", "targets")
DATA = ("delta", "inputs", "noise_scale")


class Process:
    """An output f with ‖f‖ ≤ B, seen as y_i = f(z_i) + ε_i, ε_i R w_i-sub-Gaussian, under kernel and regulariser λ."""

    def __init__(self, report: Report, where: str, values, inputs: list, scales, dim: int) -> None:
        bound, kernel, self.lam, self.B, self.R, targets = values
        self.inputs, self.targets = inputs, array(f"{where}targets", targets, len(inputs))
        self.bits = 0
        self.scales = scales or ["1.0"] * len(inputs)
        for name, value in (("regularizer", self.lam), ("rkhs_norm", self.B), ("subgaussian", self.R)):
            number(f"{where}{name}", value)
        report.check(f"{where}bound", bound == "mixture", f"{bound!r:.60}, expected 'mixture'")
        self.kernel = read_kernel(report, where, kernel, dim)
        signs = f"lambda {self.lam}, B {self.B}, R {self.R} > 0"
        report.check(f"{where}signs", min(map(float, (self.lam, self.B, self.R))) > 0, signs)

    def at_precision(self) -> None:
        """Everything in balls of the present precision."""
        if self.bits == flint.ctx.prec:
            return
        self.bits = flint.ctx.prec
        self.parts = list(map(part_in_balls, self.kernel))
        self.X, self.norm = [list(map(ball, row)) for row in self.inputs], ball(self.B)
        self.y, self.noise = list(map(ball, self.targets)), [ball(self.lam) * ball(w) ** 2 for w in self.scales]
        self.gram = [[kernel_value(self.parts, x, z) for z in self.X[: i + 1]] for i, x in enumerate(self.X)]

    def posterior(self, columns: list, n: int, p: int, delta: str) -> Any:
        """yᵀA⁻¹D, A⁻¹D and β from the first n observations, the columns of D being k(z_i, ·) under functionals.

        A = K + λ diag(w²), β² = B² + (R²/λ)(log det A − Σ log(λ w_i²) + 2 log(p/δ)).
        """
        logdet, solved, means = ball(0), None, [ball(0)] * len(columns)
        if n:
            A = flint.arb_mat([[self.gram[max(i, j)][min(i, j)] for j in range(n)] for i in range(n)])
            for i in range(n):
                A[i, i] += self.noise[i]
                logdet -= self.noise[i].log()
            logdet += A.det().log()
            D = flint.arb_mat([[column[i] for column in columns] for i in range(n)])
            solved = A.solve(D, nonstop=True)  # NaN if A is not told from a singular matrix
            means = (flint.arb_mat([self.y[:n]]) * solved).entries()
        excess = logdet + 2 * (ball(p) / ball(delta)).log()
        return means, solved, (self.norm**2 + ball(self.R) ** 2 / ball(self.lam) * excess).sqrt()

    def needed(self, label: str = "") -> list:
        """What is believed of it."""
        return [("RKHS_NORM", f"rkhs_norm<={self.B}{label}"), ("SUBGAUSSIAN", f"subgaussian({self.R}){label}")]


def ball(value) -> Any:
    """A fraction as a ball of the present precision that contains it, or the text of a number exactly."""
    if isinstance(value, Fraction):
        return flint.arb(flint.fmpq(value.numerator, value.denominator))
    return flint.arb(float(value) if isinstance(value, str) else value)


def read_data(report: Report, delta, inputs, scales, dim: int):
    """Inputs of observations, and the sizes of their noise."""
    inputs = array("problem.inputs", inputs, None, dim)
    scales = None if scales is None else array("problem.noise_scale", scales, len(inputs))
    report.check("delta", 0 < float(number("problem.delta", delta)) < 1, f"{delta} in (0, 1)")
    if scales is not None:
        report.check("noise scales", all(float(w) >= 1 for w in scales), ">= 1")
    return inputs, scales


def about_data(scales) -> list:
    """What is believed of the data of every process."""
    needed = [("FIXED_KERNEL", "kernel and lambda fixed before data"), ("ALL_OBSERVATIONS", "every observation kept")]
    return needed + ([] if scales is None else [("NOISE_SCALES", "noise scales known")])


def read_counts(report: Report, counts, n: int) -> list:
    """How many observations each posterior has."""
    counts = array("problem.generations", counts, None, read=count)
    report.check("generations", bool(counts) and max(counts) <= n, f"the first {counts} of {n} observations")
    return counts


def check_bound(report: Report, tree: dict) -> None:
    """[low, high] ⊇ ∩ [μ − βσ, μ + βσ] at the query over the posteriors named, β of the mixture bound."""
    delta, inputs, scales, output, outputs, query, counts, prior, *process = fields(
        "problem", tree["problem"], (*DATA, "output", "outputs", "query", "generations", "prior", *PROCESS)
    )
    (interval,) = fields("evidence", tree["evidence"], ("interval",))
    low, high = array("evidence.interval", interval, 2)
    query = array("problem.query", query, None)
    p, output = count("problem.outputs", outputs), count("problem.output", output)
    if type(prior) is not bool:
        raise NotACertificate(f"problem.prior: expected true or false, got {prior!r:.60}")
    inputs, scales = read_data(report, delta, inputs, scales, len(query))
    f = Process(report, "", process, inputs, scales, len(query))
    report.check("output", output < p, f"{output} of {p}")
    counts = read_counts(report, counts, len(inputs))
    check_assumptions(report, tree["assumptions"], f.needed() + about_data(scales))
    check_claim(
        report,
        tree,
        f"On an event of probability at least 1 - {delta}, one for all {p} outputs, the residual f of output {output} has"
        f" {low} <= f(z) <= {high} at z = {told(query)}: mixture bound of the first {counts} observations"
        f"{' and |f(z)| <= B sqrt(k(z, z)), intersected' if prior else ''}.",
    )
    report.check("interval", float(low) <= float(high), f"{low} <= {high}")

    def ends():
        z = list(map(ball, query))
        f.at_precision()
        ((bottoms, tops),) = bands(f, [z], counts, p, delta, prior)
        return bottoms, tops, ball(low), ball(high)

    def decided(found) -> bool:
        bottoms, tops, lower, upper = found
        below = settled([lower <= e for e in bottoms], [lower > e for e in bottoms])
        return below and settled([upper >= e for e in tops], [upper < e for e in tops])

    bottoms, tops, lower, upper = at_some_precision(report, "ends", ends, decided)
    words = f"{flint.ctx.prec} bits"
    below, above = any(lower <= e for e in bottoms), any(upper >= e for e in tops)
    report.check("lower end", below, f"{low} <= {' or '.join(e.str(20) for e in bottoms)} ({words})")
    report.check("upper end", above, f"{high} >= {' or '.join(e.str(20) for e in tops)}")


def settled(yes: list, no: list) -> bool:
    """Whether it is decided that one of several comparisons holds, or that none does."""
    return any(yes) or all(no)


def at_some_precision(report: Report, line: str, compute: Callable[[], Any], decided: Callable[[Any], bool]) -> Any:
    """What is computed at the first precision that decides it."""
    for bits in PRECISIONS:
        flint.ctx.prec = bits
        found = compute()
        if decided(found):
            return found
    report.check(line, False, f"not decided at {PRECISIONS[-1]} bits")
    return None


def bands(f: Process, points: list, counts: list, p: int, delta: str, prior: bool) -> list:
    """Per point the lower and the upper ends of all intervals that hold f there: ±B√k (prior) and μ ± βσ of each posterior."""
    own = [kernel_value(f.parts, z, z) for z in points]
    columns = [[kernel_value(f.parts, x, z) for x in f.X] for z in points]
    caps = [f.norm * k.sqrt() for k in own] if prior else []
    found = [([-cap], [cap]) for cap in caps] if prior else [([], []) for _ in points]
    for n in counts:
        means, solved, beta = f.posterior(columns, n, p, delta)
        for q, (bottoms, tops) in enumerate(found):
            explained = sum((columns[q][i] * solved[i, q] for i in range(n)), ball(0))
            half = beta * (own[q] - explained).sqrt()
            bottoms.append(means[q] - half)
            tops.append(means[q] + half)
    return found


def read_kernel(report: Report, label: str, tree, dim: int) -> list:
    """The parts of a sum: (family or ν, scales, variance, dimensions), of a product ("product", factors, "1.0", [])."""
    if not isinstance(tree, list):
        raise NotACertificate(f"{label}kernel: expected a list of parts")
    parts = [read_part(report, f"{label}kernel[{i}]", part, dim) for i, part in enumerate(tree)]
    report.check(f"{label}kernel", bool(parts), f"{len(parts)} parts")
    return parts


def read_part(report: Report, where: str, part, dim: int) -> tuple:
    """One part of a sum, or one factor of a product."""
    family = part.get("family") if isinstance(part, dict) else None
    if family == "product":
        _, factors = fields(where, part, ("family", "factors"))
        if not isinstance(factors, list) or not factors:
            raise NotACertificate(f"{where}: expected a list of factors")
        simple = all(isinstance(factor, dict) and factor.get("family") != "product" for factor in factors)
        report.check(f"{where} factors", simple, "no products of products")
        return (
            "product",
            [read_part(report, f"{where}[{i}]", factor, dim) for i, factor in enumerate(factors)],
            "1.0",
            [],
        )
    periods, variance = [], "1.0"
    if family == "linear":
        _, scale, dims = fields(where, part, ("family", "variance", "dims"))
        nu = "linear"
    elif family == "periodic":
        _, periods, scale, variance, dims = fields(where, part, ("family", "period", "lengthscale", "variance", "dims"))
        nu = "periodic"
    else:
        _, nu, scale, variance, dims = fields(where, part, ("family", "nu", "lengthscale", "variance", "dims"))
        fine = (family == "rbf" and nu is None) or (family == "matern" and nu in ("0.5", "1.5", "2.5"))
        report.check(where, fine, f"{family!r:.20} of nu {nu!r:.20}")
    dims = array(f"{where}.dims", dims, None, read=count)
    scale, variance = array(f"{where}.scales", scale, len(dims)), number(f"{where}.variance", variance)
    scale += array(f"{where}.period", periods, len(dims)) if family == "periodic" else []
    fine = len(set(dims)) == len(dims) > 0 and max(dims) < dim
    report.check(f"{where} dimensions", fine, f"{dims} of 0..{dim - 1}")
    numbers = f"variance {variance}, scales {told(scale)} > 0"
    report.check(f"{where} numbers", min(map(float, (variance, *scale))) > 0, numbers)
    return nu, scale, variance, dims


def part_in_balls(part: tuple) -> tuple:
    """The same with balls for texts."""
    nu, scales, variance, dims = part
    return nu, list(map(part_in_balls if nu == "product" else ball, scales)), ball(variance), dims


def kernel_value(parts, x, z):
    """k(x, z) in balls: the sum over parts as `read_kernel` gives them."""
    total = ball(0)
    for nu, scales, variance, dims in parts:
        if nu == "product":
            value = ball(1)
            for factor in scales:
                value *= kernel_value([factor], x, z)
            total += value
        elif nu == "linear":
            total += sum((v * x[i] * z[i] for v, i in zip(scales, dims, strict=True)), ball(0))
        elif nu == "periodic":
            pairs = zip(scales[: len(dims)], scales[len(dims) :], dims, strict=True)
            waves = [((x[i] - z[i]) / period).sin_pi() ** 2 / scale for scale, period, i in pairs]
            total += variance * (-2 * sum(waves, ball(0))).exp()
        else:
            square = sum((((x[i] - z[i]) / scale) ** 2 for scale, i in zip(scales, dims, strict=True)), ball(0))
            total += variance * profile(nu, square)[0]
    return total


def profile(nu, square):
    """κ and −κ′(r)/r of a stationary kernel as functions of r², and −κ″(0)."""
    if nu is None:
        decay = (-square / 2).exp()
        return decay, decay, ball(1)
    r = (2 * ball(nu) * square).sqrt()
    decay = (-r).exp()
    if nu == "0.5":
        return decay, None, None
    if nu == "1.5":
        return (1 + r) * decay, 3 * decay, ball(3)
    return (1 + r + r * r / 3) * decay, ball(5) / 3 * (1 + r) * decay, ball(5) / 3


# --------------------------------------------------------------------------------------------------------- plants
def plant(problem: dict, names):
    """A, B and c in rationals, the numbers of states and inputs, and the other fields."""
    A, B, c, *rest = fields("problem", problem, ("A", "B", "c", *names))
    c = array("problem.c", c, None)
    nx = len(c)
    A, B = array("problem.A", A, nx, nx), array("problem.B", B, nx, None)
    nu = len(B[0]) if nx else 0
    if not nx or not nu:
        raise NotACertificate("problem: expected at least one state and one input")
    return exact(A), exact(array("problem.B", B, nx, nu)), exact(c), nx, nu, rest


def polytope(where: str, tree, dim: int):
    """Rows H and offsets h, {x : Hx ≤ h}."""
    H, h = fields(where, tree, ("H", "h"))
    H = array(f"{where}.H", H, None, dim)
    return exact(H), exact(array(f"{where}.h", h, len(H)))


def check_claim(report: Report, tree: dict, sentence: str) -> None:
    """Whether the claim says what is checked, of this problem."""
    sentence = f"{sentence} Problem {digest(tree['problem'])[:16]}."
    same = tree["claim"] == sentence
    report.check("claim", same, sentence if same else f"{tree['claim']!r:.300} is not {sentence!r}")


def check_rows(report: Report, where: str, H, h, center, factor, tolerance) -> None:
    """H_i c + ‖H_i L‖ ≤ h_i + tolerance for all rows."""
    for i, (row, offset) in enumerate(zip(H, h, strict=True)):
        room = offset + tolerance - dot(row, center)
        square = sum((v * v for v in times([row], factor)[0]), Fraction(0))
        if not at_least_root(room, square):
            report.check(f"{where} row {i}", False, f"{math.sqrt(square):.17g} <= {float(room):.17g}")
    report.check(where, True, f"{len(H)} rows")


PLAN = ("states", "inputs", "terminal", "gain", "x0", "plan", "tolerance")


class Plan:
    """A law u = plan[k] + gain[k] (x − reference[k]) and the rows that it has to keep."""

    def __init__(self, report: Report, values, nx: int, nu: int) -> None:
        states, inputs, terminal, gain, x0, plan, self.tolerance = values
        plan = array("problem.plan", plan, None, nu)
        self.T = len(plan)
        if not self.T:
            raise NotACertificate("problem.plan: expected at least one step")
        gain, self.start = array("problem.gain", gain, self.T, nu, nx), array("problem.x0", x0, nx)
        self.plan, self.gain, self.x0 = exact(plan), exact(gain), exact(self.start)
        self.X, self.U = polytope("problem.states", states, nx), polytope("problem.inputs", inputs, nu)
        self.F, self.nx = polytope("problem.terminal", terminal, nx), nx
        self.slack = Fraction(float(number("problem.tolerance", self.tolerance)))
        report.check("tolerance", self.slack >= 0, f"{self.tolerance} >= 0")

    def kept(self) -> str:
        """What is claimed of the rows."""
        rows, T = [len(part[0]) for part in (self.X, self.U, self.F)], self.T
        return (
            f"in the {rows[0]} rows of states at stages 1..{T}, its inputs in the {rows[1]} rows of inputs at stages"
            f" 0..{T - 1}, and x_{T} in the {rows[2]} rows of terminal, each to within {self.tolerance}."
        )

    def check_tube(self, report: Report, label: str, reference, centers, factors, step) -> None:
        """From x_0 on, ellipsoid k + 1 contains the outer sum of what `step` says may come of ellipsoid k; all rows hold."""
        none = [[Fraction(0)] * self.nx for _ in range(self.nx)]
        fine = centers[0] == reference[0] == self.x0 and factors[0] == none
        report.check(f"{label}start", fine, "center[0] is x_0, factor[0] is 0")
        check_rows(report, f"{label}states at stage 0", *self.X, self.x0, none, self.slack)
        for k, (x, L, K) in enumerate(zip(centers, factors, self.gain, strict=False)):
            u = plus(self.plan[k], apply(K, plus(x, [-v for v in reference[k]])))
            check_rows(report, f"{label}inputs at stage {k}", *self.U, u, times(K, L), self.slack)
            Q, claimed = outer_sum(step(k, x, u, L, K, centers[k + 1])), factors[k + 1]
            gap = [[dot(p, q) - Q[i][j] for j, q in enumerate(claimed)] for i, p in enumerate(claimed)]
            size = [sum(float(dot(row, row)) for row in claimed), sum(float(Q[i][i]) for i in range(self.nx))]
            words = f"contains the outer sum, traces {size[0]:.6g} and {size[1]:.6g}"
            report.check(f"{label}tube at stage {k + 1}", is_semidefinite(gap), words)
            check_rows(report, f"{label}states at stage {k + 1}", *self.X, centers[k + 1], claimed, self.slack)
        check_rows(report, f"{label}terminal", *self.F, centers[self.T], factors[self.T], self.slack)


def check_plan(report: Report, tree: dict) -> None:
    """The claimed ellipsoids contain the plant stage by stage, and every row holds on them."""
    A, B, c, nx, nu, (axes, *plan) = plant(tree["problem"], ("half_axes", *PLAN))
    axes, plan = array("problem.half_axes", axes, nx), Plan(report, plan, nx, nu)
    centers, factors = fields("evidence", tree["evidence"], ("center", "factor"))
    centers = exact(array("evidence.center", centers, plan.T + 1, nx))
    factors = exact(array("evidence.factor", factors, plan.T + 1, nx, nx))
    report.check("signs", all(float(a) >= 0 for a in axes), "half-axes >= 0")
    check_assumptions(report, tree["assumptions"], linear_assumptions(axes))
    check_claim(
        report,
        tree,
        f"From x_0 = {told(plan.start)} the law u = plan[k] + gain[k] (x - center[k]) keeps x+ = Ax + Bu + c + w, w in the"
        f" ellipsoid with half-axes {told(axes)}, {plan.kept()}",
    )
    noise = diagonal(exact(axes))

    def step(k, x, u, L, K, ahead):
        moved = times([plus(a, b) for a, b in zip(A, times(B, K), strict=True)], L)
        error = plus(apply(A, x), apply(B, u), c, [-v for v in ahead])
        return [moved, noise, [[v] for v in error]]

    plan.check_tube(report, "", centers, centers, factors, step)


def linear_assumptions(axes) -> list:
    """What a linear plant with an ellipsoidal disturbance needs."""
    return [
        ("KNOWN_OUTPUTS", "unlearned outputs equal the known part (all states)"),
        ("NOISE_ELLIPSOID", f"w in its ellipsoid: half-axes {told(axes)}, at every step"),
        *EXACT,
    ]


def check_invariance(report: Report, tree: dict) -> None:
    """Multipliers prove every row of S after a step, and every row of U, from the rows of S."""
    names = ("half_axes", "region", "inputs", "gain", "offset")
    A, B, c, nx, nu, (axes, region, inputs, gain, offset) = plant(tree["problem"], names)
    axes = array("problem.half_axes", axes, nx)
    (H, h), (U, v) = polytope("problem.region", region, nx), polytope("problem.inputs", inputs, nu)
    K = exact(array("problem.gain", gain, nu, nx))
    o = exact(array("problem.offset", offset, nu))
    names = ("point", "region", "inputs")
    point, stay, push = fields("evidence", tree["evidence"], names)
    point = array("evidence.point", point, nx, read=rational)
    stay = array("evidence.region", stay, len(H), len(H), read=rational)
    push = array("evidence.inputs", push, len(U), len(H), read=rational)
    report.check("signs", all(float(a) >= 0 for a in axes), "half-axes >= 0")
    needed = linear_assumptions(axes)
    needed.insert(2, ("NOISE_ELLIPSOID", "w in its ellipsoid for as long as the backup runs"))
    check_assumptions(report, tree["assumptions"], needed)
    check_claim(
        report,
        tree,
        f"From every x in the {len(H)} rows of region, which is not empty, the law u = offset + gain x has u in the {len(U)}"
        f" rows of inputs and x+ = Ax + Bu + c + w in region, w in the ellipsoid with half-axes {told(axes)}: region is never"
        " left.",
    )
    inside = all(dot(row, point) <= b for row, b in zip(H, h, strict=True))
    report.check("not empty", inside, f"{[float(x) for x in point]} is in region")
    closed = [plus(a, b) for a, b in zip(A, times(B, K), strict=True)]
    shift, ellipsoid = plus(apply(B, o), c), exact(axes)
    for name, rows, offsets, proof, loop, move, noise in (
        ("region", H, h, stay, closed, shift, ellipsoid),
        ("inputs", U, v, push, K, o, [Fraction(0)] * nu),
    ):
        for i, (row, b, y) in enumerate(zip(rows, offsets, proof, strict=True)):
            line = f"{name} row {i}"
            if min(y) < 0:
                report.check(line, False, f"multiplier {float(min(y))} < 0")
            if times([y], H) != times([row], loop):
                report.check(line, False, "multipliers combine the rows of region to another normal")
            room = b - dot(y, h) - dot(row, move)
            square = sum(((r * a) ** 2 for r, a in zip(row, noise, strict=True)), Fraction(0))
            report.check(line, at_least_root(room, square), f"{math.sqrt(square):.12g} <= {float(room):.12g}")


# ------------------------------------------------------------------------------------------- plans on what was learned
class Known:
    """p(z) = (A B)z + c + Σ_s amplitude_s sin(frequency_s·z + phase_s), z = (x, u)."""

    def __init__(self, A, B, c, sines) -> None:
        self.rows, self.c = [[*a, *b] for a, b in zip(A, B, strict=True)], c
        self.sines = []
        if not isinstance(sines, list):
            raise NotACertificate("problem.sines: expected a list")
        for i, sine in enumerate(sines):
            amplitude, frequency, phase = fields(f"problem.sines[{i}]", sine, ("amplitude", "frequency", "phase"))
            amplitude = array(f"problem.sines[{i}].amplitude", amplitude, len(c))
            frequency = array(f"problem.sines[{i}].frequency", frequency, len(self.rows[0]))
            self.sines.append((amplitude, exact(frequency), number(f"problem.sines[{i}].phase", phase)))

    def at(self, z: list, M: list):
        """p(z̄), its Jacobian, and bounds of |p(z̄ + v) − p(z̄) − ∂p(z̄)v| over v = Mξ, ‖ξ‖ ≤ 1, in balls.

        With s = frequency·v, |sin(φ + s) − sin φ − s cos φ| ≤ s²/2 · sup |sin| and sup |sin| ≤ min(1, |sin φ| + |s|).
        """
        value = [ball(dot(row, z) + c) for row, c in zip(self.rows, self.c, strict=True)]
        slope, rest = [list(map(ball, row)) for row in self.rows], [ball(0)] * len(value)
        for amplitude, frequency, phase in self.sines:
            angle = ball(dot(frequency, z)) + ball(phase)
            s = norm([ball(v) for v in times([frequency], M)[0]])
            bend = s * s / 2 * (abs(angle.sin()) + s).min(ball(1))
            for i, a in enumerate(map(ball, amplitude)):
                value[i] += a * angle.sin()
                slope[i] = [v + a * angle.cos() * ball(w) for v, w in zip(slope[i], frequency, strict=True)]
                rest[i] += abs(a) * bend
        return value, slope, rest


def norm(vector: list):
    """‖v‖ from above, in balls."""
    return top_of(sum((v * v for v in vector), ball(0))).sqrt()


def top_of(value):
    """The upper end of a ball, 0 if that is negative: for numbers that are known to be ≥ 0."""
    return value.upper().max(ball(0))


def largest_eigenvalue(S):
    """≥ that of a symmetric positive semidefinite matrix, in balls: (tr S^m)^(1/m), m = 2^30."""
    for _ in range(30):
        S = S * S
    trace = top_of(S.trace())
    return (trace.log() / 2**30).exp() if trace > 0 else trace


def spread(process: Process, z: list, M: list, p: int, delta: str):
    """Posterior mean and gradient of f at z̄, and a bound of |f(z̄ + v) − mean − gradient·v| over v = Mξ, ‖ξ‖ ≤ 1, in balls.

    (1) f(z̄ + v) = (f(z̄) + ∂_v f(z̄)) + ⟨f, e⟩, e = k(z̄ + v, ·) − k(z̄, ·) − ∂_v k(z̄, ·): β times the posterior deviation of the
    first, and B‖e‖, ‖e‖² = variance (2(1 − κ(r)) + r²(−κ″(0)) + 2rκ′(r)), which grows with r = ‖v/ℓ‖. (2) The same, value and
    slope apart, with |f(z̄)| ≤ B√k where that is less. (3) The value, the gradient of the mean, and B‖k(z̄ + v, ·) − k(z̄, ·)‖.
    """
    ((nu, scales, variance, dims),) = process.parts
    size, n = len(z), len(process.X)
    inverse = [ball(0)] * size
    for i, scale in zip(dims, scales, strict=True):
        inverse[i] = 1 / scale
    columns = [[ball(0)] * n for _ in range(1 + size)]
    for i, x in enumerate(process.X):
        gap = [(a - b) * q for a, b, q in zip(map(ball, z), x, inverse, strict=True)]
        value, slope, _ = profile(nu, sum((g**2 for g in gap), ball(0)))
        columns[0][i] = variance * value
        for q, g in enumerate(gap):
            columns[1 + q][i] = -variance * slope * g * inverse[q]
    means, solved, beta = process.posterior(columns, n, p, delta)
    bend = profile(nu, ball(0))[2]
    cov = flint.arb_mat([[ball(0)] * (1 + size) for _ in range(1 + size)])
    for q, prior in enumerate([ball(1), *(bend * v * v for v in inverse)]):
        cov[q, q] = variance * prior
    if n:
        cov = cov - flint.arb_mat(columns) * solved
    moves = flint.arb_mat([[ball(v) for v in row] for row in M])
    turned = flint.arb_mat([[cov[1 + i, 1 + j] for j in range(size)] for i in range(size)])
    mixed = (flint.arb_mat([[cov[0, 1 + i] for i in range(size)]]) * moves).entries()
    steep = largest_eigenvalue(moves.transpose() * turned * moves)
    scaled = flint.arb_mat([[q * ball(v) for v in row] for q, row in zip(inverse, M, strict=True)])
    square = largest_eigenvalue(scaled.transpose() * scaled).upper()
    value, slope, _ = profile(nu, square)
    rest = process.norm * top_of(variance * (2 * (1 - value) + square * bend - 2 * square * slope)).sqrt()
    here = (beta * top_of(cov[0, 0]).sqrt()).min(process.norm * variance.sqrt() + abs(means[0]))
    joint = beta * (top_of(cov[0, 0]) + 2 * norm(mixed) + steep).sqrt() + rest
    apart = here + beta * steep.sqrt() + rest
    tilt = norm((flint.arb_mat([means[1:]]) * moves).entries())
    plain = here + tilt + process.norm * top_of(2 * variance * (1 - value)).sqrt()
    return means[0], means[1:], joint.min(apart).min(plain)


def fraction(value) -> Fraction:
    """The upper end of a ball."""
    mantissa, exponent = value.upper().man_exp()
    return Fraction(int(mantissa)) * Fraction(2) ** int(exponent)


def summands(value: list, slope: list, rest: list, M: list, ahead: list) -> list:
    """Factors of sets in whose sum the next state less `ahead` is, for x⁺ ∈ value + slope·v + {|r_i| ≤ rest_i}, v = Mξ.

    The slope is rounded, and what that leaves out, and value − ahead, is added to the box.
    """
    S = [[Fraction(float(v.mid())) for v in row] for row in slope]
    size = [norm([ball(v) for v in row]) for row in M]
    left = [
        sum((abs(a - ball(b)) * s for a, b, s in zip(*both, size, strict=True)), ball(0))
        for both in zip(slope, S, strict=True)
    ]
    box = [fraction(r + m + abs(v - ball(a))) for r, m, v, a in zip(rest, left, value, ahead, strict=True)]
    return [times(S, M), *([[b if i == j else Fraction(0)] for i in range(len(box))] for j, b in enumerate(box))]


def check_gp_plan(report: Report, tree: dict) -> None:
    """As `check_plan`, with what the confidence set leaves open over every ellipsoid as a box, and Gaussian noise."""
    names = ("sines", "learned", "data", "noise_std", "noise_delta", *PLAN)
    A, B, c, nx, nu, (sines, learned, data, std, noise_delta, *plan) = plant(tree["problem"], names)
    std, known, plan = array("problem.noise_std", std, nx), Known(A, B, c, sines), Plan(report, plan, nx, nu)
    noise_delta = number("problem.noise_delta", noise_delta)
    centers, factors, radius = fields("evidence", tree["evidence"], ("center", "factor", "radius"))
    centers = exact(array("evidence.center", centers, plan.T + 1, nx))
    factors = exact(array("evidence.factor", factors, plan.T + 1, nx, nx))
    (radius,) = exact([number("evidence.radius", radius)])
    delta, inputs, scales = fields("problem.data", data, DATA)
    inputs, scales = read_data(report, delta, inputs, scales, nx + nu)
    if not isinstance(learned, list):
        raise NotACertificate("problem.learned: expected a list")
    outputs, processes, needed = [], [], []
    for i, entry in enumerate(learned):
        output, *process = fields(f"problem.learned[{i}]", entry, ("output", *PROCESS))
        outputs.append(count(f"problem.learned[{i}].output", output))
        processes.append(Process(report, f"learned[{i}].", process, inputs, scales, nx + nu))
        smooth = len(processes[i].kernel) == 1 and processes[i].kernel[0][0] in (None, "1.5", "2.5")
        report.check(f"learned[{i}].smooth", smooth, "one RBF or Matern kernel, 3/2 or 5/2")
        needed += processes[i].needed(f" (output {output})")
    fine = len(set(outputs)) == len(outputs) > 0 and max(outputs) < nx
    report.check("outputs", fine, f"{outputs} of 0..{nx - 1}")
    report.check("signs", all(float(v) >= 0 for v in std), "noise >= 0")
    for output, f in zip(outputs, processes, strict=True):
        report.check("noise", float(f.R) >= float(std[output]), f"R {f.R} >= noise_std {std[output]}")
    rest = [j for j in range(nx) if j not in outputs]
    if rest:
        needed.append(("KNOWN_OUTPUTS", f"unlearned outputs equal the known part (states {rest})"))
    check_assumptions(report, tree["assumptions"], [*needed, *about_data(scales), GAUSSIAN, *EXACT])
    check_claim(
        report,
        tree,
        f"On an event of probability at least 1 - {delta} over the data, and then of at least 1 - {noise_delta} over the noise,"
        f" from x_0 = {told(plan.start)} the law u = plan[k] + gain[k] (x - center[k]) keeps x+ = p(x, u) + f(x, u) + w, w ~"
        f" N(0, diag({told(std)}^2)), {plan.kept()}",
    )
    noisy, p = sum(float(v) > 0 for v in std), len(learned)
    if noisy:
        flint.ctx.prec = PRECISIONS[0]
        beyond = plan.T * ball(radius * radius / 2).gamma_upper(ball(noisy) / 2, regularized=1)
        fine = radius >= 0 and beyond <= ball(noise_delta)
        report.check(
            "radius", fine, f"{plan.T} P(chi^2_{noisy} > {float(radius):.6g}^2) = {beyond.str(8)} <= {noise_delta}"
        )
    noise = diagonal([radius * v for v in exact(std)])

    def step(k, x, u, L, K, ahead):
        z, M = [*x, *u], [*L, *times(K, L)]

        def compute():
            value, slope, box = known.at(z, M)
            for j, f in zip(outputs, processes, strict=True):
                f.at_precision()
                mean, gradient, bound = spread(f, z, M, p, delta)
                value[j], box[j] = value[j] + mean, box[j] + bound
                slope[j] = [a + b for a, b in zip(slope[j], gradient, strict=True)]
            return value, slope, box

        value, slope, box = at_some_precision(report, f"confidence set at stage {k}", compute, told_apart)
        moved, *segments = summands(value, slope, box, M, ahead)
        return [moved, noise, *segments]

    plan.check_tube(report, "", centers, centers, factors, step)


def told_apart(found) -> bool:
    """Whether values and bounds are known to 2⁻⁴⁰ of the largest."""
    value, slope, box = found
    balls = [*value, *box, *(v for row in slope for v in row)]
    return all(v.is_finite() and v.rad() <= 2.0**-40 * (1 + abs(v).mid()) for v in balls)


class Network:
    """A member: z̃ = (z − offset)/scale, tanh layers, out; the first half is the mean, up to an affine map, the other ln σ²."""

    def __init__(self, weights: list, biases: list, normalised, restored, limits, hard: bool) -> None:
        self.layers, self.hard = list(zip(weights, biases, strict=True)), hard
        self.texts, self.bits = (normalised, restored, limits), 0

    def at_precision(self) -> None:
        """Everything in balls of the present precision."""
        if self.bits != flint.ctx.prec:
            self.bits = flint.ctx.prec
            self.offset, self.scale = (list(map(ball, part)) for part in self.texts[0])
            self.shift, self.size = (list(map(ball, part)) for part in self.texts[1])
            self.low, self.high = (list(map(ball, part)) for part in self.texts[2])
            self.turned = [flint.arb_mat([list(map(ball, row)) for row in W]).transpose() for W, _ in self.layers]
            self.added = [list(map(ball, b)) for _, b in self.layers]

    def sweep(self, z: list):
        """Outputs over a box of balls, and their Jacobian in z, (d_out, nz), as ranges."""
        values = [(v - o) / s for v, o, s in zip(z, self.offset, self.scale, strict=True)]
        slope = flint.arb_mat([[1 / s if i == j else ball(0) for j, s in enumerate(self.scale)] for i in range(len(z))])
        for depth, (W, b) in enumerate(zip(self.turned, self.added, strict=True)):
            if depth:
                ends = [(v.lower().tanh(), v.upper().tanh()) for v in values]  # tanh and |tanh| are monotone
                values = [low.union(high) for low, high in ends]
                steep = [(1 - least(low, high) ** 2).union(1 - abs(low).max(abs(high)) ** 2) for low, high in ends]
                slope = flint.arb_mat([[s * v for v in row] for s, row in zip(steep, slope.table(), strict=True)])
            values = [v + add for v, add in zip((W * flint.arb_mat([[v] for v in values])).entries(), b, strict=True)]
            slope = W * slope
        return values, slope.table()

    def deviation(self, raw: list) -> list:
        """σ of x⁺, which grows with the raw outputs."""
        found = []
        for value, size, low, high in zip(raw, self.size, self.low, self.high, strict=True):
            value += 2 * size.log()
            if self.hard:
                value = value.max(low).min(high)
            else:
                value = low + (1 + (high - (1 + (high - value).exp()).log() - low).exp()).log()
            found.append((value / 2).exp())
        return found


def least(low, high):
    """inf of |v| over v between two balls, in a ball."""
    return ball(0) if low <= 0 <= high else abs(low).min(abs(high))


def cubes(side: int, dim: int) -> list:
    """Centres of the cubes of half-width 1/side of a regular grid on [−1, 1]^dim that meet the unit ball."""
    line, half, centers = [Fraction(2 * i + 1, side) - 1 for i in range(side)], Fraction(1, side), [[]]
    for _ in range(dim):
        centers = [[*center, v] for center in centers for v in line]
    return [c for c in centers if sum(max(abs(v) - half, Fraction(0)) ** 2 for v in c) <= 1]


def about(net: Network, z: list, M: list, side: int):
    """Mean and Jacobian of a member at z̄, a bound of what they leave out over z̄ + Mξ, ‖ξ‖ ≤ 1, σ(z̄), and sup σ, in balls.

    In the cube of half-width h about ξ_c the mean value theorem gives |g(z)| ≤ |g(z_c)| + h Σ_j |((J − ∂μ(z̄))M)_j| for g(z) =
    μ(z) − μ(z̄) − ∂μ(z̄)(z − z̄), J the range of the Jacobian over the cube, and |raw(z) − raw(z_c)| ≤ Σ_j |J_j| r_j.
    """
    nx, half = len(net.size), ball(Fraction(1, side))
    value, slope = net.sweep(list(map(ball, z)))
    moves, reach = [[ball(v) for v in row] for row in M], [half * ball(sum(map(abs, row))) for row in M]
    worst, raw = [ball(0)] * nx, [ball("-1e300")] * nx
    for center in cubes(side, len(M[0])):
        step = apply(M, center)
        there, _ = net.sweep(list(map(ball, plus(z, step))))
        wide = [ball(v) + flint.arb(0, r.upper()) for v, r in zip(plus(z, step), reach, strict=True)]
        _, range_of = net.sweep(wide)
        step = list(map(ball, step))
        for i in range(nx):
            turn = [a - b for a, b in zip(range_of[i], slope[i], strict=True)]
            columns = [abs(sum(map(mul, turn, column), ball(0))) for column in zip(*moves, strict=True)]
            bent = abs(there[i] - value[i] - sum(map(mul, slope[i], step), ball(0))) + half * sum(columns, ball(0))
            worst[i] = worst[i].max(bent.upper())
            most = there[nx + i] + sum((abs(v) * r for v, r in zip(range_of[nx + i], reach, strict=True)), ball(0))
            raw[i] = raw[i].max(most.upper())
    mean = [o + s * v for o, s, v in zip(net.shift, net.size, value[:nx], strict=True)]
    jacobian = [[s * v for v in row] for s, row in zip(net.size, slope[:nx], strict=True)]
    left = [s * v for s, v in zip(net.size, worst, strict=True)]
    return mean, jacobian, left, net.deviation(value[nx:]), net.deviation(raw)


def check_ensemble_plan(report: Report, tree: dict) -> None:
    """As `check_plan` for every member, with its linearisation error and the growth of its spread as a box."""
    names = ("sines", "weights", "biases", "normalised", "restored", "log_var_limits", "clamp", "radius", *PLAN)
    A, B, c, nx, nu, rest = plant(tree["problem"], names)
    sines, weights, biases, normalised, restored, limits, clamp, radius, *plan = rest
    known, plan, nz = Known(A, B, c, sines), Plan(report, plan, nx, nu), nx + nu
    if not isinstance(weights, list) or not isinstance(biases, list) or not len(weights) == len(biases) > 0:
        raise NotACertificate("problem: expected weights and biases of as many members, at least one")
    report.check("clamp", clamp in ("soft", "hard"), f"{clamp!r:.20}")
    normalised, restored = array("problem.normalised", normalised, 2, nz), array("problem.restored", restored, 2, nx)
    limits = array("problem.log_var_limits", limits, 2, nx)
    radius = number("problem.radius", radius)
    positive = all(float(v) > 0 for v in (radius, *normalised[1], *restored[1]))
    report.check("signs", positive, f"radius {radius}, scales > 0")
    members = []
    for m, (layers, shifts) in enumerate(zip(weights, biases, strict=True)):
        where = f"problem.weights[{m}]"
        if not isinstance(layers, list) or not isinstance(shifts, list) or not len(layers) == len(shifts) > 0:
            raise NotACertificate(f"{where}: expected as many biases as weights, at least one")
        width = nz
        for i, (W, b) in enumerate(zip(layers, shifts, strict=True)):
            b = array(f"problem.biases[{m}][{i}]", b, None if i < len(layers) - 1 else 2 * nx)
            array(f"{where}[{i}]", W, width, len(b))
            width = len(b)
        members.append(Network(layers, shifts, normalised, restored, limits, clamp == "hard"))
    names = ("reference", "center", "factor", "side")
    reference, centers, factors, side = fields("evidence", tree["evidence"], names)
    reference = exact(array("evidence.reference", reference, plan.T + 1, nx))
    centers = exact(array("evidence.center", centers, len(members), plan.T + 1, nx))
    factors = exact(array("evidence.factor", factors, len(members), plan.T + 1, nx, nx))
    side = count("evidence.side", side)
    report.check("cubes", 0 < side**nx <= 10**6, f"{side} along each of {nx} axes")
    calibrated = f"calibrated: norm of (x+ - mean)/std <= {radius} for one member, the same at all steps"
    check_assumptions(report, tree["assumptions"], [("CALIBRATED", calibrated), *EXACT])
    check_claim(
        report,
        tree,
        f"From x_0 = {told(plan.start)} the law u = plan[k] + gain[k] (x - reference[k]) keeps x+ {plan.kept()} That is so for"
        f" every plant of which one of the {len(members)} members is right to within {radius} of its deviations at every step.",
    )
    rho = Fraction(float(radius))
    for m, net in enumerate(members):

        def step(k, x, u, L, K, ahead, m=m, net=net):
            z, M = [*x, *u], [*L, *times(K, L)]

            def compute():
                net.at_precision()
                mean, jacobian, left, std, most = about(net, z, M, side)
                value, slope, box = known.at(z, M)
                value = list(map(sum, zip(value, mean, strict=True)))
                slope = [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(slope, jacobian, strict=True)]
                grown = [ball(rho) * top_of(b - a) for a, b in zip(std, most, strict=True)]
                return value, slope, [a + b + g for a, b, g in zip(box, left, grown, strict=True)], std

            line = f"member {m} at stage {k}"
            value, slope, box, std = at_some_precision(report, line, compute, lambda found: told_apart(found[:3]))
            moved, *segments = summands(value, slope, box, M, ahead)
            return [moved, diagonal([rho * fraction(v) for v in std]), *segments]

        plan.check_tube(report, f"member {m}: ", reference, centers[m], factors[m], step)


# ------------------------------------------------------------------------------------------- policies that are safe enough
UNIT, ONE = 2**40, 2**64  # values are integers in units of ceiling/UNIT, probabilities in units of 1/ONE


class ClippedLaw:
    """x ↦ u = clip(offset + gain x) and p = ax + bu + c on the line, exactly: both bend where a limit is met."""

    def __init__(self, A, B, c, offset, gain, limits) -> None:
        self.a, self.b, self.c = A[0][0], B[0], c[0]
        self.rows = list(zip(offset, [row[0] for row in gain], limits, strict=True))
        self.bends = [(limit - o) / g for o, g, both in self.rows if g for limit in both]

    def inputs(self, x: Fraction) -> list:
        """u at x."""
        return [min(max(o + g * x, low), high) for o, g, (low, high) in self.rows]

    def next(self, x: Fraction) -> Fraction:
        """p at x."""
        return self.a * x + dot(self.b, self.inputs(x)) + self.c

    def over(self, low: Fraction, high: Fraction):
        """Least and largest p over [low, high], a point near its middle, and how far z = (x, u) gets from that point there."""
        values = [self.next(x) for x in (low, high, *(x for x in self.bends if low < x < high))]
        middle = (low + high) / 2
        point = [Fraction(float(v)) for v in (middle, *self.inputs(middle))]
        ends = zip(point, [low, *self.inputs(low)], [high, *self.inputs(high)], strict=True)  # u is monotone in x
        return min(values), max(values), point, [max(abs(a - v), abs(b - v)) for v, a, b in ends]


def read_cost(report: Report, tree):
    """The ceiling C, and c/C as a function of an interval of states: its supremum, exactly."""
    family, normals, offsets, ceiling = fields("problem.cost", tree, ("family", "normals", "offsets", "ceiling"))
    normals = exact(array("problem.cost.normals", normals, None, 1))
    offsets, C = exact(array("problem.cost.offsets", offsets, len(normals))), number("problem.cost.ceiling", ceiling)
    report.check("cost", family in ("indicator", "hinge") and bool(offsets), f"{family!r:.20}, {len(offsets)} rows")
    report.check("ceiling", float(C) > 0 and (family == "hinge" or C == "1.0"), C)

    def over(low: Fraction, high: Fraction) -> Fraction:
        excess = max(max(n * low, n * high) - o for (n,), o in zip(normals, offsets, strict=True))
        if family == "indicator":
            return Fraction(excess > 0)
        return min(max(excess / Fraction(float(C)), Fraction(0)), Fraction(1))

    return Fraction(float(C)), over


def check_membership(report: Report, tree: dict) -> None:
    """The claimed boxes hold the next means over cells of states, and the claimed values the robust dynamic program on them."""
    names = ("offset", "gain", "limits", "x0", "horizon", "cost", "budget", "noise_std", "generations")
    A, B, c, nx, nu, rest = plant(tree["problem"], (*names, *DATA, *PROCESS))
    offset, gain, limits, x0, T, cost, budget, std, counts, delta, inputs, scales, *process = rest
    if nx != 1:
        raise NotACertificate(f"problem: expected one state, got {nx}")
    offset, gain = exact(array("problem.offset", offset, nu)), exact(array("problem.gain", gain, nu, nx))
    limits = exact(array("problem.limits", limits, nu, 2))
    budget, std = number("problem.budget", budget), number("problem.noise_std", std)
    x0, T = number("problem.x0", x0), count("problem.horizon", T)
    names = ("low", "high", "cells", "split", "boxes", "values", "start", "upper")
    low, high, N, split, boxes, values, start, upper = fields("evidence", tree["evidence"], names)
    N, split = count("evidence.cells", N), count("evidence.split", split)
    low, high = exact([number("evidence.low", low), number("evidence.high", high)])
    boxes = [*array("evidence.boxes", boxes, N, 2), array("evidence.start", start, 2)]
    upper = number("evidence.upper", upper)
    report.check(
        "signs", T > 0 and float(std) > 0 and all(a <= b for a, b in limits), "horizon, noise > 0; limits in order"
    )
    in_order = all(float(a) <= float(b) for a, b in boxes)
    report.check("grid", in_order and low < high and 0 < N * split <= 10**6, f"{N} cells of {split} parts")
    values = array("evidence.values", values, T - 1, N, read=count)
    inputs, scales = read_data(report, delta, inputs, scales, 1 + nu)
    f, (C, cost_over) = Process(report, "", process, inputs, scales, 1 + nu), read_cost(report, cost)
    monotone = all(part[0] not in ("product", "periodic") for part in f.kernel)
    report.check(
        "monotone", monotone, "a sum of RBF, Matern and linear kernels, whose suprema over boxes are at corners"
    )
    counts = read_counts(report, counts, len(inputs))
    report.check("noise", float(f.R) >= float(std), f"R {f.R} is not below the deviation {std} of the noise")
    needed = f.needed() + about_data(scales) + [("TASK", "task as stated")]
    needed += [GAUSSIAN, *EXACT]
    check_assumptions(report, tree["assumptions"], needed)
    check_claim(
        report,
        tree,
        f"On an event of probability at least 1 - {delta} the policy u = clip(offset + gain x, limits) has E sum c(x_t) over t"
        f" = 0..{T - 1} <= {upper} <= {budget} from x_0 = {x0}, x+ = Ax + Bu + c + f(x, u) + w, w ~ N(0, {std}^2), for the"
        f" plant's f and for all in F_n: mixture bound of the first {counts} observations.",
    )

    width, law = (high - low) / N, ClippedLaw(A, B, c, offset, gain, limits)
    ends = [(low + i * width, low + (i + 1) * width) for i in range(N)]
    spans = [law.over(*both) for both in ends] + [law.over(*[Fraction(float(x0))] * 2)]

    def outside():
        f.at_precision()
        points = [[ball(float(v)) for v in z] for _, _, z, _ in spans]
        gaps = []
        for box, (least, most, _, reach), z, (bottoms, tops) in zip(
            boxes, spans, points, bands(f, points, counts, 1, delta, False), strict=True
        ):
            reach = list(map(ball, reach))
            slack, cap = f.norm * metric(f.parts, reach), f.norm * largest(f.parts, z, reach)
            under, over = ball(box[0]) - ball(least), ball(box[1]) - ball(most)
            below, above = [e - slack for e in bottoms], [e + slack for e in tops]
            gaps.append(([under - e for e in [-cap, *below]], [over - e for e in [cap, *above]]))
        return gaps

    def decided(gaps) -> bool:
        return all(
            settled([v <= 0 for v in a], [v > 0 for v in a]) and settled([v >= 0 for v in b], [v < 0 for v in b])
            for a, b in gaps
        )

    gaps = at_some_precision(report, "boxes", outside, decided)
    for i, (under, over) in enumerate(gaps):
        if not (any(v <= 0 for v in under) and any(v >= 0 for v in over)):
            line = f"box of cell {i}" if i < N else "box of the start"
            miss = min(under, key=lambda v: v.mid()), max(over, key=lambda v: v.mid())
            report.check(line, False, f"{told(boxes[i])} misses by {miss[0].str(5)} below or {(-miss[1]).str(5)} above")
    report.check("boxes", True, f"{N} cells and the start, {flint.ctx.prec} bits")

    part = width / split
    touched = [[(Fraction(float(v)) - low) // part for v in box] for box in boxes]
    touched = [range(a, b + 1) if 0 <= a <= b < N * split else None for a, b in touched]
    average = Average(part, Fraction(float(std)), N, split)
    stage = [-((-cost_over(*both) * UNIT) // 1) for both in ends]
    V = [0] * N
    for left, claimed in enumerate([*values, None], start=1):
        worst = [*touched[:N]] if claimed else touched[N:]
        here = stage if claimed else [-((-cost_over(*[Fraction(float(x0))] * 2) * UNIT) // 1)]
        most = average.most(V, (left - 1) * UNIT, worst)
        if claimed is None:
            found = C * (here[0] * ONE + most[0]) / (ONE * UNIT)
            report.check("upper", Fraction(float(upper)) >= found, f"{upper} >= {float(found):.17g}, {T} stages")
            break
        for i, value in enumerate(claimed):
            if value * ONE < here[i] * ONE + most[i]:
                line = f"value of cell {i} with {left} stages left"
                report.check(
                    line, False, f"{value / UNIT} >= {(here[i] + most[i] / ONE) / UNIT}, in units of the ceiling"
                )
        report.check(f"values with {left} stages left", True, f"at most {max(claimed) / UNIT:.6g} of the ceiling")
        V = claimed
    report.check("budget", float(upper) <= float(budget), f"{upper} <= {budget}")


class Average:
    """Upper bounds of E V(m + w), w ~ N(0, σ²), over means m in the parts of N cells, V constant on cells and outside.

    V = V(−∞) + Σ_e jump_e 1{x ≥ e} over the edges e, so E V(m + w) = V(−∞) + Σ_e jump_e Φ((m − e)/σ): a jump upwards counts
    most at the right end of a part, one downwards at its left end.
    """

    def __init__(self, part: Fraction, std: Fraction, N: int, split: int) -> None:
        self.N, self.split, self.middle = N, split, N * split + 1
        step = ball(part / std) / ball(2).sqrt()
        tails = [ONE * (-k * step).erfc() / 2 for k in range(-self.middle, self.middle + 1)]
        self.below = [int(v.lower().floor().unique_fmpz()) for v in tails][
            ::-1
        ]  # of Φ((middle − k) part/σ), k = 0, 1, …
        self.above = [int(v.upper().ceil().unique_fmpz()) for v in tails][::-1]

    def most_over(self, part: int, outside: int, up: list, down: list) -> int:
        """Of one part, in units of 1/(ONE·UNIT)."""
        first, last = self.middle - part, self.middle - part + self.N * self.split + 1
        highest, lowest = self.above[first - 1 : last - 1 : self.split], self.below[first : last : self.split]
        return outside * ONE + sum(map(mul, up, highest)) + sum(map(mul, down, lowest))

    def most(self, V: list, outside: int, touched: list) -> list:
        """The largest over the parts touched, or the value outside where that is left."""
        jumps = [b - a for a, b in zip([outside, *V], [*V, outside], strict=True)]
        up, down = [max(jump, 0) for jump in jumps], [min(jump, 0) for jump in jumps]
        used = {part for parts in touched if parts is not None for part in parts}
        table = {part: self.most_over(part, outside, up, down) for part in used}
        return [outside * ONE if parts is None else max(map(table.__getitem__, parts)) for parts in touched]


def metric(parts, reach):
    """sup of ‖k(z, ·) − k(z′, ·)‖ over |z_i − z′_i| ≤ reach_i, in balls: every part grows with every |z_i − z′_i|."""
    zero, square = [ball(0)] * len(reach), ball(0)
    for part in parts:
        linear = part[0] == "linear"
        square += kernel_value([part], reach, reach) if linear else 2 * (part[2] - kernel_value([part], reach, zero))
    return square.sqrt()


def largest(parts, z, reach):
    """≥ √k(z′, z′) for |z′_i − z_i| ≤ reach_i, in balls."""
    far = [abs(v) + r for v, r in zip(z, reach, strict=True)]
    values: list = [kernel_value([part], far, far) if part[0] == "linear" else part[2] for part in parts]
    return sum(values, ball(0)).sqrt()


# ------------------------------------------------------------------------------------------------------------- files
KINDS = {
    "confidence-bound": check_bound,
    "plan": check_plan,
    "invariance": check_invariance,
    "membership": check_membership,
    "plan-gp": check_gp_plan,
    "plan-ensemble": check_ensemble_plan,
}


def check(text: bytes, write=print) -> int:
    """The exit code for the bytes of one file."""
    report = Report(write)
    try:
        tree = read(text)
        write(f"ok   file: {tree['kind']}, sha256 {tree['sha256'][:16]}…")
        KINDS[tree["kind"]](report, tree)
    except NotACertificate as error:
        write(f"FAIL file: {error}")
        return 2
    except Refused as error:
        write(f"refused at {error}")
        return 1
    except Exception as error:  # a number too large for a float in a message, memory: not accepted
        write(f"FAIL check: {error!r:.200}")
        return 1
    write("accepted")
    return 0


def main(arguments=None) -> int:
    """Checks the files named."""
    paths = sys.argv[1:] if arguments is None else arguments
    stdout: Any = sys.stdout
    if hasattr(stdout, "reconfigure"):
        stdout.reconfigure(errors="backslashreplace")
    if not paths or paths[0].startswith("-"):
        print(__doc__)
        return 0 if paths and paths[0] in ("-h", "--help") else 2
    worst = 0
    for path in paths:
        print(f"{path}")
        try:
            with open(path, "rb") as file:
                text = file.read()
        except OSError as error:
            print(f"FAIL file: {error}")
            worst = 2
            continue
        worst = max(worst, check(text))
    return worst


if __name__ == "__main__":
    sys.exit(main())
