"""The reference consumer: the Replayer's rules, and none of the product's code.

    verify_topic(records) -> Result     a whole topic, judged
    same_request, same_response         a captured message against the original
    response_problem(exchange)          why a response is not whole, for exchanges
                                        that the end of the topic left open
"""

from .http import canonical_request, parse_request, parse_response
from .http import same_request, same_response
from .rules import Violation
from .strict import response_problem
from .verify import Result, verify_topic

__all__ = [
    "Result",
    "Violation",
    "canonical_request",
    "parse_request",
    "parse_response",
    "response_problem",
    "same_request",
    "same_response",
    "verify_topic",
]
