"""Each variant as a small model, and the logits that the dense rule gives it."""

import pytest

from tests.attention.conftest import own_random_numbers  # noqa: F401 (an autouse fixture)
from tests.models import VARIANTS, reference_logits


@pytest.fixture(params=VARIANTS)
def model(request, make_model):
    return make_model(request.param)


@pytest.fixture
def expected(model, ids):
    return reference_logits(model, ids)
