"""KServe's controller in Knative mode, and Knative's own: revisions, the traffic between them, the status.

KServe writes the Knative service of an InferenceService and reads back which revision was created, is ready, was rolled out, by
the rules of its ``PropagateStatus``. Knative makes a revision of each new pod template, and splits the traffic as it was told.
"""

import copy

from tests.support.fake_cluster.admission import mode_of
from tests.support.fake_cluster.predictors import (
    KSERVE,
    OWNER,
    NoRuntime,
    Refused,
    host,
    observe_model,
    record_error,
    refuse_predictor,
    refuse_spec,
    service_name,
    sum_up,
    template_of,
)
from tests.support.fake_cluster.store import Object, Store
from tests.support.fake_cluster.workloads import (
    VERSION,
    Workloads,
    condition_of,
    is_ready,
    owned_by,
    owned_reference,
    put,
    with_condition,
)

REVISION = "serving.knative.dev/revision"
_KNATIVE = "knative-controller"
_TAGGED = "serving.kserve.io/enable-tag-routing"


class KnativeController:
    """Reconciles the services of one mode, a part of a pass at a time.

    Attributes:
        routes_first: whether traffic is split anew before a new template has made a revision: either can come first.
        denied: by model version, why Knative's webhook does not take its service.
    """

    def __init__(self, store: Store, workloads: Workloads) -> None:
        self._store, self._workloads = store, workloads
        self.routes_first = False
        self.denied: dict[str, str] = {}
        # By the uid of a Knative service, what its ingress does.
        self._programmed: dict[str, list[Object]] = {}
        self._tried: dict[str, int] = {}

    # KServe

    def reconcile(self) -> None:
        """KServe: writes the Knative service, reads its status back."""
        for service in self._store.all("inferenceservices"):
            if mode_of(service) == "Knative":
                status = copy.deepcopy(service.get("status", {}))
                self._reconcile(service, status)
                sum_up(status, "Knative")
                if status != service.get("status"):
                    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
                    self._store.set_status("inferenceservices", name, namespace, status)

    def _reconcile(self, service: Object, status: Object) -> None:
        metadata, predictor = service["metadata"], service["spec"]["predictor"]
        name, component = service_name(service, predictor), status.setdefault("components", {}).setdefault("predictor", {})
        try:
            template = template_of(self._store, service, predictor)
        except NoRuntime as missing:
            refuse_spec(status)
            record_error(self._store, service, missing)
            return
        if denial := self.denied.get(predictor.get("annotations", {}).get(VERSION, "")):
            refused = Refused(f"fails to reconcile predictor: {denial}")
            refuse_predictor(status, refused)
            record_error(self._store, service, refused)
            return
        percent, tagged = predictor.get("canaryTrafficPercent"), metadata["annotations"].get(_TAGGED) == "true"
        if percent is not None and not 0 <= percent <= 100:
            with_condition(
                status, "PredictorReady", "False", "ReconcileFailed", f"expected 0 <= {percent} <= 100: spec.traffic"
            )
            return
        rolled_out = component.get("latestRolledoutRevision", "")
        split = percent is not None and rolled_out
        traffic = [{"latestRevision": True, "percent": percent if split else 100, **({"tag": "latest"} if tagged else {})}]
        if split and percent < 100:
            traffic.append({"revisionName": rolled_out, "latestRevision": False, "percent": 100 - percent, "tag": "prev"})
        annotations = {
            **template["metadata"]["annotations"],
            "autoscaling.knative.dev/min-scale": str(predictor.get("minReplicas", 1)),
        }
        if predictor.get("maxReplicas"):
            annotations["autoscaling.knative.dev/max-scale"] = str(predictor["maxReplicas"])
        if "scaleTarget" in predictor:
            annotations["autoscaling.knative.dev/target"] = str(predictor["scaleTarget"])
        if "scaleMetric" in predictor:
            annotations["autoscaling.knative.dev/metric"] = predictor["scaleMetric"]
        timing = {}
        if "timeout" in predictor:
            timing = {"timeoutSeconds": predictor["timeout"], "responseStartTimeoutSeconds": predictor["timeout"]}
        if "containerConcurrency" in predictor:
            timing["containerConcurrency"] = predictor["containerConcurrency"]
        template = {"metadata": {**template["metadata"], "annotations": annotations}, "spec": {**template["spec"], **timing}}
        content = {
            "metadata": {"labels": template["metadata"]["labels"], "ownerReferences": [owned_reference(service)]},
            "spec": {"template": template, "traffic": traffic},
        }
        knative = put(self._store, "ksvcs", name, metadata["namespace"], content, KSERVE)
        self._propagate(status, component, knative.get("status", {}))
        pods = self._store.all("pods", metadata["namespace"], {REVISION: component.get("latestCreatedRevision", "-")})
        ready = condition_of(status, "Ready")["status"] == "True"
        loaded = ready and component.get("latestCreatedRevision") == component.get("latestReadyRevision")
        given_up = any(each["status"] == "False" for each in knative.get("status", {}).get("conditions", ()))
        observe_model(status, pods, loaded=loaded, given_up=given_up)
        if condition_of(status, "RoutesReady")["status"] == "True":
            with_condition(status, "IngressReady", "True")
            status["url"] = f"http://{metadata['name']}.{metadata['namespace']}.example.com"
            status["address"] = {"url": f"http://{metadata['name']}.{metadata['namespace']}.svc.cluster.local"}
        elif condition_of(status, "IngressReady")["status"] != "True":
            with_condition(status, "IngressReady", "Unknown", "IngressNotConfigured", "Ingress has not yet been reconciled.")

    def _propagate(self, status: Object, component: Object, knative: Object) -> None:
        created, ready = knative.get("latestCreatedRevisionName", ""), knative.get("latestReadyRevisionName", "")
        routed: dict[str, int] = {}
        for target in knative.get("traffic", ()):
            routed[target["revisionName"]] = routed.get(target["revisionName"], 0) + target.get("percent", 0)
        for target in knative.get("traffic", ()):
            if target["revisionName"] != ready or not target.get("latestRevision"):
                continue
            if component.get("latestRolledoutRevision", "") != ready:
                if target.get("percent") == 100:
                    component["previousRolledoutRevision"] = component.get("latestRolledoutRevision", "")
                    component["latestRolledoutRevision"] = ready
            elif ready == created and target.get("percent", 0) < 100 and routed[ready] == 100:
                # What was rolled out is taken back.
                component["latestRolledoutRevision"] = component.get("previousRolledoutRevision") or ready
        component["latestCreatedRevision"], component["latestReadyRevision"] = created, ready
        component["traffic"] = copy.deepcopy(knative.get("traffic", []))
        for name in [name for name in component if component[name] in ("", [])]:
            del component[name]
        for mine, theirs in (
            ("PredictorReady", "Ready"), ("PredictorRouteReady", "RoutesReady"),
            ("PredictorConfigurationReady", "ConfigurationsReady"), ("RoutesReady", "RoutesReady"),
            ("LatestDeploymentReady", "ConfigurationsReady"),
        ):  # fmt: skip
            said = condition_of(knative, theirs)
            with_condition(status, mine, said["status"], said.get("reason", ""), said.get("message", ""))
        if condition_of(knative, "Ready")["status"] == "True":
            component["url"], component["address"] = knative["url"], knative["address"]
        status["observedGeneration"] = knative.get("observedGeneration", 0)

    # Knative

    def make_revisions(self) -> None:
        """Knative's configurations: a revision of each new template."""
        for knative in self._store.all("ksvcs"):
            status, template = copy.deepcopy(knative.get("status", {})), knative["spec"]["template"]
            name, namespace = knative["metadata"]["name"], knative["metadata"]["namespace"]
            created = self._store.get("revisions", status.get("latestCreatedRevisionName", ""), namespace)
            if self.routes_first and created and status["observedGeneration"] != knative["metadata"]["generation"]:
                continue
            if created is None or not _is_of(created, template):
                number = self._tried[name] = self._tried.get(name, 0) + 1
                created = self._store.create("revisions", _revision(knative, f"{name}-{number:05}", number), _KNATIVE)
            status["latestCreatedRevisionName"] = created["metadata"]["name"]
            self._write(knative, status)

    def run_revisions(self) -> None:
        """Pods of the revisions that are routed to or new; what does not start is given up in the end."""
        reachable = self._reachable()
        revisions = self._store.all("revisions")
        uids = {revision["metadata"]["uid"] for revision in revisions}
        for pod in self._store.all("pods"):
            owner = pod["metadata"]["ownerReferences"][0]
            if owner["kind"] == "Revision" and owner["uid"] not in uids:
                self._store.delete("pods", pod["metadata"]["name"], pod["metadata"]["namespace"])
        for revision in revisions:
            self._run(revision, revision["metadata"]["name"] in reachable)

    def _reachable(self) -> set[str]:
        names = set()
        for knative in self._store.all("ksvcs"):
            status = knative.get("status", {})
            names |= {target["revisionName"] for target in status.get("traffic", ())}
            names |= {status.get("latestCreatedRevisionName", "")}
        return names

    def _run(self, revision: Object, reachable: bool) -> None:
        metadata, status = revision["metadata"], copy.deepcopy(revision.get("status", {}))
        pods = [pod for pod in self._store.all("pods", metadata["namespace"]) if owned_by(pod, revision)]
        was = condition_of(status, "Ready")["status"]
        age = self._tried.get(metadata["uid"], 0)
        given_up = was != "True" and age > self._workloads.rounds_to_give_up
        wanted = 0
        if reachable and not given_up:
            wanted = max(1, int(metadata["annotations"].get("autoscaling.knative.dev/min-scale", "1")))
        refused = self._workloads.refusal({"metadata": metadata}) if wanted > len(pods) else ""
        if refused and was != "True":
            for kind in ("ResourcesAvailable", "Ready"):
                with_condition(status, kind, "False", "FailedCreate", refused)
        for _ in range(0 if refused else wanted - len(pods)):
            template = {"metadata": {"annotations": metadata["annotations"]}, "spec": revision["spec"]}
            labels = {**metadata["labels"], REVISION: metadata["name"], "app": metadata["name"]}
            pods.append(self._workloads.start(f"{metadata['name']}-deployment", revision, template, labels))
        if was != "True" and not given_up and pods:
            self._tried[metadata["uid"]] = age = age + 1
            if all(is_ready(pod) for pod in pods):
                for kind in ("ContainerHealthy", "ResourcesAvailable", "Ready"):
                    with_condition(status, kind, "True")
            else:
                given_up = age > self._workloads.rounds_to_give_up
                for kind, said in _state_of(pods, given_up).items():
                    with_condition(status, kind, *said)
                wanted = 0 if given_up else wanted
        for pod in pods[wanted:]:
            self._store.delete("pods", pod["metadata"]["name"], metadata["namespace"])
        with_condition(status, "Active", "True" if wanted else "False", "" if wanted else "NoTraffic")
        if status != revision.get("status"):
            self._store.set_status("revisions", metadata["name"], metadata["namespace"], status)

    def configure(self) -> None:
        """Knative's configurations: which revision is the latest that is ready."""
        for knative in self._store.all("ksvcs"):
            status, namespace = copy.deepcopy(knative.get("status", {})), knative["metadata"]["namespace"]
            created = self._store.get("revisions", status.get("latestCreatedRevisionName", ""), namespace)
            if created is None:
                continue
            said = condition_of(created.get("status", {}), "Ready")
            if said["status"] == "True":
                status["latestReadyRevisionName"] = created["metadata"]["name"]
                with_condition(status, "ConfigurationsReady", "True")
            elif said["status"] == "False":
                told = f'Revision "{created["metadata"]["name"]}" failed with message: {said["message"]}.'
                with_condition(status, "ConfigurationsReady", "False", "RevisionFailed", told)
            else:
                with_condition(status, "ConfigurationsReady", "Unknown")
            self._write(knative, status)

    def route(self) -> None:
        """Knative's routes: the traffic as it was told, to revisions that are ready."""
        for knative in self._store.all("ksvcs"):
            status, metadata = copy.deepcopy(knative.get("status", {})), knative["metadata"]
            created = self._store.get("revisions", status.get("latestCreatedRevisionName", ""), metadata["namespace"])
            if created is None or not (self.routes_first or _is_of(created, knative["spec"]["template"])):
                continue
            traffic, missing = [], ""
            for target in knative["spec"]["traffic"]:
                name = status.get("latestReadyRevisionName", "") if target["latestRevision"] else target["revisionName"]
                revision = self._store.get("revisions", name, metadata["namespace"])
                if revision is None or condition_of(revision.get("status", {}), "Ready")["status"] != "True":
                    missing = name or "none"
                    break
                url = {"url": f"http://{target['tag']}-{host(metadata['name'], knative)}"} if "tag" in target else {}
                traffic.append({**target, "revisionName": name, **url})
            if missing:
                with_condition(status, "RoutesReady", "False" if missing != "none" else "Unknown", "RevisionMissing")
            else:
                if status.get("traffic") == traffic:
                    self._programmed[metadata["uid"]] = traffic
                    with_condition(status, "RoutesReady", "True")
                else:
                    # Written down first; the ingress is told then.
                    status["traffic"] = traffic
                    told = "Ingress has not yet been reconciled."
                    with_condition(status, "RoutesReady", "Unknown", "IngressNotConfigured", told)
                status["url"] = f"http://{host(metadata['name'], knative)}"
                status["address"] = {"url": f"http://{metadata['name']}.{metadata['namespace']}.svc.cluster.local"}
            states = {condition_of(status, kind)["status"] for kind in ("ConfigurationsReady", "RoutesReady")}
            configured = condition_of(status, "ConfigurationsReady")
            state = "False" if "False" in states else "Unknown" if "Unknown" in states else "True"
            with_condition(status, "Ready", state, configured.get("reason", ""), configured.get("message", ""))
            status["observedGeneration"] = metadata["generation"]
            self._write(knative, status)

    def _write(self, knative: Object, status: Object) -> None:
        if status != knative.get("status"):
            self._store.set_status("ksvcs", knative["metadata"]["name"], knative["metadata"]["namespace"], status)

    def traffic(self, name: str, namespace: str) -> dict[str, float]:
        """Percent of the live traffic of each version; ``""`` what reaches no revision that is ready."""
        shares: dict[str, float] = {}
        for knative in self._store.all("ksvcs", namespace):
            if knative["metadata"]["labels"].get(OWNER) != name:
                continue
            for target in self._programmed.get(knative["metadata"]["uid"], ()):
                revision = self._store.get("revisions", target["revisionName"], namespace)
                ready = revision and condition_of(revision.get("status", {}), "Ready")["status"] == "True"
                who = revision["metadata"]["annotations"].get(VERSION, "") if ready else ""
                if target.get("percent"):
                    shares[who] = shares.get(who, 0) + target["percent"]
        return shares


def _revision(knative: Object, name: str, number: int) -> Object:
    template = copy.deepcopy(knative["spec"]["template"])
    service = knative["metadata"]["name"]
    labels = {
        **template["metadata"]["labels"],
        "serving.knative.dev/configuration": service,
        "serving.knative.dev/service": service,
        "serving.knative.dev/configurationGeneration": str(number),
    }
    metadata = {
        "name": name,
        "namespace": knative["metadata"]["namespace"],
        "labels": labels,
        "annotations": template["metadata"]["annotations"],
        "ownerReferences": [owned_reference(knative)],
    }
    return {"metadata": metadata, "spec": template["spec"]}


def _is_of(revision: Object, template: Object) -> bool:
    labels = template["metadata"]["labels"].items()
    return (
        revision["spec"] == template["spec"]
        and revision["metadata"]["annotations"] == template["metadata"]["annotations"]
        and labels <= revision["metadata"]["labels"].items()
    )


def _state_of(pods: list[Object], given_up: bool) -> dict[str, tuple[str, str, str]]:
    """The conditions of a revision that is not ready, from its pods: what Knative sees at once, and what at its deadline."""
    healthy, available = ("Unknown", "Deploying", ""), ("Unknown", "Deploying", "")
    if given_up:
        available = ("False", "ProgressDeadlineExceeded", "Initial scale was never achieved")
    for pod in pods:
        for each in pod["status"].get("conditions", ()):
            if each["type"] == "PodScheduled" and each["status"] == "False":
                available = ("False", each["reason"], each["message"])
        for each in pod["status"].get("containerStatuses", ()):
            ended, waits = each.get("lastState", {}).get("terminated"), each["state"].get("waiting")
            if ended:
                healthy = ("False", f"ExitCode{ended['exitCode']}", f"Container failed with: {ended['message']}")
            elif waits and given_up and waits["reason"] != "PodInitializing":
                available = ("False", waits["reason"], waits["message"])
    failed = next((said for said in (available, healthy) if said[0] == "False"), ("Unknown", "Deploying", ""))
    return {"ContainerHealthy": healthy, "ResourcesAvailable": available, "Ready": failed}
