"""What `SamplingParams` refuses: values of a wrong type are named, like values out of range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.sampling_params import OutputKind, SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "0.5"),
        ("temperature", True),
        ("temperature", None),
        ("top_p", None),
        ("min_p", "x"),
        ("presence_penalty", "1"),
        ("frequency_penalty", [1.0]),
        ("repetition_penalty", None),
        ("n", 1.5),
        ("n", None),
        ("top_k", True),
        ("max_tokens", "5"),
        ("seed", 1.0),
        ("ignore_eos", "no"),
        ("detokenize", 1),
        ("include_stop_str_in_output", None),
        ("structured_outputs", {"regex": "a"}),
        ("repetition_detection", {"max_pattern_size": 3}),
        ("guided_decoding", "a+"),
        ("output_kind", "everything"),
        ("output_kind", None),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_by_the_name_of_its_field(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{field} must be ") as refusal:
        SamplingParams(**{field: value})
    assert refusal.value.param == field


@pytest.mark.parametrize("field", ["seed", "max_tokens", "logprobs"])
def test_none_is_a_value_where_it_has_a_meaning(field: str) -> None:
    values: dict[str, Any] = {field: None}
    assert getattr(SamplingParams(**values), field) is None


def test_numbers_may_be_integers_or_come_from_numpy() -> None:
    params = SamplingParams(temperature=1, top_p=np.float32(0.5))  # type: ignore[arg-type]
    assert (params.temperature, params.top_p) == (1, 0.5)


def test_the_output_kind_may_be_given_by_its_value() -> None:
    assert SamplingParams(output_kind="delta").output_kind is OutputKind.DELTA  # type: ignore[arg-type]


def test_values_of_a_list_that_come_again_count_once():
    params = SamplingParams(allowed_token_ids=[7, 5, 7], stop_token_ids=[3, 3], stop=["a", "a"], bad_words=["b", "b"])
    assert (params.allowed_token_ids, params.stop_token_ids) == ((7, 5), (3,))
    assert (params.stop, params.bad_words) == (("a",), ("b",))
