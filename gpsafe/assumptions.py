"""What a certificate believes: one vocabulary, a sentence each.

A guarantee is a theorem *under assumptions*; what is not shown is listed, in these words, beside every number that rests
on it. An entry is a string that reads alone (``"rkhs_norm<=4.47"``) and knows its kind (`Believed.kind`), whose `sentence`
says what is meant, so that two lists can be compared and a reader can look up either.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum


class Assumption(Enum):
    """Everything that a certificate of this library may rest on: ``name = (words, sentence)``."""

    # -- of the plant and the confidence set F_n
    RKHS_NORM = "rkhs_norm", "‖f*_j − known part‖ ≤ B_j in the RKHS of the stated kernel of output j."
    SUBGAUSSIAN = "subgaussian", "Given the past, the observation noise of output j is R_j-sub-Gaussian with mean zero."
    BOUNDED_OBSERVATION = (
        "|noise|",
        "Given the past, the noise of output j has mean zero, and it is at most R_j in size.",
    )
    NOISE_ENERGY = (
        "noise energy",
        "The energy of the observation noise is within its limit for all n, as the stated sizes or law imply; it need not have"
        " mean zero.",
    )
    GAUSSIAN_PRIOR = (
        "f ~ GP(0, k)",
        "The residual is a draw of the process itself: a statement about the average plant.",
    )
    LAMBDA_NOISE = (
        "noise ~ N(0, lambda)",
        "Observation noise is Gaussian with variance λ, independent of f and of the past.",
    )
    SAMPLE_PATH = "sample paths", "The residual is Lipschitz with the stated constant on the stated box."
    LIPSCHITZ = (
        "Lipschitz constants true",
        "What is said to be Lipschitz with a stated constant is so, everywhere it is used.",
    )
    FIXED_KERNEL = (
        "kernel and lambda fixed before data",
        "Kernel, length-scales, output scale, λ, known part and normaliser were chosen without looking at the data.",
    )
    ALL_OBSERVATIONS = (
        "every observation kept",
        "The data are one growing sequence: none dropped, none chosen by its outcome, each input fixed before its noise.",
    )
    NOISE_SCALES = (
        "noise scales known",
        "The noise of observation i is noise_scale[i] times as large as R, and that was known before it was made.",
    )
    KNOWN_OUTPUTS = (
        "unlearned outputs equal the known part",
        "States without a process of their own follow the known part.",
    )
    KNOWN_DERIVATIVES = (
        "known part's derivatives correct",
        "`jacobian` is the derivative of the known part and `hessian_bound` bounds its second derivatives everywhere; what a"
        " policy class of one's own states of its slopes holds over boxes.",
    )
    IN_SET = (
        "f* in F_n",
        "The plant is in the set although the bound behind it is no theorem for this model.",
    )
    CALIBRATED_CONSTANT = (
        "calibrated: |f - mean|",
        "That multiple of σ bounds the error everywhere at once.",
    )
    NOT_A_THEOREM = "not a theorem", "A heuristic: no proof stands behind the width."
    UNCHECKED = (
        "used outside its theorem (unchecked)",
        "A formula used on a model that its theorem excludes.",
    )

    # -- of the task and of how the plant is run
    TASK = "task as stated", "Initial state, horizon and cost of the plant are those of the `Task`."
    GAUSSIAN_NOISE = (
        "noise exactly N(0, diag(noise_std^2)), independent over time",
        "The process noise is Gaussian with exactly the stated standard deviations, independent over time and of the state.",
    )
    NOISE_BOX = "|w|", "Every component of the process noise stays within its radius at every step of the episode."
    NOISE_ELLIPSOID = "w in its ellipsoid", "The process noise stays in the stated ellipsoid at every step of the plan."
    EXACT_STATE = "state measured exactly", "The measured state is the plant's state."
    EXACT_INPUT = "input applied exactly", "The plant applies the input that was decided, unclipped and at once."
    COST_RANGE = (
        "cost over boxes correct",
        "`Cost.upper` and `of_reach` are at least the cost everywhere in the set given, `excess` has the sign of leaving.",
    )
    MONTE_CARLO_SEED = (
        "Monte-Carlo seed independent of the plant's noise",
        "The pseudo-random numbers behave as independent draws, are not those that drive the plant, and serve one run: a set"
        " built anew with as many generations would meet the same noise again.",
    )
    ROUNDING = (
        "float64 rounding within the outward margins",
        "Floating-point errors stay below the stated outward margins, which are measured against long arithmetic, not proved.",
    )

    # -- of sets that are given
    INITIAL_SET = "S_0 safe", "The policies (or the fallback) that were given as safe at the start are safe."
    TERMINAL_INVARIANT = (
        "terminal set invariant",
        "From that set the backup keeps the state in it, within limits, for ever.",
    )

    # -- of learned models other than Gaussian processes
    CALIBRATED = (
        "calibrated",
        "At every point a member predicts the plant within the stated multiple of its deviation.",
    )
    HELD_OUT = "held-out rows never trained on", "No row that calibrated the model was used to train it."
    EXCHANGEABLE = (
        "exchangeable",
        "Steps of a plan and calibration rows come from one distribution, in exchangeable order.",
    )
    SCALED_GAUSSIAN = (
        "residuals Gaussian up to a factor",
        "(y − μ)/σ is Gaussian with mean zero and one standard deviation for every output, the same at all points.",
    )
    SAME_SHAPE = (
        "residuals of one shape",
        "(y − μ)/σ has one distribution for every output, the same at all points, and the held-out rows are many.",
    )
    LIKELIHOOD_RATIO = (
        "likelihood ratio known",
        "New points have w times the density of the held-out ones, and given the point the next state is distributed as"
        " before.",
    )
    FEEDBACK = (
        "every outcome shown",
        "After every step the next state is observed and told; the promise is an average over time.",
    )
    PAPER_TUBE = (
        "paper mode",
        "The published one-sigma tube without linearisation error contains the plant: known to be false.",
    )

    # -- whatever a user states
    GIVEN = "", "Stated by the user, in the user's own words."

    @property
    def words(self) -> str:
        """Short form, the beginning of an entry."""
        return self.value[0]

    @property
    def sentence(self) -> str:
        """What is meant."""
        return self.value[1]

    def __call__(self, detail: str = "") -> Believed:
        """The entry for a list: words and detail in one string."""
        return Believed(self, detail)


class Believed(str):
    """One entry of a list of assumptions: a string that knows its kind."""

    __slots__ = ("kind",)
    kind: Assumption

    def __new__(cls, kind: Assumption, detail: str = "") -> Believed:
        entry = super().__new__(cls, f"{kind.words}{detail}")
        entry.kind = kind
        return entry

    def __reduce__(self) -> tuple[type[Believed], tuple[Assumption, str]]:
        return Believed, (self.kind, str(self)[len(self.kind.words) :])


def listed(*parts: Iterable[str] | str) -> tuple[Believed, ...]:
    """One list without repetition, in order; plain strings are the user's own words (`Assumption.GIVEN`).

    >>> listed(Assumption.RKHS_NORM("<=2"), ["terminal set given"])[1].kind
    <Assumption.GIVEN: ('', "Stated by the user, in the user's own words.")>
    """
    entries: dict[str, Believed] = {}
    for part in parts:
        for item in (part,) if isinstance(part, str) else part:
            entries.setdefault(str(item), item if isinstance(item, Believed) else Assumption.GIVEN(item))
    return tuple(entries.values())
