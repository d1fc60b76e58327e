"""Checks certificates of gpsafe without gpsafe: `python gpsafe_check.py FILE…` needs the standard library and python-flint.

One line per check. Exit code 0: every file is accepted. 1: one is refused, at the line that says FAIL. 2: one is no certificate
(torn, another format or kind, a number that is not a finite float64, other fields, a hash that does not fit).

Numbers are strings that Python's `repr` writes of float64 and are taken as the rationals that they are. Plans and invariance
are decided in rational arithmetic, hence exactly; confidence bounds in ball arithmetic, at 128 bits and up to 2048 until it
is decided. What is not decided then is refused. docs/certificates.md says what is checked for each kind, and why that suffices.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from fractions import Fraction
from typing import Any

try:
    import flint
except ImportError:  # plans and invariance need none
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
    "NOISE_ELLIPSOID": "The process noise stays in the stated ellipsoid at every step of the plan.",
    "EXACT_STATE": "The measured state is the plant's state.",
    "EXACT_INPUT": "The plant applies the input that was decided, unclipped and at once.",
    "TERMINAL_INVARIANT": "From that set the backup keeps the state in it, within limits, for ever.",
    "GIVEN": "Stated by the user, in the user's own words.",
}
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
    if tree["kind"] == "confidence-bound" and flint is None:
        raise NotACertificate("a confidence bound needs python-flint, which cannot be imported")
    if not isinstance(tree["kind"], str) or tree["kind"] not in KINDS:
        raise NotACertificate(f"kind {tree['kind']!r:.60}, expected one of {', '.join(KINDS)}")
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
def check_bound(report: Report, tree: dict) -> None:
    """[low, high] ⊇ ∩ [μ − βσ, μ + βσ] at the query over the posteriors named, β of the mixture bound."""
    names = ("bound", "kernel", "regularizer", "rkhs_norm", "subgaussian", "delta", "output", "outputs", "inputs")
    names += ("targets", "noise_scale", "query", "generations", "prior")
    bound, kernel, lam, B, R, delta, output, outputs, inputs, targets, scales, query, generations, prior = fields(
        "problem", tree["problem"], names
    )
    (interval,) = fields("evidence", tree["evidence"], ("interval",))
    low, high = array("evidence.interval", interval, 2)
    query = array("problem.query", query, None)
    inputs = array("problem.inputs", inputs, None, len(query))
    n, p = len(inputs), count("problem.outputs", outputs)
    targets = array("problem.targets", targets, n)
    scales = None if scales is None else array("problem.noise_scale", scales, n)
    counts = array("problem.generations", generations, None, read=count)
    if type(prior) is not bool:
        raise NotACertificate(f"problem.prior: expected true or false, got {prior!r:.60}")
    for name, value in (("regularizer", lam), ("rkhs_norm", B), ("subgaussian", R), ("delta", delta)):
        number(f"problem.{name}", value)
    report.check("bound", bound == "mixture", f"{bound!r:.60}, expected 'mixture'")
    parts = read_kernel(report, kernel, len(query))
    report.check("signs", min(map(float, (lam, B, R))) > 0, f"lambda {lam}, B {B}, R {R} > 0")
    report.check("delta", 0 < float(delta) < 1, f"{delta} in (0, 1)")
    report.check("output", count("problem.output", output) < p, f"{output} of {p}")
    report.check("generations", bool(counts) and max(counts) <= n, f"the first {counts} of {n} observations")
    if scales is not None:
        report.check("noise scales", all(float(w) >= 1 for w in scales), ">= 1")
    needed = [("RKHS_NORM", f"rkhs_norm<={B}"), ("SUBGAUSSIAN", f"subgaussian({R})")]
    needed += [("FIXED_KERNEL", "kernel and lambda fixed before data"), ("ALL_OBSERVATIONS", "every observation kept")]
    needed += [] if scales is None else [("NOISE_SCALES", "noise scales known")]
    check_assumptions(report, tree["assumptions"], needed)
    check_claim(
        report,
        tree,
        f"On an event of probability at least 1 - {delta}, one for all {p} outputs, the residual f of output {output} has"
        f" {low} <= f(z) <= {high} at z = {told(query)}: mixture bound of the first {counts} observations"
        f"{' and |f(z)| <= B sqrt(k(z, z)), intersected' if prior else ''}.",
    )
    report.check("interval", float(low) <= float(high), f"{low} <= {high}")

    for bits in PRECISIONS:
        flint.ctx.prec = bits
        arb = flint.arb
        balls = [(nu, [arb(float(v)) for v in scale], arb(float(v)), dims) for nu, scale, v, dims in parts]
        X, (z,) = ([[arb(float(v)) for v in row] for row in rows] for rows in (inputs, [query]))
        y, noise = (
            [arb(float(v)) for v in targets],
            [arb(float(lam)) * arb(float(w)) ** 2 for w in scales or ["1.0"] * n],
        )
        own = kernel_value(balls, z, z)
        cross = [kernel_value(balls, x, z) for x in X]
        gram = [[kernel_value(balls, X[i], X[j]) for j in range(i + 1)] for i in range(max(counts))]
        cap = arb(float(B)) * own.sqrt()
        ends, words = [(-cap, cap)] if prior else [], f"{bits} bits"
        for m in counts:
            mean, explained, logdet = posterior(gram, noise, cross, y, m)
            twice = logdet + 2 * (arb(p) / arb(float(delta))).log()
            beta = (arb(float(B)) ** 2 + arb(float(R)) ** 2 / arb(float(lam)) * twice).sqrt()
            half = beta * (own - explained).sqrt()
            ends.append((mean - half, mean + half))
            words = f"{bits} bits, n = {m}: mean {mean.str(12)}, beta {beta.str(12)}, half-width {half.str(12)}"
        lower, upper = arb(float(low)), arb(float(high))
        bottoms, tops = [bottom for bottom, _ in ends], [top for _, top in ends]
        below, above = any(lower <= e for e in bottoms), any(upper >= e for e in tops)
        if (below or all(lower > e for e in bottoms)) and (above or all(upper < e for e in tops)):
            report.check("lower end", below, f"{low} <= {' or '.join(e.str(20) for e in bottoms)} ({words})")
            report.check("upper end", above, f"{high} >= {' or '.join(e.str(20) for e in tops)}")
            return
    report.check("ends", False, f"not decided at {PRECISIONS[-1]} bits")


def posterior(gram, noise, cross, y, n: int):
    """μ, k(z)ᵀA⁻¹k(z) and log det A − log det diag(noise) of the first n observations, A = K + diag(noise), in balls."""
    arb = flint.arb
    mean, explained, logdet = arb(0), arb(0), arb(0)
    if n:
        A = flint.arb_mat(n, n)
        for i in range(n):
            for j in range(i):
                A[i, j] = A[j, i] = gram[i][j]
            A[i, i] = gram[i][i] + noise[i]
            logdet -= noise[i].log()
        logdet += A.det().log()
        solved = A.solve(flint.arb_mat([[k] for k in cross[:n]]), nonstop=True)  # NaN if not told from singular
        for i in range(n):
            mean, explained = mean + y[i] * solved[i, 0], explained + cross[i] * solved[i, 0]
    return mean, explained, logdet


def read_kernel(report: Report, tree, dim: int) -> list:
    """The parts of a sum: (family or ν, length-scales or variances, variance, dimensions)."""
    parts = []
    if not isinstance(tree, list):
        raise NotACertificate("problem.kernel: expected a list of parts")
    for i, part in enumerate(tree):
        where, family = f"problem.kernel[{i}]", part.get("family") if isinstance(part, dict) else None
        if family == "linear":
            _, scale, dims = fields(where, part, ("family", "variance", "dims"))
            nu, variance = "linear", "1.0"
        else:
            _, nu, scale, variance, dims = fields(where, part, ("family", "nu", "lengthscale", "variance", "dims"))
            known = (family == "rbf" and nu is None) or (family == "matern" and nu in ("0.5", "1.5", "2.5"))
            report.check(f"kernel[{i}]", known, f"{family!r:.20} of nu {nu!r:.20}")
        dims = array(f"{where}.dims", dims, None, read=count)
        scale, variance = array(f"{where}.scales", scale, len(dims)), number(f"{where}.variance", variance)
        fine = len(set(dims)) == len(dims) > 0 and max(dims) < dim
        report.check(f"kernel[{i}] dimensions", fine, f"{dims} of 0..{dim - 1}")
        numbers = f"variance {variance}, scales {told(scale)} > 0"
        report.check(f"kernel[{i}] numbers", min(map(float, (variance, *scale))) > 0, numbers)
        parts.append((nu, scale, variance, dims))
    report.check("kernel", bool(parts), f"{len(parts)} parts")
    return parts


def kernel_value(parts, x, z):
    """k(x, z) in balls: the sum over parts as `read_kernel` gives them."""
    total: Any = flint.arb(0)
    for nu, scales, variance, dims in parts:
        if nu == "linear":
            total += sum((v * x[i] * z[i] for v, i in zip(scales, dims, strict=True)), flint.arb(0))
            continue
        square: Any = sum((((x[i] - z[i]) / scale) ** 2 for scale, i in zip(scales, dims, strict=True)), flint.arb(0))
        if nu is None:
            total += variance * (-square / 2).exp()
        else:
            r = (2 * flint.arb(float(nu)) * square).sqrt()
            total += variance * {"0.5": 1 + 0 * r, "1.5": 1 + r, "2.5": 1 + r + r * r / 3}[nu] * (-r).exp()
    return total


# --------------------------------------------------------------------------------------------------------- plants
def plant(problem: dict, names):
    """A, B, c and half-axes in rationals, the texts of the half-axes, and the other fields."""
    A, B, c, axes, *rest = fields("problem", problem, ("A", "B", "c", "half_axes", *names))
    axes = array("problem.half_axes", axes, None)
    nx = len(axes)
    A, B = array("problem.A", A, nx, nx), array("problem.B", B, nx, None)
    nu = len(B[0]) if nx else 0
    if not nx or not nu:
        raise NotACertificate("problem: expected at least one state and one input")
    B, c = array("problem.B", B, nx, nu), array("problem.c", c, nx)
    return exact(A), exact(B), exact(c), axes, nx, nu, rest


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


def check_plan(report: Report, tree: dict) -> None:
    """The claimed ellipsoids contain the plant stage by stage, and every row holds on them."""
    names = ("states", "inputs", "terminal", "gain", "x0", "plan", "tolerance")
    A, B, c, axes, nx, nu, rest = plant(tree["problem"], names)
    states, inputs, terminal, gain, x0, plan, tolerance = rest
    plan = array("problem.plan", plan, None, nu)
    T = len(plan)
    if not T:
        raise NotACertificate("problem.plan: expected at least one step")
    gain, x0 = array("problem.gain", gain, T, nu, nx), array("problem.x0", x0, nx)
    tolerance = number("problem.tolerance", tolerance)
    X, U = polytope("problem.states", states, nx), polytope("problem.inputs", inputs, nu)
    F = polytope("problem.terminal", terminal, nx)
    centers, factors = fields("evidence", tree["evidence"], ("center", "factor"))
    centers = exact(array("evidence.center", centers, T + 1, nx))
    factors = exact(array("evidence.factor", factors, T + 1, nx, nx))
    report.check("signs", float(tolerance) >= 0 and all(float(a) >= 0 for a in axes), "tolerance, half-axes >= 0")
    check_assumptions(report, tree["assumptions"], linear_assumptions(axes))
    check_claim(
        report,
        tree,
        f"From x_0 = {told(x0)} the law u = plan[k] + gain[k] (x - center[k]) keeps x+ = Ax + Bu + c + w, w in the ellipsoid"
        f" with half-axes {told(axes)}, in the {len(X[0])} rows of states at stages 1..{T}, its inputs in the {len(U[0])} rows"
        f" of inputs at stages 0..{T - 1}, and x_{T} in the {len(F[0])} rows of terminal, each to within {tolerance}.",
    )
    slack, noise, x0 = Fraction(float(tolerance)), diagonal(exact(axes)), exact(x0)
    none = [[Fraction(0)] * nx for _ in range(nx)]
    report.check("start", centers[0] == x0 and factors[0] == none, "center[0] is x_0, factor[0] is 0")
    check_rows(report, "states at stage 0", *X, x0, none, slack)
    for k in range(T):
        u, K = exact(plan[k]), exact(gain[k])
        L = factors[k]
        check_rows(report, f"inputs at stage {k}", *U, u, times(K, L), slack)
        moved = times([plus(a, b) for a, b in zip(A, times(B, K), strict=True)], L)
        error = plus(apply(A, centers[k]), apply(B, u), c, [-v for v in centers[k + 1]])
        Q, claimed = outer_sum([moved, noise, [[v] for v in error]]), factors[k + 1]
        gap = [[dot(claimed[i], claimed[j]) - Q[i][j] for j in range(nx)] for i in range(nx)]
        size = f"traces {sum(float(dot(r, r)) for r in claimed):.6g} and {sum(float(Q[i][i]) for i in range(nx)):.6g}"
        report.check(f"tube at stage {k + 1}", is_semidefinite(gap), f"contains the outer sum, {size}")
        check_rows(report, f"states at stage {k + 1}", *X, centers[k + 1], claimed, slack)
    check_rows(report, "terminal", *F, centers[T], factors[T], slack)


def linear_assumptions(axes) -> list:
    """What a linear plant with an ellipsoidal disturbance needs."""
    return [
        ("KNOWN_OUTPUTS", "unlearned outputs equal the known part (all states)"),
        ("NOISE_ELLIPSOID", f"w in its ellipsoid: half-axes {told(axes)}, at every step"),
        ("EXACT_STATE", "state measured exactly"),
        ("EXACT_INPUT", "input applied exactly"),
    ]


def check_invariance(report: Report, tree: dict) -> None:
    """Multipliers prove every row of S after a step, and every row of U, from the rows of S."""
    A, B, c, axes, nx, nu, (region, inputs, gain, offset) = plant(
        tree["problem"], ("region", "inputs", "gain", "offset")
    )
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


# ------------------------------------------------------------------------------------------------------------- files
KINDS = {"confidence-bound": check_bound, "plan": check_plan, "invariance": check_invariance}


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
