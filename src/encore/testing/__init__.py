"""Check that a method, backend, metric or embedder keeps the contract in `encore.api`.

    from encore.testing import assert_conforms

    def test_it_keeps_the_contract():
        assert_conforms("method", "example-hinge")

`encore plugins check NAME` prints the same.
"""

from encore.testing.core import CheckResult, Report
from encore.testing.run import assert_conforms, check

__all__ = ["CheckResult", "Report", "assert_conforms", "check"]
