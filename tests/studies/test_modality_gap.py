"""The modality gap is measured on unit vectors and drawn on the plane where it is largest."""

from __future__ import annotations

import json

import numpy as np
import pytest

from plait_studies.gap import modality_gap


def cloud(center: list[float], count: int, spread: float, seed: int) -> np.ndarray:
    return np.asarray(center) + spread * np.random.default_rng(seed).standard_normal((count, len(center)))


def test_opposite_poles_are_two_apart_and_the_same_place_is_zero() -> None:
    gap = modality_gap({"text": [[3.0, 0.0]], "image": [[1.0, 0.0]], "audio": [[-2.0, 0.0]]})["gap"]
    assert gap == pytest.approx({"text-image": 0.0, "text-audio": 2.0, "image-audio": 2.0})


def test_length_does_not_matter() -> None:
    rows = {"text": cloud([1, 0, 0], 20, 0.1, 0), "image": cloud([0, 1, 0], 30, 0.1, 1)}
    scaled = {name: 7.5 * array for name, array in rows.items()}
    assert modality_gap(rows)["gap"] == pytest.approx(modality_gap(scaled)["gap"])


def test_the_first_axis_separates_modalities_that_lie_apart() -> None:
    result = modality_gap({"text": cloud([1, 0, 0, 0], 200, 0.05, 0), "image": cloud([0, 0, 1, 0], 10, 0.05, 1)})
    text, image = (np.asarray(result["points"][name])[:, 0] for name in ("text", "image"))
    assert text.max() < image.min() or image.max() < text.min()
    assert result["explained"][0] > 0.9
    assert abs(text.mean() + image.mean()) < 0.01  # ten images weigh as much as two hundred texts


def test_spread_grows_with_the_noise() -> None:
    result = modality_gap({"text": cloud([1, 0, 0], 50, 0.02, 0), "audio": cloud([1, 0, 0], 50, 0.3, 0)})
    assert result["spread"]["audio"] > 5 * result["spread"]["text"]


def test_distances_in_the_plane_are_those_of_two_dimensional_vectors() -> None:
    rows = cloud([0, 0], 12, 1.0, 3)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    drawn = np.asarray(modality_gap({"image": rows})["points"]["image"])
    between = np.linalg.norm(units[:, None] - units[None], axis=-1)
    assert np.linalg.norm(drawn[:, None] - drawn[None], axis=-1) == pytest.approx(between, abs=1e-4)


def test_the_result_is_plain_json_even_for_one_vector() -> None:
    result = json.loads(json.dumps(modality_gap({"text": [[1.0, 2.0, 3.0]]})))
    assert result["points"]["text"] == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({}, "one width, got none"),
        ({"text": [[1.0, 0.0]], "image": [[1.0, 0.0, 0.0]]}, "one width"),
        ({"text": [1.0, 0.0]}, r"shape \(count, dim\)"),
        ({"audio": [[1.0, 0.0], [0.0, 0.0]]}, "got row 1"),
        ({"audio": [[np.nan, 0.0]]}, "finite audio vectors"),
    ],
)
def test_bad_vectors_are_refused(vectors: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        modality_gap(vectors)
