import pytest

pytest.register_assert_rewrite(
    "tests.contract.vmm_suite",
    "tests.contract.uniqueness_suite",
    "tests.contract.hibernate_suite",
    "tests.contract.conversation",
    "tests.contract.site",
)
