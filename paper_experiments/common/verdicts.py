"""Whether a run shows what the paper claims, and if not, why."""

from __future__ import annotations

from typing import NamedTuple

from paper_experiments.common.expected import Expected, PaperClaim
from paper_experiments.common.results import Result

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
BEYOND = "beyond this machine"
NOT_RUN = "not run"


class ClaimVerdict(NamedTuple):
    """One claim, judged by one run."""

    claim: PaperClaim
    mode: str
    kind: str
    value: float | None
    reason: str
    scale: str = ""


def judge(claim: PaperClaim, result: Result) -> ClaimVerdict:
    """What a run says of a claim. A bound that is met counts, whatever machine it was met on."""
    return _judge(claim, result)._replace(scale=result.scale)


def judge_one(expected: Expected, result: Result) -> list[ClaimVerdict]:
    """Every claim that is made for the mode of a result."""
    return [judge(claim, result) for claim in expected.claims if result.mode in claim.modes]


def _judge(claim: PaperClaim, result: Result) -> ClaimVerdict:
    value = result.quantities.get(claim.quantity)
    if value is not None and claim.holds_for(value):
        return ClaimVerdict(claim, result.mode, REPRODUCED, value, "")
    if claim.quantity in result.beyond:
        return ClaimVerdict(claim, result.mode, BEYOND, value, result.beyond[claim.quantity])
    if claim.quantity in result.absent:
        return ClaimVerdict(claim, result.mode, NOT_REPRODUCED, value, result.absent[claim.quantity])
    if value is None:
        reason = f"the {result.scale} run gives no {claim.quantity}"
        return ClaimVerdict(claim, result.mode, NOT_RUN, None, reason)
    reason = f"{value:.4g} {claim.unit}".strip() + f" is not {claim.bounds}"
    return ClaimVerdict(claim, result.mode, NOT_REPRODUCED, value, reason)


def judge_all(expected: Expected, results: list[Result]) -> list[ClaimVerdict]:
    """Every claim in every mode that it is made for, by the result of that mode."""
    by_mode = {result.mode: result for result in results}
    verdicts = []
    for claim in expected.claims:
        for mode in claim.modes:
            result = by_mode.get(mode)
            verdicts.append(
                judge(claim, result) if result is not None
                else ClaimVerdict(claim, mode, NOT_RUN, None, f"there is no stored {mode} run")
            )  # fmt: skip
    return verdicts
