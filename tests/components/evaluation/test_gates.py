import re

import numpy as np
import pytest

from modelyard.components.errors import InvalidInput
from modelyard.components.evaluation.bootstrap import Estimate, Rows, Scores, estimates
from modelyard.components.evaluation.gates import DEFAULTS, SliceResult, Support, apply_gates, decide, parse_gates
from modelyard.components.evaluation.metrics import METRICS, Terms

ENOUGH = Support(1000, 100)
NONE = {"absolute": [], "first_model": [], "difference": [], "slices": []}


def _decision(config, *, support=ENOUGH, champion=False, **figures):
    results = apply_gates(parse_gates({**NONE, **config}), support, figures.pop("metrics", {}), champion=champion, **figures)
    return decide(results)[0], results


@pytest.mark.parametrize(
    ("gate", "found", "decision"),
    [
        ({"metric": "pr_auc", "min": 0.3}, Estimate(0.5, 0.3, 0.6), "pass"),
        ({"metric": "pr_auc", "min": 0.3}, Estimate(0.5, 0.29, 0.6), "inconclusive"),
        ({"metric": "pr_auc", "min": 0.3}, Estimate(0.2, 0.1, 0.29), "fail"),
        ({"metric": "pr_auc", "min": 0.3, "on": "value"}, Estimate(0.3, 0.1, 0.6), "pass"),
        ({"metric": "pr_auc", "min": 0.3, "on": "value"}, Estimate(0.2999, 0.1, 0.6), "fail"),
        ({"metric": "pr_auc", "min": 0.3, "on": "value"}, Estimate(0.5), "pass"),
        ({"metric": "pr_auc", "min": 0.3}, Estimate(0.5), "inconclusive"),
        ({"metric": "pr_auc", "min": 0.3}, Estimate(None), "inconclusive"),
        ({"metric": "brier", "max": 0.1}, Estimate(0.05, 0.01, 0.1), "pass"),
        ({"metric": "brier", "max": 0.1}, Estimate(0.05, 0.01, 0.11), "inconclusive"),
        ({"metric": "brier", "max": 0.1}, Estimate(0.2, 0.11, 0.3), "fail"),
    ],
)
def test_an_absolute_gate_needs_the_whole_interval_on_one_side(gate, found, decision):
    assert _decision({"absolute": [gate]}, metrics={gate["metric"]: found})[0] == decision


@pytest.mark.parametrize(
    ("gate", "found", "decision"),
    [
        ({"metric": "pr_auc", "margin": 0.02}, Estimate(0.0, -0.02, 0.02), "pass"),
        ({"metric": "pr_auc", "margin": 0.02}, Estimate(0.0, -0.021, 0.02), "inconclusive"),
        ({"metric": "pr_auc", "margin": 0.02}, Estimate(-0.05, -0.08, -0.021), "fail"),
        ({"metric": "pr_auc", "margin": 0.02}, Estimate(-0.05, -0.08, -0.02), "inconclusive"),
        ({"metric": "brier", "margin": 0.02}, Estimate(0.0, -0.5, 0.02), "pass"),
        ({"metric": "brier", "margin": 0.02}, Estimate(0.0, -0.01, 0.03), "inconclusive"),
        ({"metric": "brier", "margin": 0.02}, Estimate(0.1, 0.03, 0.2), "fail"),
        ({"metric": "pr_auc", "margin": 0.0, "rule": "superiority"}, Estimate(0.1, 0.001, 0.2), "pass"),
        ({"metric": "pr_auc", "margin": 0.0, "rule": "superiority"}, Estimate(0.1, -0.001, 0.2), "inconclusive"),
        ({"metric": "pr_auc", "margin": 0.0, "rule": "superiority"}, Estimate(0.0, 0.0, 0.0), "fail"),
        ({"metric": "expected_cost", "margin": 0.1, "rule": "superiority"}, Estimate(-0.3, -0.4, -0.11), "pass"),
        ({"metric": "expected_cost", "margin": 0.1, "rule": "superiority"}, Estimate(-0.3, -0.4, -0.1), "inconclusive"),
        ({"metric": "expected_cost", "margin": 0.1, "rule": "superiority"}, Estimate(0.0, -0.1, 0.1), "fail"),
        ({"metric": "pr_auc", "margin": 0.02}, Estimate(0.3), "inconclusive"),
    ],
)
def test_a_difference_is_judged_by_its_interval_and_its_margin(gate, found, decision):
    assert _decision({"difference": [gate]}, champion=True, difference={gate["metric"]: found})[0] == decision


def test_reasons_carry_the_numbers():
    found = {"pr_auc": Estimate(-0.0312, -0.05, -0.0212)}
    _, results = _decision({"difference": [{"metric": "pr_auc", "margin": 0.02}]}, champion=True, difference=found)

    for number in ("0.02", "-0.0312", "-0.0500", "-0.0212"):
        assert number in results[0].reason


@pytest.mark.parametrize("support", [Support(0, 0), Support(1000, 29), Support(1000, 971), Support(1000, 0)])
def test_too_little_data_never_passes_and_never_fails(support):
    config = {
        "absolute": [{"metric": "pr_auc", "min": 0.1, "on": "value"}],
        "difference": [{"metric": "pr_auc", "margin": 0.5}],
    }
    good = {"pr_auc": Estimate(0.9, 0.9, 0.9)}
    decision, results = _decision(config, support=support, champion=True, metrics=good, difference=good)

    assert decision == "inconclusive"
    assert {result.decision for result in results} == {"inconclusive"}


def test_a_champion_that_cannot_be_compared_is_inconclusive_and_says_why():
    decision, results = _decision(
        {"difference": [{"metric": "pr_auc", "margin": 0.5}]}, champion=True, incomparable="it needs another feature"
    )
    assert decision == "inconclusive"
    assert "it needs another feature" in results[0].reason


def test_a_first_model_has_a_rule_of_its_own():
    config = {"first_model": [{"metric": "roc_auc", "min": 0.6}], "difference": [{"metric": "pr_auc", "margin": 0.0}]}
    weak, strong = {"roc_auc": Estimate(0.55, 0.5, 0.59)}, {"roc_auc": Estimate(0.7, 0.65, 0.75)}

    assert _decision(config, metrics=weak)[0] == "fail"
    assert _decision(config, metrics=strong)[0] == "pass"
    same = {"pr_auc": Estimate(0.0, 0.0, 0.0)}
    assert _decision(config, champion=True, metrics=weak, difference=same)[0] == "pass"


def test_a_model_that_no_gate_was_applied_to_does_not_pass():
    assert _decision({})[0] == "inconclusive"
    assert _decision({"difference": [{"metric": "pr_auc", "margin": 0.1}]}, champion=False)[0] == "inconclusive"


def test_size_and_latency_can_be_limited():
    config = {"absolute": [{"metric": "model_bytes", "max": 1000}, {"metric": "latency_ms", "max": 2}]}

    assert _decision(config, costs_of_scoring={"model_bytes": 1000, "latency_ms": 1.5})[0] == "pass"
    assert _decision(config, costs_of_scoring={"model_bytes": 1001, "latency_ms": 1.5})[0] == "fail"
    assert _decision(config, costs_of_scoring={"model_bytes": 1000})[0] == "inconclusive"


def _slice(value, positives, low, column="country"):
    return SliceResult(column, value, Support(500, positives), {}, {"pr_auc": Estimate(low + 0.1, low, low + 0.2)})


@pytest.mark.parametrize(
    ("too_few", "parts", "decision"),
    [
        ("report", [_slice("FR", 100, 0.0), _slice("DE", 100, 0.0)], "pass"),
        ("report", [_slice("FR", 100, 0.0), _slice("DE", 100, -0.06)], "inconclusive"),
        ("report", [_slice("FR", 100, 0.0), _slice("DE", 100, -0.3)], "fail"),
        ("report", [_slice("FR", 100, 0.0), _slice("DE", 29, -0.3)], "pass"),
        ("block", [_slice("FR", 100, 0.0), _slice("DE", 29, -0.3)], "inconclusive"),
        ("report", [_slice("DE", 29, 0.0)], "inconclusive"),
        ("report", [_slice("FR", 100, 0.0), _slice("x", 100, -0.3, "other")], "pass"),
        ("report", [_slice("x", 100, 0.0, "other")], "inconclusive"),
        ("report", [], "inconclusive"),
    ],
)
def test_every_slice_with_enough_positives_must_be_no_worse(too_few, parts, decision):
    gate = {"metric": "pr_auc", "margin": 0.05, "columns": ["country"], "too_few": too_few}
    found, results = _decision({"slices": [gate]}, champion=True, slices=parts)

    assert found == decision
    assert {result.kind for result in results} == {"slice"}


def test_one_failure_outweighs_and_comes_first_in_the_reasons():
    config = {
        "absolute": [
            {"metric": "pr_auc", "min": 0.1},
            {"metric": "roc_auc", "min": 0.9},
            {"metric": "brier", "max": 0.2},
        ]
    }
    metrics = {"pr_auc": Estimate(0.5, 0.4, 0.6), "roc_auc": Estimate(0.5, 0.4, 0.6), "brier": Estimate(0.2, 0.1, 0.3)}
    decision, reasons = decide(apply_gates(parse_gates({**NONE, **config}), ENOUGH, metrics, champion=True))

    assert decision == "fail"
    assert [reason.split()[0] for reason in reasons] == ["roc_auc", "brier", "pr_auc"]


@pytest.mark.parametrize(
    ("config", "field", "allowed"),
    [
        ({"absolut": []}, "gates.absolut", "absolute, first_model, difference"),
        ({"absolute": {"metric": "pr_auc"}}, "gates.absolute", "list"),
        ({"absolute": ["pr_auc"]}, "gates.absolute[0]", "object"),
        ({"absolute": [{"metric": "auprc", "min": 0.1}]}, "gates.absolute[0].metric", ", ".join(METRICS)),
        ({"absolute": [{"metric": ["pr_auc"], "min": 0.1}]}, "gates.absolute[0].metric", "pr_auc"),
        ({"absolute": [{"min": 0.1}]}, "gates.absolute[0].metric", "pr_auc"),
        ({"absolute": [{"metric": "pr_auc"}]}, "gates.absolute[0]", "'min' or 'max'"),
        ({"absolute": [{"metric": "pr_auc", "min": 0, "max": 1}]}, "gates.absolute[0]", "'min' or 'max'"),
        ({"absolute": [{"metric": "pr_auc", "min": "0.3"}]}, "gates.absolute[0].min", "finite number"),
        ({"absolute": [{"metric": "pr_auc", "min": True}]}, "gates.absolute[0].min", "finite number"),
        ({"absolute": [{"metric": "pr_auc", "min": float("nan")}]}, "gates.absolute[0].min", "finite number"),
        ({"absolute": [{"metric": "pr_auc", "min": 0.1, "on": "mean"}]}, "gates.absolute[0].on", "interval, value"),
        ({"absolute": [{"metric": "model_bytes", "min": 1}]}, "gates.absolute[0]", "'max' only"),
        ({"difference": [{"metric": "model_bytes", "margin": 1}]}, "gates.difference[0].metric", "pr_auc"),
        ({"difference": [{"metric": "pr_auc"}]}, "gates.difference[0]", "'margin'"),
        ({"difference": [{"metric": "pr_auc", "margin": -0.1}]}, "gates.difference[0].margin", "at least 0"),
        ({"difference": [{"metric": "pr_auc", "margin": 0, "rule": "x"}]}, "gates.difference[0].rule", "superiority"),
        ({"difference": [{"metric": "pr_auc", "min": 0}]}, "gates.difference[0].min", "metric, margin, rule"),
        ({"slices": [{"metric": "pr_auc", "margin": 0, "columns": "c"}]}, "gates.slices[0].columns", "list"),
        ({"slices": [{"metric": "pr_auc", "margin": 0, "too_few": "x"}]}, "gates.slices[0].too_few", "report, block"),
        ({"min_positives": 0}, "gates.min_positives", "at least 1"),
        ({"min_positives": 1.5}, "gates.min_positives", "whole number"),
        ({"min_positives": float("inf")}, "gates.min_positives", "whole number"),
        ([], "gates", "object"),
    ],
)
def test_a_wrong_configuration_is_refused_with_what_is_allowed(config, field, allowed):
    with pytest.raises(InvalidInput, match=re.escape(allowed)) as refused:
        parse_gates(config)
    assert refused.value.field == field


def test_what_is_left_out_keeps_its_default_and_floats_from_the_form_are_taken():
    gates = parse_gates({"min_positives": 10.0, "absolute": [{"metric": "pr_auc", "min": 0}]})

    assert gates.min_positives == 10
    assert gates.difference[0].metric == DEFAULTS["difference"][0]["metric"]
    assert parse_gates({}) == parse_gates(DEFAULTS)


def test_a_challenger_worse_by_the_margin_passes_no_more_often_than_the_interval_says():
    def sample(seed: int, clusters: int):
        random = np.random.default_rng(seed)
        cluster = np.repeat(np.arange(clusters), 10)
        signal = random.normal(size=len(cluster)) + 0.7 * random.normal(size=clusters)[cluster]
        labels = signal + random.normal(size=len(cluster)) > 2
        worse, better = (1 / (1 + np.exp(-(signal + noise * random.normal(size=len(cluster))))) for noise in (1.0, 0.5))
        return Rows(labels, cluster), [Scores(worse, 0.5), Scores(better, 0.5)]

    rows, models = sample(10**6, 50_000)
    _, exact = estimates(rows, models, Terms(), draws=100)
    # The challenger is worse by exactly the margin: the least favourable case that must still be kept out.
    gates = parse_gates({**NONE, "difference": [{"metric": "pr_auc", "margin": -exact["pr_auc"].value}]})
    repeats, decisions = 300, []
    for seed in range(repeats):
        rows, models = sample(seed, 150)
        _, difference = estimates(rows, models, Terms(), draws=200, seed=seed)
        support = Support(len(rows.labels), int(rows.labels.sum()))
        decisions.append(decide(apply_gates(gates, support, {}, champion=True, difference=difference))[0])

    # Nominal 2.5 %, three standard errors of the simulation and a little slack for the small sample.
    assert decisions.count("pass") / repeats <= 0.06
    assert decisions.count("inconclusive") / repeats >= 0.85
