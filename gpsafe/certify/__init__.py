"""Certification of plans: the problem, and the judge."""

from gpsafe.certify.backup import certified_backup
from gpsafe.certify.judge import Certificate, Tightest, judge
from gpsafe.certify.problem import CertificationProblem, Margins, Proposal, Proposer

__all__ = [
    "Certificate",
    "CertificationProblem",
    "Margins",
    "Proposal",
    "Proposer",
    "Tightest",
    "certified_backup",
    "judge",
]
