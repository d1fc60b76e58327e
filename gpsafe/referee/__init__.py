"""A referee for somebody else's plant or data: which assumptions the rows contradict, and what can be certified with the rest.

Nothing in this room is believed by a certificate. Every answer has a level, what it assumes, and what it would have noticed.
"""

from gpsafe.referee.claim import Claim, claimed
from gpsafe.referee.examine import Examination, examine
from gpsafe.referee.face import verify
from gpsafe.referee.finding import Finding, Findings, Ruling
from gpsafe.referee.norms import OverEstimate, over_estimate
from gpsafe.referee.rows import Rows, arranged
from gpsafe.referee.trials import Design, Tried, judge

__all__ = [
    "Claim",
    "Design",
    "Examination",
    "Finding",
    "Findings",
    "OverEstimate",
    "Rows",
    "Ruling",
    "Tried",
    "arranged",
    "claimed",
    "examine",
    "judge",
    "over_estimate",
    "verify",
]
