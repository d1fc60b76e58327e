"""Certification of plans: the problem, and the judge."""

from gpsafe.certify.backup import certified_backup
from gpsafe.certify.certainty import certainty_levels
from gpsafe.certify.invariant_set import invariant_polytope
from gpsafe.certify.judge import Certificate, Tightest, judge
from gpsafe.certify.problem import CertificationProblem, Margins, Proposal, Proposer
from gpsafe.certify.terminal_set import AffineLaw, Invariance, TerminalSet, certify_invariance

__all__ = [
    "AffineLaw",
    "Certificate",
    "CertificationProblem",
    "Invariance",
    "Margins",
    "Proposal",
    "Proposer",
    "TerminalSet",
    "Tightest",
    "certainty_levels",
    "certified_backup",
    "certify_invariance",
    "invariant_polytope",
    "judge",
]
