"""KServe's controller in Standard mode, with the Gateway API: Deployments, Services, the HTTPRoutes' weights, the status.

One pass over a service goes as KServe's does, and in its order: canaries, what is orphaned, the stable predictor; then the
routes; then the status. Between these, the API shows what stands half done, as it does in a cluster.
"""

import copy
import math
from typing import Any

from tests.support.fake_cluster.admission import AUTOSCALER, mode_of
from tests.support.fake_cluster.predictors import (
    DEFAULT_DOMAIN,
    KSERVE,
    OWNER,
    NoRuntime,
    Refused,
    host,
    merged_predictor,
    observe_model,
    record_error,
    refuse_predictor,
    refuse_spec,
    replicas_of,
    service_name,
    sum_up,
    template_of,
)
from tests.support.fake_cluster.store import Object, Store
from tests.support.fake_cluster.workloads import VERSION, condition_of, is_ready, owned_reference, put, with_condition

_GATEWAY = "example.com/gateway"
_LONGEST_PART = 63


class RefusedHost(Refused):
    """The host of something has a part that is too long."""


class StandardController:
    """Reconciles the services of one mode, a part of a pass at a time.

    Args:
        store: what there is.
        domain: KServe's template of hosts.

    Attributes:
        denied: by model version, why the API server does not take its Deployments.
    """

    def __init__(self, store: Store, domain: str = DEFAULT_DOMAIN) -> None:
        self._store, self._domain = store, domain
        self.denied: dict[str, str] = {}
        self._passes: dict[str, tuple[Object, Object]] = {}
        self._ended: set[str] = set()

    def begin(self) -> None:
        """Workloads: what canaries need, what nobody needs any more, what the stable predictor needs."""
        self._passes, self._ended = {}, set()
        for service in self._store.all("inferenceservices"):
            if mode_of(service) == "Standard":
                self._begin(service)

    def _begin(self, service: Object) -> None:
        status = copy.deepcopy(service.get("status", {}))
        stable = service["spec"]["predictor"]
        self._passes[service["metadata"]["uid"]] = (service, status)
        try:
            self._run(service, status)
        except Refused as refused:
            # The pass ends here, with what the status says by now.
            self._ended.add(service["metadata"]["uid"])
            record_error(self._store, service, refused)
            return
        name, namespace = service_name(service, stable), service["metadata"]["namespace"]
        deployment = self._store.get("deployments", name, namespace) or {}
        _observe(status, deployment.get("status", {}), f"http://{self._host(name, service)}")
        pods = self._store.all("pods", namespace, {"app": f"isvc.{name}"})
        observe_model(status, pods, loaded=condition_of(status, "Ready")["status"] == "True")

    def _run(self, service: Object, status: Object) -> None:
        stable = service["spec"]["predictor"]
        try:
            template_of(self._store, service, stable)
        except NoRuntime:
            refuse_spec(status)
            raise
        try:
            self._run_canaries(service, status)
        except Refused as refused:
            # Worked out on a copy, so that nothing of it gets into the status.
            raise Refused(f"fails to reconcile canary deployments: {refused}") from refused
        least = self._stable_replicas(service, status)
        try:
            self._deploy(service, stable, self._autoscaled(service, stable, least), least)
        except Refused as refused:
            failed = Refused(f"fails to reconcile predictor: {refused}")
            refuse_predictor(status, failed)
            raise failed from refused

    def _run_canaries(self, service: Object, status: Object) -> None:
        stable, namespace = service["spec"]["predictor"], service["metadata"]["namespace"]
        expected, said = {service_name(service, stable)}, []
        for canary in service["spec"].get("canary") or []:
            name = service_name(service, canary["predictor"])
            expected.add(name)
            replicas = _canary_replicas(service, canary)
            predictor = merged_predictor(stable, canary["predictor"], replicas)
            count = replicas_of(predictor, service["metadata"]["annotations"])
            try:
                self._deploy(service, predictor, count, replicas)
            except Refused as refused:
                did = "build resources for" if isinstance(refused, NoRuntime) else "reconcile"
                raise Refused(f"fails to {did} canary {canary['predictor']['name']}: {refused}") from refused
            deployment = self._store.get("deployments", name, namespace) or {}
            ready = deployment.get("status", {}).get("availableReplicas", 0) > 0
            percent = canary["trafficPercent"]
            said.append(
                {
                    "name": canary["predictor"]["name"],
                    "ready": ready,
                    "trafficPercent": percent,
                    "modelStatus": {"transitionStatus": ""},
                }
            )
        status.pop("canaryStatuses", None)
        if said:
            status["canaryStatuses"] = said
            ready = all(each["ready"] for each in said)
            with_condition(
                status,
                "CanaryPredictorReady",
                "True" if ready else "False",
                "AllCanariesReady" if ready else "CanariesNotReady",
            )
        else:
            status["conditions"] = [each for each in status.get("conditions", []) if each["type"] != "CanaryPredictorReady"]
        for kind in ("deployments", "services"):
            for found in self._store.all(kind, namespace, {OWNER: service["metadata"]["name"], "component": "predictor"}):
                if found["metadata"]["name"] not in expected:
                    self._store.delete(kind, found["metadata"]["name"], namespace)

    def _deploy(self, service: Object, predictor: Object, replicas: int, least: int) -> None:
        name, namespace = service_name(service, predictor), service["metadata"]["namespace"]
        template = template_of(self._store, service, predictor)
        # KServe makes nothing of what would have no host.
        self._host(name, service)
        labels = template["metadata"]["labels"]
        metadata = {
            "labels": dict(labels),
            "annotations": dict(template["metadata"]["annotations"]),
            "ownerReferences": [owned_reference(service)],
        }
        labels["app"] = f"isvc.{name}"
        selector = {"app": f"isvc.{name}"}
        exposed = {"spec": {"selector": selector, "ports": [{"name": name, "port": 80, "targetPort": 8080, "protocol": "TCP"}]}}
        put(self._store, "services", name, namespace, {"metadata": metadata, **exposed}, KSERVE)
        if denial := self.denied.get(template["metadata"]["annotations"].get(VERSION, "")):
            raise Refused(denial)
        deployed = {"spec": {"replicas": replicas, "selector": {"matchLabels": selector}, "template": template}}
        put(self._store, "deployments", name, namespace, {"metadata": metadata, **deployed}, KSERVE)
        self._scale(metadata, name, namespace, predictor, least)

    def _scale(self, metadata: Object, name: str, namespace: str, predictor: Object, least: int) -> None:
        """The autoscaler of a predictor's class. None goes when its predictor does; only an HPA goes when the class is none."""
        scaler = metadata["annotations"].get(AUTOSCALER, "hpa")
        most = max(predictor.get("maxReplicas", 0), least)
        if scaler == "keda":
            triggers = [
                {"type": each["resource"]["name"], "metadata": {"value": str(each["resource"]["target"]["averageUtilization"])}}
                for each in predictor.get("autoScaling", {}).get("metrics", ())
            ]
            bounds = {"minReplicaCount": least, "maxReplicaCount": most}
            scaled = {"spec": {"scaleTargetRef": {"name": name}, **bounds, "triggers": triggers}}
            put(self._store, "scaledobjects", name, namespace, {"metadata": metadata, **scaled}, KSERVE)
        elif scaler == "hpa":
            target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
            goal = {"type": "Utilization", "averageUtilization": predictor.get("scaleTarget", 80)}
            metrics = [{"type": "Resource", "resource": {"name": predictor.get("scaleMetric", "cpu"), "target": goal}}]
            bounds = {"minReplicas": max(1, least), "maxReplicas": max(1, most)}
            scaled = {"spec": {"scaleTargetRef": target, **bounds, "metrics": metrics}}
            put(self._store, "horizontalpodautoscalers", name, namespace, {"metadata": metadata, **scaled}, KSERVE)
        else:
            found = self._store.get("horizontalpodautoscalers", name, namespace) or {"metadata": {}}
            if any(owner["kind"] == "InferenceService" for owner in found["metadata"].get("ownerReferences", ())):
                self._store.delete("horizontalpodautoscalers", name, namespace)

    def _host(self, name: str, service: Object) -> str:
        made = host(name, service, self._domain)
        if any(len(part) > _LONGEST_PART for part in made.split(".")):
            raise RefusedHost(f"failed creating host name: invalid domain name {made!r}")
        return made

    def _stable_replicas(self, service: Object, status: Object) -> int:
        predictor, annotations = service["spec"]["predictor"], service["metadata"]["annotations"]
        ready = {each["name"] for each in status.get("canaryStatuses", ()) if each["ready"]}
        taken = sum(
            _canary_replicas(service, canary)
            for canary in service["spec"].get("canary") or []
            if canary["predictor"]["name"] in ready
        )
        if taken and "minReplicas" in predictor:
            predictor = {**predictor, "minReplicas": max(predictor["minReplicas"] - taken, 1)}
        return replicas_of(predictor, annotations)

    def _autoscaled(self, service: Object, predictor: Object, least: int) -> int:
        """The replicas that an autoscaler has made of it, where it has one; within its bounds."""
        if predictor.get("annotations", {}).get(AUTOSCALER, "none") == "none":
            return least
        found = self._store.get("deployments", service_name(service, predictor), service["metadata"]["namespace"])
        running = found["spec"]["replicas"] if found else 0
        return min(max(least, running), max(least, predictor.get("maxReplicas", least)))

    def route(self) -> None:
        """The HTTPRoutes: of the predictor and of the whole service. Only canaries that are ready get a weight."""
        for service, status in self._passes.values():
            if not self._is_there(service) or service["metadata"]["uid"] in self._ended:
                continue
            if condition_of(status, "PredictorReady")["status"] != "True":
                with_condition(status, "IngressReady", "False", "Predictor ingress not created")
                continue
            name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
            backends = self._backends(service, status)
            for route in (f"{name}-predictor", name):
                content = {
                    "metadata": {
                        "labels": dict(service["metadata"].get("labels", {})),
                        "annotations": dict(service["metadata"].get("annotations", {})),
                        "ownerReferences": [owned_reference(service)],
                    },
                    "spec": {
                        "hostnames": [self._host(route, service)],
                        "parentRefs": [{"kind": "Gateway", "namespace": "kserve", "name": "kserve-ingress-gateway"}],
                        "rules": [
                            {
                                "matches": [{"path": {"type": "RegularExpression", "value": "^/.*$"}}],
                                "backendRefs": backends,
                                "timeouts": {"request": "60s"},
                            }
                        ],
                    },
                }
                put(self._store, "httproutes", route, namespace, content, KSERVE)
            routes = [self._store.get("httproutes", route, namespace) for route in (f"{name}-predictor", name)]
            accepted = all(route and route.get("status", {}).get("parents") for route in routes)
            if not accepted:
                with_condition(status, "IngressReady", "False", "ParentStatusNotAvailable", "Predictor HttpRouteNotReady")
                continue
            with_condition(status, "IngressReady", "True")
            status["url"] = f"http://{self._host(name, service)}"
            address = f"http://{service_name(service, service['spec']['predictor'])}.{namespace}.svc.cluster.local"
            status["address"] = {"url": address}

    def _backends(self, service: Object, status: Object) -> list[Object]:
        namespace, stable = service["metadata"]["namespace"], service["spec"]["predictor"]
        first: dict[str, Any] = {
            "kind": "Service", "name": service_name(service, stable), "namespace": namespace, "port": 80
        }  # fmt: skip
        canaries = service["spec"].get("canary") or []
        if not canaries:
            return [first]
        ready = {each["name"] for each in status.get("canaryStatuses", ()) if each["ready"]}
        weighted = [canary for canary in canaries if canary["predictor"]["name"] in ready]
        return [
            {**first, "weight": 100 - sum(canary["trafficPercent"] for canary in weighted)},
            *(
                {**first, "name": service_name(service, canary["predictor"]), "weight": canary["trafficPercent"]}
                for canary in weighted
            ),
        ]

    def finish(self) -> None:
        """Writes the status down."""
        for service, status in self._passes.values():
            if self._is_there(service):
                sum_up(status, "Standard")
                if status != service.get("status"):
                    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
                    self._store.set_status("inferenceservices", name, namespace, status)

    def accept_routes(self) -> None:
        """The gateway: takes up every route it has not seen. What other controllers say of it stays."""
        for route in self._store.all("httproutes"):
            generation = route["metadata"]["generation"]
            conditions = [
                {"type": kind, "status": "True", "reason": kind, "observedGeneration": generation}
                for kind in ("Accepted", "ResolvedRefs")
            ]
            parents = route.get("status", {}).get("parents", [])
            others = [parent for parent in parents if parent["controllerName"] != _GATEWAY]
            status = {"parents": [{"controllerName": _GATEWAY, "conditions": conditions}, *others]}
            if route.get("status") != status:
                self._store.set_status("httproutes", route["metadata"]["name"], route["metadata"]["namespace"], status)

    def _is_there(self, service: Object) -> bool:
        found = self._store.get("inferenceservices", service["metadata"]["name"], service["metadata"]["namespace"])
        return found is not None and found["metadata"]["uid"] == service["metadata"]["uid"]

    def traffic(self, name: str, namespace: str) -> dict[str, float]:
        """Percent of the live traffic that reaches the ready pods of each Deployment's name; ``""`` what reaches nothing."""
        route = self._store.get("httproutes", name, namespace)
        if route is None:
            return {}
        backends = route["spec"]["rules"][0]["backendRefs"]
        total = sum(each.get("weight", 1) for each in backends)
        shares: dict[str, float] = {}
        for backend in backends:
            exposed = self._store.get("services", backend["name"], namespace)
            pods = (
                [pod for pod in self._store.all("pods", namespace, exposed["spec"]["selector"]) if is_ready(pod)]
                if exposed
                else []
            )
            share = 100 * backend.get("weight", 1) / total if total else 0
            for pod in pods or [None]:
                if share:
                    who = pod["metadata"]["annotations"].get("modelyard.dev/model-version", "") if pod else ""
                    shares[who] = shares.get(who, 0) + share / max(1, len(pods))
        return {who: round(share, 6) for who, share in shares.items()}


def _canary_replicas(service: Object, canary: Object) -> int:
    asked = canary["predictor"].get("minReplicas")
    if asked is not None:
        return asked
    return math.ceil(service["spec"]["predictor"].get("minReplicas", 1) * canary["trafficPercent"] / 100)


def _observe(status: Object, deployed: Object, url: str) -> None:
    available, progressing = condition_of(deployed, "Available"), condition_of(deployed, "Progressing")
    said = ("False", "", "")
    if available["status"] == "True":
        said = ("True", available["reason"], available["message"])
    if progressing["status"] == "False":
        said = ("False", progressing["reason"], progressing["message"])
    elif progressing.get("reason") == "NewReplicaSetAvailable":
        said = ("True", progressing["reason"], progressing["message"])
    elif progressing["status"] == "True" and available["status"] != "True":
        said = ("Unknown", progressing["reason"], progressing["message"])
    if available["status"] == "False":
        said = ("False", available["reason"], available["message"])
    with_condition(status, "PredictorReady", *said)
    predictor = status.setdefault("components", {}).setdefault("predictor", {})
    if said[0] == "True":
        predictor["url"] = url
    status["observedGeneration"] = deployed.get("observedGeneration", 0)
