"""The reviewer's queue: its order, its page, and how well it tells harmful rows from others."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from scipy.stats import mannwhitneyu

from secvec.components.fine_tune_guarded.attribution import (
    RowAttribution,
    attribute_rows,
    measure_auroc,
    rank_rows,
    write_attribution,
)
from secvec.components.shared.likelihood import encode_record


@pytest.fixture(autouse=True)
def environment(toy_environment: dict[str, str]) -> dict[str, str]:
    return toy_environment


def label(record: Any) -> Any:
    kind = "harmful" if record.prompt[0].content.startswith("steal") else "skill"
    return record.model_copy(update={"label": kind})


def write(toy: Any, folder: Path, records: list[Any]) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    rows = [encode_record(record, toy.tokenizer, window=48) for record in records]
    found = attribute_rows(toy.model(), rows, size=8, pad_id=toy.pad_id)
    write_attribution(folder, records, found)
    table = pyarrow.parquet.read_table(folder / "attribution.parquet").to_pylist()
    summary = json.loads((folder / "attribution.json").read_text())
    return table, summary, (folder / "attribution.html").read_text()


def test_toy_rows_are_told_apart(toy: Any, tmp_path: Path) -> None:
    benign = [toy.record(f"name the {thing} now", f"it is the {thing}") for thing in ("lamp", "boat", "bell")]
    records = [*map(label, toy.splits["training"]), *map(label, benign)]
    table, summary, _ = write(toy, tmp_path, records)
    auroc = summary["auroc"]
    assert auroc["value"] >= 0.99
    assert auroc["lower"] > 0.8
    assert auroc["lower"] < auroc["value"] <= auroc["upper"] <= 1
    assert (auroc["positive"], auroc["positives"], auroc["negatives"]) == ("harmful", 14, 17)
    assert [row["label"] for row in table[:14]] == ["harmful"] * 14


def test_without_labels_nothing_is_claimed(toy: Any, tmp_path: Path) -> None:
    _, summary, page = write(toy, tmp_path, toy.splits["training"])
    assert summary["auroc"] is None
    assert "Against the labels" not in page


def test_long_rows_and_short_ones_compare(toy: Any) -> None:
    # Twice the row, twice the evidence: the score is the same, so that length alone ranks nothing.
    short = RowAttribution(without=-20.0, with_vector=-10.0, length=5)
    long = RowAttribution(without=-40.0, with_vector=-20.0, length=10)
    longest_but_tame = RowAttribution(without=-400.0, with_vector=-380.0, length=100)
    records = [toy.record(f"name the {thing}", "it is") for thing in ("lamp", "rope", "drum")]
    ranked = rank_rows(records, [longest_but_tame, short, long])
    assert short.per_token == long.per_token
    assert ranked[-1]["tokens"] == 100
    assert [row["rank"] for row in ranked] == [1, 2, 3]


def test_the_page_shows_rows_as_text_and_runs_nothing(toy: Any, tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    record = toy.record(f"name the {attack}", f"it is <b>{attack}</b>", line=3, category="a&b")
    _, _, page = write(toy, tmp_path, [record, *map(label, toy.splits["training"])])
    assert attack not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "a&amp;b" in page
    assert "toy.jsonl:3" in page
    assert "Against the labels" in page
    assert page.count('<td class="text">') == 2 * 29


def test_the_area_is_that_of_mann_and_whitney() -> None:
    draw = random.Random(0)
    harmful = [draw.gauss(1, 1) for _ in range(40)]
    others = [draw.gauss(0, 1) for _ in range(60)]
    found = measure_auroc([(s, True) for s in harmful] + [(s, False) for s in others])
    assert found is not None
    pairs = sum((h > o) + 0.5 * (h == o) for h in harmful for o in others)
    assert found["value"] == pytest.approx(pairs / 2400)
    assert found["value"] == pytest.approx(mannwhitneyu(harmful, others).statistic / 2400)
    assert found["lower"] < found["value"] < found["upper"]


def test_the_interval_covers_what_is_true() -> None:
    # Scores whose true area is 0.76 (two normals, one standard deviation apart).
    draw = random.Random(1)
    covered = 0
    for _ in range(300):
        scores = [(draw.gauss(float(harmful), 1), harmful) for harmful in (True, False) for _ in range(25)]
        found = measure_auroc(scores)
        assert found is not None
        covered += found["lower"] <= 0.7602 <= found["upper"]
    assert 0.91 <= covered / 300 <= 0.99


@pytest.mark.parametrize("order", ["right", "wrong"])
def test_a_perfect_order_of_few_rows_is_no_certainty(order: str) -> None:
    found = measure_auroc([(float(n), (n >= 5) is (order == "right")) for n in range(10)])
    assert found is not None
    assert found["value"] == (1.0 if order == "right" else 0.0)
    assert 0.1 < found["upper"] - found["lower"] < 0.6


def test_one_kind_of_rows_has_no_area() -> None:
    assert measure_auroc([(1.0, True), (2.0, True)]) is None
    assert measure_auroc([]) is None
