from bench import metrics


def test_the_benchmark_of_metrics_runs() -> None:
    result = metrics.measure(None, answers=60, systems=2, compared=20, rounds=1)
    assert (result["answers"], result["systems"], result["beside"]) == (60, 2, 20)
    ours, packages = (arm["scores"] for arm in result["arms"].values())
    assert set(ours) == set(packages) == {"rouge1", "rouge2", "rougeL", "bleu", "chrf"}
    assert 0 < ours["rougeL"] < 100
    for clock in ("clock", "processor"):
        steps = {step: seconds[clock] for step, seconds in result["seconds"].items()}
        together = steps.pop("together")
        assert set(steps) == {"row statistics", "scores and differences", "slices"}
        assert together == sum(steps.values())
