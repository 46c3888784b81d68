"""Envoy's configuration as data: a fixed part, read once, and three kinds of files that it follows while it runs.

| file | says | Envoy's name |
|---|---|---|
| ``bootstrap.json`` | where to listen, how to treat requests | bootstrap |
| ``clusters/clusters.json`` | which backends there are, and how their health is watched | CDS |
| ``endpoints/NAME.json`` | the port of a backend, and of the one that answers in its place | EDS |
| ``routes/routes.json`` | which path leads to which backend, with what share | RDS |

Each backend is one cluster for as long as it is there, whatever its part: a canary that becomes the stable one keeps its
connections and its counts, for only its endpoints and the routes change.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelyard.components.artifacts.names import check_model_name
from modelyard.components.errors import InvalidInput

LOOPBACK = "127.0.0.1"
ADMIN_SOCKET = "admin.sock"
CLUSTERS_FILE = "clusters/clusters.json"
ROUTES_FILE = "routes/routes.json"
ENDPOINTS_FOLDER = "endpoints"
# Envoy's own zone and, below it, the zone of the backend that answered: statistics are kept by both.
ZONE = "modelyard"
KEY_HEADER = "x-modelyard-key"
# Asked by the proxy itself, to see which routes are in force; no URL leads there.
PROBE_HOST = "routes.modelyard.invalid"
HEALTH_PATH = "/v2/health/ready"
# A rollout's mark on the requests that it sends to a version itself: no client's request carries it.
CHECK_HEADER = "x-modelyard-check"
# What a client has to send a request, and then a backend to answer it.
REQUEST_SECONDS = 30
CONNECT_SECONDS = 1
# A server may close a connection that has been idle, at the very moment of a request: Envoy has to be first.
# Uvicorn's own limit is 5 s.
IDLE_SECONDS = 3
MAX_CONNECTIONS = 10_000
# As many as a predictor has room for in its queue. It answers them within seconds, long before they are late; what comes on
# top is refused at once, so that one slow version cannot hold what the others need.
MAX_REQUESTS = 1024

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,126}")
_TYPE = "type.googleapis.com/envoy"
_GET = {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD"}}}
_JSON = {"header": {"key": "content-type", "value": "application/json"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
_ERROR_FORMAT = {"json_format": {"error": "%LOCAL_REPLY_BODY%"}}


@dataclass(frozen=True)
class Backend:
    """A server that answers for one version of a model.

    Attributes:
        name: what its counts are kept under: letters, digits, ``-``, ``_`` and ``.``.
        port: where it listens on 127.0.0.1.
    """

    name: str
    port: int

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidInput(
                "backend name", self.name, "use 1 to 127 letters, digits, '-', '_' and '.', starting with no sign"
            )
        if not 0 < self.port < 65536:
            raise InvalidInput(f"port of backend {self.name}", self.port, "give the port it listens on, 1 to 65535")


@dataclass(frozen=True)
class Route:
    """Who answers the requests for one model.

    Attributes:
        model_name: the model, as it stands in the path.
        stable: the backend in charge.
        canary: the backend under trial, if any.
        canary_share: percent of the inference requests that the canary gets, 0 to 100.
        mirror: whether the canary gets a copy of that share instead, its answers thrown away.
    """

    model_name: str
    stable: Backend
    canary: Backend | None = None
    canary_share: int = 0
    mirror: bool = False

    def __post_init__(self) -> None:
        check_model_name(self.model_name)
        if not 0 <= self.canary_share <= 100:
            raise InvalidInput("canary_share", self.canary_share, "give a percentage, 0 to 100")
        if self.canary is None and (self.canary_share or self.mirror):
            raise InvalidInput("canary_share", self.canary_share, "name the canary that is to get it")
        if self.canary is not None and self.canary.name == self.stable.name:
            raise InvalidInput("canary", self.canary.name, "give the canary another name than the stable backend")


@dataclass(frozen=True)
class Endpoints:
    """Where the requests of one cluster go.

    Attributes:
        first: the backend itself; two while it moves from one port to another.
        instead: who answers while none of ``first`` is healthy.
        model_name: the model that each of them serves.
    """

    first: frozenset[Backend]
    instead: frozenset[Backend] = frozenset()
    model_name: str = ""

    def __or__(self, other: "Endpoints") -> "Endpoints":
        return Endpoints(self.first | other.first, self.instead | other.instead, other.model_name)

    def ports(self) -> set[tuple[int, int]]:
        """(priority, port) of each."""
        return {(0, backend.port) for backend in self.first} | {(1, backend.port) for backend in self.instead}


def endpoints_by_cluster(routes: Iterable[Route]) -> dict[str, Endpoints]:
    """The clusters that ``routes`` need, by name.

    A canary that gets live traffic has the stable backend to answer in its place. The stable one has nobody: what is under
    trial must not be given all the traffic. Neither has a canary that gets copies only: the stable backend has the originals.
    """
    clusters: dict[str, Endpoints] = {}
    for route in routes:
        name = route.model_name
        wanted = [(route.stable, Endpoints(frozenset({route.stable}), model_name=name))]
        if route.canary is not None:
            instead = frozenset() if route.mirror else frozenset({route.stable})
            wanted.append((route.canary, Endpoints(frozenset({route.canary}), instead, name)))
        for backend, endpoints in wanted:
            if clusters.setdefault(backend.name, endpoints) != endpoints:
                raise InvalidInput("backend name", backend.name, "use it for one backend of one route only")
    return clusters


def health_path(model_name: str) -> str:
    """Where a backend says whether it is ready for a model, and which one that is."""
    return f"/v2/models/{model_name}/ready"


def bootstrap(port: int) -> dict[str, Any]:
    """The fixed part. Paths are relative to Envoy's current folder, because a socket's path may have a hundred bytes only."""
    return {
        "node": {"id": ZONE, "cluster": ZONE, "locality": {"zone": ZONE}},
        "admin": {"address": {"pipe": {"path": ADMIN_SOCKET, "mode": 0o600}}},
        # Only what is read: the rest would cost memory, and time on each request.
        "stats_config": {
            "stats_matcher": {
                "inclusion_list": {
                    "patterns": [
                        {"safe_regex": {"regex": pattern}}
                        for pattern in (
                            rf"cluster\..+\.zone\.{ZONE}\..+\.upstream_rq_[2-5]xx",
                            r"cluster\..+\.(upstream_cx_none_healthy|upstream_rq_active|update_rejected|update_failure)",
                            r"cluster_manager\.cds\.(version_text|update_rejected|update_failure)",
                            rf"http\.{ZONE}\.(downstream_rq_active|rds\.{ZONE}\.(update_rejected|update_failure))",
                        )
                    ]
                }
            }
        },
        "dynamic_resources": {"cds_config": _followed(CLUSTERS_FILE)},
        "static_resources": {"listeners": [_listener(port)]},
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{_TYPE}.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": MAX_CONNECTIONS,
                    },
                }
            ]
        },
    }


def _followed(path: str) -> dict[str, Any]:
    return {
        "resource_api_version": "V3",
        "initial_fetch_timeout": "5s",
        "path_config_source": {"path": path, "watched_directory": {"path": path.rpartition("/")[0]}},
    }


def _listener(port: int) -> dict[str, Any]:
    manager = {
        "@type": f"{_TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": ZONE,
        "rds": {"route_config_name": ZONE, "config_source": _followed(ROUTES_FILE)},
        # Clients are strangers, also on this machine: Envoy's own headers, by which a request could ask to be repeated or to
        # wait for ever, are taken from them, while their request id is kept.
        "use_remote_address": True,
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}]},
        "skip_xff_append": True,
        "preserve_external_request_id": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "server_header_transformation": "PASS_THROUGH",
        "request_headers_timeout": "10s",
        # However slowly a client sends its request, or takes its answer, it does not hold a backend for ever.
        "request_timeout": f"{REQUEST_SECONDS}s",
        "stream_idle_timeout": f"{REQUEST_SECONDS + 5}s",
        "local_reply_config": {
            "mappers": [
                {
                    "filter": {"response_flag_filter": {"flags": ["UH"]}},
                    "body": {"inline_string": "no predictor of this model answers at the moment: see `modelyard status`"},
                    "body_format_override": _ERROR_FORMAT,
                },
                {
                    "filter": {
                        "status_code_filter": {
                            "comparison": {"op": "GE", "value": {"default_value": 400, "runtime_key": "unused"}}
                        }
                    },
                    "body_format_override": _ERROR_FORMAT,
                },
            ]
        },
        "http_filters": [
            # What only looks (metadata, readiness) is passed on without being counted: the counts are those of inference.
            {
                "name": "looks",
                "typed_config": {
                    "@type": f"{_TYPE}.extensions.filters.http.health_check.v3.HealthCheck",
                    "pass_through_mode": True,
                    "headers": [{"name": ":method", "string_match": {"exact": "POST"}, "invert_match": True}],
                },
            },
            {
                "name": "router",
                "typed_config": {
                    "@type": f"{_TYPE}.extensions.filters.http.router.v3.Router",
                    "suppress_envoy_headers": True,
                },
            },
        ],
    }
    return {
        "name": ZONE,
        "address": {"socket_address": {"address": LOOPBACK, "port_value": port}},
        # Else another process could listen on the same port and get half of the connections.
        "enable_reuse_port": False,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def discovery(resources: Sequence[Mapping[str, Any]], version: str) -> dict[str, Any]:
    """The content of a file that Envoy follows."""
    return {"version_info": version, "resources": list(resources)}


def cluster(name: str, model_name: str) -> dict[str, Any]:
    """A backend's cluster: how it is connected to and how its health is watched."""
    return {
        "@type": f"{_TYPE}.config.cluster.v3.Cluster",
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": _followed(endpoints_file(name))},
        "connect_timeout": f"{CONNECT_SECONDS}s",
        # Without a healthy server a request is refused at once, never sent to one that is known to be ill.
        # A change of health is in force at once, not a second later together with others.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}, "update_merge_window": "0s"},
        "ignore_health_on_host_removal": True,
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": MAX_REQUESTS,
                    "max_pending_requests": MAX_REQUESTS,
                    "max_requests": MAX_REQUESTS,
                    "max_retries": 0,
                }
            ]
        },
        "health_checks": [
            {
                # Whoever else has got its port does not give this answer.
                "http_health_check": {
                    "path": health_path(model_name),
                    "receive": [{"text": f'"name":"{model_name}"'.encode().hex()}],
                },
                "interval": "1s",
                "no_traffic_interval": "1s",
                "unhealthy_interval": "0.25s",
                # A busy predictor may be late: an answer that it is not ready counts at once, none at all the third time.
                "timeout": "2s",
                "unhealthy_threshold": 3,
                "healthy_threshold": 1,
            }
        ],
        # At most half of the servers may be put aside: a canary, whose share the stable one then takes, but never the only one.
        "outlier_detection": {
            "consecutive_5xx": 5,
            "interval": "1s",
            "base_ejection_time": "10s",
            "max_ejection_time": "60s",
            "max_ejection_percent": 50,
            "enforcing_consecutive_5xx": 100,
            "enforcing_success_rate": 0,
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions",
                "common_http_protocol_options": {"idle_timeout": f"{IDLE_SECONDS}s"},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }


def endpoints_file(name: str) -> str:
    """Path of the file with a cluster's endpoints."""
    return f"{ENDPOINTS_FOLDER}/{name}.json"


def assignment(name: str, endpoints: Endpoints) -> dict[str, Any]:
    """A cluster's endpoints."""
    return {
        "@type": f"{_TYPE}.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": name,
        "endpoints": [
            {
                "priority": priority,
                "locality": {"zone": backend.name},
                "lb_endpoints": [
                    {"endpoint": {"address": {"socket_address": {"address": LOOPBACK, "port_value": backend.port}}}}
                ],
            }
            for priority, backends in ((0, endpoints.first), (1, endpoints.instead))
            for backend in sorted(backends, key=lambda backend: (backend.name, backend.port))
        ],
    }


def read_endpoints(cluster: Mapping[str, Any], resource: Mapping[str, Any]) -> Endpoints:
    """The endpoints that ``cluster`` and ``assignment`` wrote."""
    found: tuple[set[Backend], set[Backend]] = (set(), set())
    for group in resource["endpoints"]:
        for endpoint in group["lb_endpoints"]:
            port = endpoint["endpoint"]["address"]["socket_address"]["port_value"]
            found[group["priority"]].add(Backend(group["locality"]["zone"], port))
    model_name = cluster["health_checks"][0]["http_health_check"]["path"].split("/")[3]
    return Endpoints(frozenset(found[0]), frozenset(found[1]), model_name)


def route_configuration(routes: Sequence[Route]) -> dict[str, Any]:
    """The routes of all served models; every other path is refused. Routes whose answer tells the version come in addition."""
    served = ", ".join(sorted(route.model_name for route in routes)) or "none"
    rules = [rule for route in routes for rule in _model_rules(route)]
    rules.append(_reply(200, '{"live": true}', path="/v2/health/live"))
    # One answer for the whole server: each model has its own at /v2/models/NAME and /v2/models/NAME/ready.
    for path in (HEALTH_PATH, "/v2", "/v2/"):
        if routes:
            rules.append({"match": {"path": path, "headers": [_GET]}, "route": _to(routes[0].stable)})
        else:
            rules.append(_reply(503, "no model is served", path=path))
    names = json.dumps({"models": sorted(route.model_name for route in routes)})
    rules.append({**_reply(200, names, path="/v1/models"), "response_headers_to_add": [_JSON]})
    for version in ("v1", "v2"):
        rules.append(
            _reply(404, f"no such model, or no such path of it (models served: {served})", prefix=f"/{version}/models/")
        )
    rules.append(_reply(404, "no such path: requests go to /v1/models/NAME:predict or /v2/models/NAME/infer", prefix="/"))
    return {
        "@type": f"{_TYPE}.config.route.v3.RouteConfiguration",
        "name": ZONE,
        "virtual_hosts": [{"name": "models", "domains": ["*"], "routes": rules, "request_headers_to_remove": [CHECK_HEADER]}],
    }


def probe_host(version: str) -> dict[str, Any]:
    """The virtual host that tells the version of the routes in force."""
    return {"name": "probe", "domains": [PROBE_HOST], "routes": [_reply(200, version, prefix="/")]}


def _reply(status: int, body: str, **match: str) -> dict[str, Any]:
    return {"match": match, "direct_response": {"status": status, "body": {"inline_string": body}}}


def _to(backend: Backend) -> dict[str, Any]:
    return {"cluster": backend.name, "timeout": f"{REQUEST_SECONDS}s"}


def _model_rules(route: Route) -> list[dict[str, Any]]:
    first, second = f"/v1/models/{route.model_name}", f"/v2/models/{route.model_name}"
    versioned = f"{re.escape(second)}/versions/[A-Za-z0-9_.-]+"
    looks = [{"path": first}, {"path": second}, {"path": f"{second}/ready"}, {"safe_regex": {"regex": f"{versioned}(/ready)?"}}]
    infers: list[dict[str, Any]] = [
        {"path": f"{first}:predict"},
        {"path": f"{second}/infer"},
        {"safe_regex": {"regex": f"{versioned}/infer"}},
    ]
    rules: list[dict[str, Any]] = []
    for match in infers:
        if route.canary is None or route.canary_share == 0:
            rules.append({"match": match, "route": _to(route.stable)})
        elif route.mirror:
            fraction = {"default_value": {"numerator": route.canary_share, "denominator": "HUNDRED"}}
            # Envoy appends "-shadow" to a copy's Host, by which the predictor tells it in its log.
            mirrored = {"cluster": route.canary.name, "runtime_fraction": fraction}
            rules.append({"match": match, "route": {**_to(route.stable), "request_mirror_policies": [mirrored]}})
        elif route.canary_share == 100:
            rules.append({"match": match, "route": _to(route.canary)})
        else:
            rules.extend(_split(match, route.stable, route.canary, route.canary_share))
    rules += [{"match": match, "route": _to(route.stable)} for match in looks]
    return rules


def _split(match: dict[str, Any], stable: Backend, canary: Backend, share: int) -> list[dict[str, Any]]:
    """By the key if the request has one, else by chance.

    The key's hash modulo 100 falls below the share or not, the canary being first in order: a share that grows keeps the
    keys that were in. The canary's name goes into the hash, so that it is not the same customers who try every new version.
    """
    weights = {"clusters": [{"name": canary.name, "weight": share}, {"name": stable.name, "weight": 100 - share}]}
    timeout = f"{REQUEST_SECONDS}s"
    salt = {"pattern": {"regex": "^"}, "substitution": f"{canary.name}/"}
    # An empty key is nobody's: all who send it would else share one fate.
    keyless = {
        **match,
        "headers": [{"name": KEY_HEADER, "string_match": {"exact": ""}, "treat_missing_header_as_empty": True}],
    }
    return [
        {"match": keyless, "route": {"weighted_clusters": weights, "timeout": timeout}},
        {
            "match": match,
            "route": {
                "weighted_clusters": {**weights, "use_hash_policy": True},
                "hash_policy": [{"header": {"header_name": KEY_HEADER, "regex_rewrite": salt}}],
                "timeout": timeout,
            },
        },
    ]
