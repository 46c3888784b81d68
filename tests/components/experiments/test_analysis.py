import json
import math
from dataclasses import replace
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from modelyard.components.errors import InvalidInput
from modelyard.components.experiments import analysis
from modelyard.components.experiments.analysis import FUTILE, GO_ON, LOSER, WINNER, Look, Terms, analyze, judge
from modelyard.components.experiments.confidence_sequence import Interval
from modelyard.components.experiments.labelled_log import join_labels
from tests.components.experiments.simulated_traffic import (
    FIRST,
    arm,
    predictions,
    requests,
    split_by_key,
    split_by_request,
    write_log,
)

END = FIRST + timedelta(days=31)


def judged(log, labels, terms=Terms(share=50), now=END):
    joined = join_labels(
        log,
        labels.with_columns(pl.col("label") == 1),
        0,
        control="1",
        trial="2",
        now=now,
        delay_days=terms.label_delay_days,
        split_by=terms.split_by,
    )
    return judge(joined, terms, model_name="fraud", versions=("1", "2"))


def missed(trials, *, keys, share, looks, seed=0, terms=Terms(), split=split_by_key, **traffic):
    """Share of experiments between equal versions in which an interval excluded 0 at any look: PR-AUC, cost, scores; and a
    fixed 95 % interval of PR-AUC."""
    generator = np.random.default_rng(seed)
    missed = np.zeros(4)
    for _ in range(trials):
        arms = tuple(arm(part, looks) for part in split(generator, keys, share, **traffic))
        wrong = np.zeros(4, bool)
        for look in range(looks):
            found = analysis._look(arms, look, FIRST, terms)
            for place, interval in enumerate((found.pr_auc_difference, found.cost_difference)):
                wrong[place] |= interval is not None and not interval.low <= 0 <= interval.high
            fixed = found.pr_auc_difference
            wrong[3] |= fixed is not None and abs(fixed.value) > 1.96 * fixed.error
            if fixed is not None and look % 5 == 4:
                shift = analysis._score_shift((arms[0].until(look), arms[1].until(look)), terms)
                wrong[2] |= shift is not None and shift.low > 0
        missed += wrong
    return missed / trials


def test_fifty_looks_leave_the_intervals_their_coverage_where_a_fixed_interval_loses_its():
    pr_auc, cost, scores, fixed = missed(40, keys=500, share=0.5, looks=50, rate=0.1)
    # 40 experiments at 2.5 %, 2.5 % and 5 %: more than these has a chance below one in a thousand.
    assert pr_auc <= 5 / 40
    assert cost <= 5 / 40
    assert scores <= 8 / 40
    assert fixed > 0.1


def test_intervals_keep_their_coverage_where_customers_meet_both_versions():
    pr_auc, cost, scores, _ = missed(25, keys=300, share=0.3, looks=20, rate=0.1, alike=1.5, split=split_by_request)
    # 25 experiments at 2.5 %, 2.5 % and 5 %: more than these has a chance below one in two hundred.
    assert pr_auc <= 3 / 25
    assert cost <= 3 / 25
    assert scores <= 5 / 25


@pytest.mark.slow
@pytest.mark.parametrize(
    "traffic",
    [
        {"keys": 800, "share": 0.5, "rate": 0.1, "split": split_by_request},
        {"keys": 400, "share": 0.2, "rate": 0.05, "alike": 2.0, "rows_per_key": 15.0, "split": split_by_request},
        {"keys": 800, "share": 0.5, "rate": 0.05},
        {"keys": 3000, "share": 0.1, "rate": 0.05},
        {"keys": 800, "share": 0.5, "rate": 0.2},
        {"keys": 400, "share": 0.5, "rate": 0.05, "alike": 2.0, "rows_per_key": 15.0},
    ],
)
def test_coverage_over_fifty_looks_of_many_experiments(traffic):
    pr_auc, cost, scores, fixed = missed(300, looks=50, seed=1, **traffic)
    # Three standard errors above 2.5 %, 2.5 % and 5 %.
    assert pr_auc <= 0.052
    assert cost <= 0.052
    assert scores <= 0.088
    assert fixed > 0.1


def test_equal_versions_are_rarely_told_apart():
    told = [judged(*predictions(seed, keys=700)).decision in (WINNER, LOSER) for seed in range(25)]
    assert sum(told) <= 3


def test_a_version_that_is_clearly_better_wins_and_one_that_is_worse_loses():
    for seed in range(4):
        found = [judged(*predictions(seed, keys=3000, quality=pair)).decision for pair in ((1.2, 2.0), (2.0, 1.2))]
        assert found == [WINNER, LOSER]


def test_the_decision_is_the_same_from_files(tmp_path):
    log, labels = predictions(0, keys=1200, quality=(1.0, 2.4), days=2)
    write_log(tmp_path / "log", log)
    labels.write_csv(tmp_path / "labels.csv")
    found = analyze(
        model_name="fraud",
        predictions_uri=str(tmp_path / "log"),
        labels_uri=str(tmp_path / "labels.csv"),
        version_a="1",
        version_b="2",
        start=FIRST,
        end=FIRST + timedelta(days=2),
        terms=Terms(share=50),
        now=END,
    )
    direct = judged(log, labels)
    assert found.decision == direct.decision == WINNER
    assert found.reasons == direct.reasons
    content = json.loads(json.dumps(found.content(), allow_nan=False))
    assert content["last_look"]["pr_auc_difference"]["low"] > 0
    assert content["quality"]["predictions"] == log.height


def test_without_a_start_what_the_control_answered_before_the_trial_began_is_left_out(tmp_path):
    log, labels = predictions(0, keys=400, days=2)
    middle = FIRST + timedelta(days=1)
    log = log.filter((pl.col("version") == "1") | (pl.col("time") >= middle))
    write_log(tmp_path / "log", log)
    labels.write_parquet(tmp_path / "labels")
    found = analyze(
        model_name="fraud",
        predictions_uri=str(tmp_path / "log"),
        labels_uri=str(tmp_path / "labels"),
        version_a="1",
        version_b="2",
        now=END,
    )
    began = log.filter(pl.col("version") == "2")["time"].min()
    assert found.start == began
    assert found.log.quality.predictions == log.filter(pl.col("time") >= began).height < log.height


def test_traffic_that_was_not_split_as_asked_forbids_a_decision():
    log, labels = predictions(0, keys=3000, quality=(1.2, 2.0), share=0.4)
    found = judged(log, labels, Terms(share=50))
    assert found.decision == GO_ON
    assert "instead of 50 %" in found.reasons[0]
    assert "PR-AUC" in found.reasons[1]
    assert judged(log, labels, Terms(share=40)).decision == WINNER


def test_missing_labels_forbid_a_decision():
    log, labels = predictions(0, keys=3000, quality=(1.2, 2.0))
    found = judged(log, labels.filter(pl.int_range(pl.len()) % 10 > 0))
    assert found.decision == GO_ON
    assert "have no label" in found.reasons[0]


def test_positives_that_are_known_early_do_not_count_before_their_time():
    log, labels = predictions(0, keys=1500)
    now = FIRST + timedelta(days=30)
    age = now - log.join(labels, on="request_id")["time"]
    # All labels of the first 10 days; of the rest, the positives alone.
    known = labels.filter((pl.Series(age) > timedelta(days=20)) | (pl.col("label") == 1))
    found = judged(log, known, Terms(label_delay_days=20), now)
    whole = judged(log.filter(pl.col("time") < FIRST + timedelta(days=10)), labels, Terms(label_delay_days=20), now)
    assert found.looks == whole.looks
    assert found.log.quality.unlabelled == 0


def test_too_few_positives_decide_nothing_and_none_at_all_neither():
    log, labels = predictions(0, keys=60)
    found = judged(log, labels)
    assert found.decision == GO_ON
    assert "too little is known" in found.reasons[0]
    assert judged(log, labels.with_columns(label=pl.lit(0))).decision == GO_ON
    early = judged(log, labels, Terms(label_delay_days=60))
    assert early.decision == GO_ON
    assert early.looks == ()
    json.dumps(early.content(), allow_nan=False)


def look(pr_auc, cost):
    return Look(
        END,
        (1000, 1000),
        (100, 100),
        (0.5, 0.5),
        (1.0, 1.0),
        Interval(sum(pr_auc) / 2, 0.1, *pr_auc),
        Interval(sum(cost) / 2, 0.1, *cost),
    )


@pytest.mark.parametrize(
    ("pr_auc", "cost", "samples", "decision"),
    [
        ((0.02, 0.2), (-0.3, 0.05), 0, WINNER),
        ((0.02, 0.2), (-0.3, 0.3), 0, GO_ON),
        ((0.02, 0.2), (0.12, 0.3), 0, LOSER),
        ((-0.2, -0.02), (-0.3, 0.05), 0, LOSER),
        ((-0.1, 0.1), (-0.3, -0.1), 0, GO_ON),
        ((-0.1, 0.1), (-0.3, -0.1), 5000, FUTILE),
        ((0.02, 0.2), (-0.3, 0.05), 5000, WINNER),
        ((0.02, 0.2), (-0.3, 0.3), 5000, FUTILE),
        ((-0.009, 0.009), (-0.3, 0.3), 0, FUTILE),
        ((0.002, 0.009), (-0.3, 0.0), 0, FUTILE),
        ((-0.009, -0.002), (-0.3, 0.0), 0, FUTILE),
        ((-0.009, 0.009), (0.12, 0.3), 0, LOSER),
        ((0.002, 0.02), (-0.3, 0.0), 0, WINNER),
    ],
)
def test_a_decision_follows_from_where_the_intervals_lie(pr_auc, cost, samples, decision):
    found, reasons = analysis._decide(look(pr_auc, cost), Terms(max_samples=5000), samples)
    assert found == decision
    assert all(reasons)


def test_without_a_gain_that_matters_only_the_end_of_the_samples_is_futile():
    terms = Terms(min_pr_auc_gain=0)
    assert analysis._decide(look((-1e-6, 1e-6), (-0.1, 0.1)), terms, 10**9)[0] == GO_ON
    assert analysis._decide(look((-1e-6, 1e-6), (-0.1, 0.1)), replace(terms, max_samples=10**9), 10**9)[0] == FUTILE


@pytest.mark.parametrize("days", [0.001, 0.5, 3.0, 30.0, 400.0, 4000.0])
def test_looks_are_few_and_in_order_and_the_last_sees_everything(days):
    times = pl.Series([FIRST + timedelta(hours=5) + timedelta(days=days) * step / 7 for step in range(8)])
    moments = analysis._moments(times.cast(pl.Datetime("us", "UTC")))
    assert moments == sorted(set(moments))
    assert 2 <= len(moments) <= 62
    assert moments[-1] > times.max()


@pytest.mark.parametrize(
    "entries",
    [
        {"alpha": 0},
        {"alpha": 0.6},
        {"alpha": math.nan},
        {"false_positive_cost": -1},
        {"false_positive_cost": 0, "false_negative_cost": 0},
        {"min_pr_auc_gain": math.inf},
        {"label_delay_days": -1},
        {"max_samples": -1},
        {"split_by": "customer"},
    ],
)
def test_senseless_terms_are_refused(entries):
    with pytest.raises(InvalidInput):
        Terms(**entries).check()


def test_a_version_cannot_be_compared_with_itself(tmp_path):
    with pytest.raises(InvalidInput, match="another version"):
        analyze(model_name="fraud", predictions_uri=str(tmp_path), labels_uri="x", version_a="1", version_b="1")


def test_nothing_is_said_of_a_difference_that_a_few_keys_carry_however_many_there_are():
    generator = np.random.default_rng(5)
    arms = []
    for _ in range(2):
        made = requests(generator, 300, rate=0.2)
        whale = np.arange(len(made.keys)) % 4 > 0
        # A customer who sends three requests in four, all positive and scored low, carries all there is.
        keys = np.where(whale, 300, made.keys) + 1000 * len(arms)
        arms.append(arm(replace(made, keys=keys, labels=made.labels | whale), 1))
    assert min(one.positive_keys for one in arms) > analysis.MIN_KEYS
    found = analysis._look(tuple(arms), 0, FIRST, Terms())
    assert found.pr_auc_difference is None
    assert found.cost_difference is None


def test_a_decision_is_found_where_chance_decided_for_each_request():
    for seed in range(3):
        better, worse = (
            judged(*predictions(seed, keys=2500, quality=pair, split_by="request"), Terms(share=50, split_by="request"))
            for pair in ((1.2, 2.0), (2.0, 1.2))
        )
        assert (better.decision, worse.decision) == (WINNER, LOSER)
        assert better.log.quality.crossed_keys > 1000
        assert sum(better.log.matured) == better.log.quality.predictions
        assert not any("both versions" in warning for warning in better.warnings)


def test_requests_that_were_not_split_as_asked_forbid_a_decision():
    log, labels = predictions(0, keys=2500, quality=(1.2, 2.0), share=0.4, split_by="request")
    found = judged(log, labels, Terms(share=50, split_by="request"))
    assert found.decision == GO_ON
    assert f"{log.height:,} requests instead of 50 %" in found.reasons[0]
    assert judged(log, labels, Terms(share=40, split_by="request")).decision == WINNER
