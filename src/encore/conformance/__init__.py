"""The contract, run: does a method, backend, metric or embedder keep what `encore.api` says?

    from encore.conformance import assert_conforms

    def test_it_keeps_the_contract():
        assert_conforms("method", "example-hinge")

`encore plugins check NAME` prints the same.
"""

from encore.conformance.core import Outcome, Report
from encore.conformance.run import assert_conforms, check

__all__ = ["Outcome", "Report", "assert_conforms", "check"]
