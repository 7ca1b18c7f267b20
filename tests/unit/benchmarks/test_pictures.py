"""Scaling curves: what is drawn, and the picture itself."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import pytest
from line_chart import Chart, draw
from scaling import charts, points, rates

from vllm_mxext.bench.workload import Workload

SVG = "{http://www.w3.org/2000/svg}"


def result(curve: str, x: int, decode: float | None) -> dict[str, Any]:
    return {"curve": curve, "x": x, "engines": {"ours": {"decode_tokens_per_s": decode, "prompt_tokens_per_s": 7.0}}}


def test_a_picture_has_a_line_per_engine_and_chart() -> None:
    lines = {"ours": [(1, 10.0), (8, 70.0), (64, 90.0)], "a <peer>": [(1, 5.0), (8, 30.0), (64, 40.0)]}
    root = ET.fromstring(draw([Chart("left", "x", lines), Chart("right", "x", lines)]))
    polylines = list(root.iter(f"{SVG}polyline"))
    assert len(polylines) == 4
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"left", "right", "ours", "a <peer>", "64", "100"} <= set(texts)


def test_powers_of_two_are_equally_far_apart() -> None:
    root = ET.fromstring(draw([Chart("title", "x", {"ours": [(1, 1.0), (2, 2.0), (4, 2.0)]})]))
    places = [float(circle.attrib["cx"]) for circle in root.iter(f"{SVG}circle")]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1])


def test_decoding_is_what_more_tokens_take_longer() -> None:
    prompt, whole = Workload(4, 128, 1), Workload(4, 128, 33)
    assert rates(prompt, whole, [2.0], [6.0]) == {"prompt_tokens_per_s": 256.0, "decode_tokens_per_s": 32.0}


def test_decoding_that_drowned_in_noise_is_not_drawn() -> None:
    prompt, whole = Workload(4, 128, 1), Workload(4, 128, 33)
    assert rates(prompt, whole, [2.0], [1.9])["decode_tokens_per_s"] is None
    decode, prompts = charts([result("batch", 1, 5.0), result("batch", 2, None)])
    assert decode.lines == {"ours": [(1, 5.0)]}
    assert prompts.lines == {"ours": [(1, 7.0), (2, 7.0)]}


def test_batches_come_with_short_prompts_and_contexts_with_one_request() -> None:
    assert points([2], [512]) == [("batch", 2, 2, 128), ("context", 512, 1, 512)]
