"""Names that are no hub model's."""

import pytest

from encore.errors import InputError
from encore.hub import fetchable


def test_the_embedded_model_is_no_other_familys():
    with pytest.raises(InputError, match="one of transformers' MusicGen") as caught:
        fetchable("tiny")
    assert "--backend musicgen" in caught.value.hint


def test_a_near_name_is_told():
    with pytest.raises(InputError, match="there is no model 'tinny'") as caught:
        fetchable("tinny")
    assert caught.value.hint.startswith("did you mean tiny?")
