import pytest

pytest.register_assert_rewrite("tests.contract.vmm_suite", "tests.contract.site")
