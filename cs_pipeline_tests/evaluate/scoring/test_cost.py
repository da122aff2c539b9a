from pathlib import Path

import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.evaluate.scoring.cost import GenerationRun, cost, weights_bytes

RUN = GenerationRun(answers=200, tokens=30_000, seconds=60.0, peak_memory=3.0)


def test_the_cost_of_a_run() -> None:
    figures = cost(RUN, [float(second) for second in range(1, 22)], adapter_bytes=5 * 2**20, price_per_hour=1.8)
    assert (figures.tokens_per_second, figures.answers_per_second) == pytest.approx((500, 200 / 60))
    assert (figures.p50, figures.p95) == (11, 20)
    assert (figures.memory_gib, figures.adapter_mib) == (3, 5)
    # 1,000 answers take 300 s, a twelfth of an hour.
    assert figures.per_1000_answers == pytest.approx(0.15)


def test_unknown_figures_are_none() -> None:
    figures = cost(RUN, [], adapter_bytes=0, price_per_hour=None)
    assert (figures.p50, figures.p95, figures.per_1000_answers) == (None, None, None)
    assert cost(RUN, [], adapter_bytes=0, price_per_hour=0.0).per_1000_answers == 0


@pytest.mark.parametrize(
    ("run", "latencies", "price"),
    [
        (GenerationRun(0, 0, 1.0, 1), [], None),
        (GenerationRun(1, 5, 0.0, 1), [], None),
        (GenerationRun(1, 5, float("nan"), 1), [], None),
        (GenerationRun(1, -5, 1.0, 1), [], None),
        (RUN, [0.5, float("nan")], None),
        (RUN, [0.5, -1.0], None),
        (RUN, [], -1.0),
        (RUN, [], float("inf")),
    ],
)
def test_a_missing_measurement_is_refused(run: GenerationRun, latencies: list[float], price: float | None) -> None:
    with pytest.raises(PipelineError, match=r"cannot be turned into a cost|is not a price"):
        cost(run, latencies, adapter_bytes=1, price_per_hour=price)


def test_only_the_weights_count_as_size(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "tokenizer.json").write_bytes(b"x" * 900)
    assert weights_bytes(tmp_path) == 100
