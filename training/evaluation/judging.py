"""Which judge and which detector of refusals the command's words stand for.

Owns the choice. A judge that is asked over HTTP is asked something small at once, so that a wrong
key or name is known before an hour of other work.
"""

from dataclasses import dataclass

from training.errors import ConfigError
from training.evaluation.endpoint import Endpoint
from training.evaluation.endpoint_judge import PREFERENCE, EndpointJudge, verdict_schema
from training.evaluation.judges import Judge, local_judge
from training.evaluation.options import Judges
from training.evaluation.safety import Detector, by_patterns, detector_of

JUDGE = "judge"


@dataclass(frozen=True)
class Judging:
    """The judge, if any, and the detector of refusals."""

    judge: Judge | None
    detector: Detector


def judging(asked: Judges) -> Judging:
    """The judge named `exact`, `regex:PATTERN`, `module:function` or by a URL, and the detector.

    Raises ConfigError, DataError.
    """
    found = None if asked.judge is None else _judge(asked.judge, asked)
    refusals_by = asked.refusals_by
    if refusals_by != JUDGE:
        return Judging(found, detector_of(refusals_by) if refusals_by else by_patterns())
    if not isinstance(found, EndpointJudge):
        raise ConfigError("--refusals-by judge needs a --judge that is a URL.")
    return Judging(found, found.refused)


def _judge(name: str, asked: Judges) -> Judge:
    if not name.startswith(("http://", "https://")):
        return local_judge(name)
    if not asked.judge_model:
        raise ConfigError("A judge at a URL needs --judge-model, the name of its model.")
    endpoint = Endpoint(
        name, asked.judge_model, schema=verdict_schema() if asked.judge_json else None
    )
    endpoint.check()
    return EndpointJudge(endpoint, asked.judge_instruction or PREFERENCE)
