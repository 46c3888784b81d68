"""The KFP interface of the rollout, and of the rollback and the promotion by hand."""

from typing import NamedTuple

from kfp import dsl

from modelyard.components.interface import component


@component("ops")
def rollout_model(
    report: dsl.Output[dsl.HTML],
    timeline: dsl.Output[dsl.Artifact],
    model_name: str,
    version: str,
    digest: str,
    uri: str,
    target: str = "local",
    serving: dict = {},
    steps: list = [5, 25, 50, 100],
    bake_seconds: float = 300.0,
    min_samples: int = 300,
    look_seconds: float = 10.0,
    deadline_seconds: float = 3600.0,
    shadow_seconds: float = 0.0,
    limits: dict = {},
    run_id: str = "",
) -> NamedTuple("Outputs", [("decision", str), ("outcome", str), ("reasons", str)]):
    """Rolls a registered version out under live traffic, step by step, and rolls it back by itself.

    Starts the version beside the one in charge, asks it for its golden rows, and raises its share of the traffic. At each step
    both are compared on failed and rejected requests, latency and scores, by sequential tests that may be looked at as often
    as one likes; no data never counts as a pass. On pass it becomes champion and gets all the traffic; on fail the traffic
    goes back at once and the registry says why; inconclusive is rolled back too, and may be tried again. A version whose
    signature or content is not what it must be fails without any traffic. A step that was killed goes on where it stood when
    it is run again; one that is cancelled takes the traffic from the version until then.

    Args:
        model_name: Name of the registered model.
        version: The version to roll out.
        digest: Its model digest, which is checked.
        uri: Where the registry says it is kept, as register_model gave it.
        target: Where the model is served: local (behind a proxy on this machine) or kserve (an InferenceService of the
            cluster). registry makes it the champion at once and serves it nowhere, none leaves it the challenger; both try
            nothing under traffic.
        serving: How kserve serves it, by key: namespace (by default the pod's own), mode (standard, which needs the
            Gateway API, or knative), runtime (predictor or triton), cpu, memory, gpus, min_replicas, max_replicas, autoscaler
            (none, hpa or keda; Knative has its own), scale_metric, scale_target, node_selector, tolerations, spot,
            service_account, timeout_seconds, ready_seconds (900: how long it may take to become ready) and long_hosts (true
            where KServe's domainTemplate keeps a service's name and the namespace apart by a dot).
        steps: Percentages of the live traffic, one after another, rising. The first is below 100, unless shadow_seconds is
            given: at 100 there is nothing to compare with.
        bake_seconds: How long each step is watched at least.
        min_samples: Requests that the version must have answered in each step.
        look_seconds: Time between two looks.
        deadline_seconds: How long a step may wait for its requests before the rollout is inconclusive.
        shadow_seconds: How long a copy of all traffic is sent to the version before the first step; 0 for not at all. KServe
            cannot copy traffic.
        limits: What is allowed, by key: alpha (0.05: chance that the tests roll back a version within the limits, if requests
            are dealt out at random; larger where callers send x-modelyard-key and one of them is always refused),
            max_failure_ratio (1: odds of a failed request, times those of the version in charge), max_rejected_ratio (1),
            max_latency_ratio (2), score_tolerance (0.1: shift of the scores beyond what the models' reference samples
            show) and ready_grace_seconds (30; 300 on kserve); what is left out keeps its default.
        run_id: MLflow run that gets the decision and the report; empty for none.

    Returns:
        report: Both versions over time, the evidence with its boundary, and the decision.
        timeline: The same as JSON.
        decision: pass, fail or inconclusive.
        outcome: promoted or rolled_back; registered where target is none.
        reasons: Why, in one line.
    """
    from modelyard.components.rollout.rolling_out import rollout_model as work

    rolled_out = work(
        report.path,
        timeline.path,
        model_name=model_name,
        version=version,
        digest=digest,
        uri=uri,
        target=target,
        serving=serving,
        steps=steps,
        bake_seconds=bake_seconds,
        min_samples=min_samples,
        look_seconds=look_seconds,
        deadline_seconds=deadline_seconds,
        shadow_seconds=shadow_seconds,
        limits=limits,
        run_id=run_id,
    )
    return (rolled_out.decision, rolled_out.outcome, rolled_out.reasons)


@component("ops")
def rollback_model(
    model_name: str,
    target: str = "local",
    namespace: str = "",
    reason: str = "",
) -> NamedTuple("Outputs", [("version", str), ("digest", str), ("replaced", str), ("registry", str)]):
    """Ends the trial that is under way, or else brings back the version that was served before, in one step.

    While a version is on trial, it goes, and the version in charge keeps everything. With none on trial, the version that was
    in charge before comes back, verified first and ready before it gets the traffic. The registry follows, and if MLflow does
    not answer, the change is kept and made by the next rollout or rollback. Repeating a rollback changes nothing, for ten
    minutes if it ended a trial.

    Args:
        model_name: Name of the served model.
        target: Where the model is served: local or kserve.
        namespace: For kserve, where its InferenceService is; empty for the pod's own namespace.
        reason: Why, for the registry.

    Returns:
        version: The version in charge now; empty if the trial of a first version was ended.
        digest: Its model digest.
        replaced: The version that lost its traffic: the one on trial, or else the one that was in charge.
        registry: What came of the registry; starts with "pending:" if it could not be told yet.
    """
    from modelyard.components.rollout.rollback import roll_back
    from modelyard.components.serving.targets import command_options, open_target

    serving = {"namespace": namespace}
    done = roll_back(model_name, open_target(target, serving), reason, command_options(target, serving))
    return (done.version, done.digest, done.replaced, done.registry)


@component("ops")
def promote_served_model(
    model_name: str,
    version: str = "",
    target: str = "local",
    namespace: str = "",
    reason: str = "",
) -> NamedTuple("Outputs", [("version", str), ("digest", str), ("replaced", str)]):
    """Puts the version on trial, or another registered one, in charge by hand, with all the traffic.

    A rollout that is under way stops. The version must be ready and, if it can be reached from here, score its golden rows as
    it should, and the registry must agree: it becomes the champion only in place of the one that it was judged against. Then it
    gets all the traffic, and the version that was in charge is what a rollback brings back. If it is refused, or does not
    become ready, the version in charge stays. Repeating a promotion changes nothing; one that was killed is finished by
    repeating it.

    Args:
        model_name: Name of the served model.
        version: The registered version to put in charge; empty for the one that is on trial.
        target: Where the model is served: local or kserve.
        namespace: For kserve, where its InferenceService is; empty for the pod's own namespace.
        reason: Why, for the registry.

    Returns:
        version: The version in charge now.
        digest: Its model digest.
        replaced: The version that was in charge before; empty if none was.
    """
    from modelyard.components.rollout.promoting import promote
    from modelyard.components.serving.targets import open_target

    done = promote(model_name, version, open_target(target, {"namespace": namespace}), reason)
    return (done.version, done.digest, done.replaced)
