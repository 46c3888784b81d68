"""A Kubeflow Pipelines API server in memory: what ``kfp.Client`` needs of REST v2beta1, over real HTTP.

It keeps pipelines, versions, experiments, runs and recurring runs as the API shows them. A run takes the states it is given,
one for each time it is asked for.
"""

import contextlib
import json
import re
import socket
import threading
import uuid
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class KfpApi:
    """The server, as a context manager.

    Args:
        token: bearer token that requests must carry; empty to take any.
        states: what a new run says, each time it is asked; the last one again and again.
        page_size: how many entries a list gives at most.

    Attributes:
        requests: method and path of each request, in order.
        failures: statuses that the next requests are answered with.
        broken: methods and paths that are answered with 500.
    """

    def __init__(self, token="", states=("SUCCEEDED",), page_size=2):
        self.token, self.states, self.page_size = token, list(states), page_size
        self.pipelines, self.versions, self.experiments, self.runs, self.recurring_runs = {}, {}, {}, {}, {}
        self.requests, self.failures, self.broken = [], [], set()
        self._guard = threading.Lock()
        self._connections = set()
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                api._connections.add(self.connection)

            def finish(self):
                api._connections.discard(self.connection)
                super().finish()

            def log_message(self, *_):
                pass

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with api._guard:
                    status, content = api.handle(self.command, self.path, self.headers, body)
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = answer

        self._handler, self.address = Handler, ("127.0.0.1", 0)
        self._listen()
        self.url = "http://{}:{}".format(*self.address)

    def __enter__(self):
        self._serve()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Ends the server as a crash does: nobody listens any more, and every connection breaks."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def start_again(self):
        """Starts the server anew where it was, with all that it knew."""
        self._listen()
        self._serve()

    def _listen(self):
        self._server = ThreadingHTTPServer(self.address, self._handler)
        self._server.daemon_threads = True
        self.address = self._server.server_address

    def _serve(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def handle(self, method, target, headers, body):
        """Answers one request with a status and a JSON object."""
        split = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(split.query).items()}
        path = split.path.removeprefix("/apis/v2beta1")
        self.requests.append((method, path))
        if self.failures:
            return self.failures.pop(0), {"message": "out of order"}
        if (method, path) in self.broken:
            return 500, {"message": "out of order"}
        if self.token and headers.get("Authorization") != f"Bearer {self.token}":
            return 401, {"message": "who are you?"}
        routes = {
            ("GET", r"/healthz"): lambda: {"multi_user": False},
            ("GET", r"/pipelines"): lambda: self._list("pipelines", self.pipelines, query),
            ("POST", r"/pipelines"): lambda: self._add(self.pipelines, "pipeline_id", json.loads(body)),
            ("POST", r"/pipelines/upload_version"): lambda: self._upload(query, headers, body),
            ("GET", r"/pipelines/([^/]+)/versions"): lambda pipeline: self._list(
                "pipeline_versions", {k: v for k, v in self.versions.items() if v["pipeline_id"] == pipeline}, query
            ),
            ("GET", r"/experiments"): lambda: self._list("experiments", self.experiments, query),
            ("POST", r"/experiments"): lambda: self._add(self.experiments, "experiment_id", json.loads(body)),
            ("POST", r"/runs"): lambda: self._add(self.runs, "run_id", json.loads(body)),
            ("GET", r"/runs/([^/]+)"): self._run,
            ("GET", r"/recurringruns"): lambda: self._list("recurringRuns", self.recurring_runs, query),
            ("POST", r"/recurringruns"): lambda: self._add(self.recurring_runs, "recurring_run_id", json.loads(body)),
            ("DELETE", r"/recurringruns/([^/]+)"): lambda key: self.recurring_runs.pop(key) and {},
        }
        for (verb, pattern), action in routes.items():
            if verb == method and (match := re.fullmatch(pattern, path)):
                return 200, action(*match.groups())
        return 404, {"message": f"no such thing as {method} {path}"}

    def _add(self, shelf, key, content):
        # The real server refuses a second pipeline of a name, and takes any number of the rest.
        assert shelf is not self.pipelines or content["display_name"] not in [v["display_name"] for v in shelf.values()]
        content = {**content, key: str(uuid.uuid4())}
        if shelf is self.runs:
            content["asked"] = 0
        shelf[content[key]] = content
        return content

    def _upload(self, query, headers, body):
        head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
        (part,) = BytesParser(policy=HTTP).parsebytes(head + body).iter_parts()
        version = {
            "pipeline_id": query["pipelineid"],
            "display_name": query["name"],
            "package": part.get_payload(decode=True).decode(),
        }
        return self._add(self.versions, "pipeline_version_id", version)

    def _run(self, key):
        run = self.runs[key]
        state = self.states[min(run["asked"], len(self.states) - 1)]
        run["asked"] += 1
        answer = {**run, "state": state}
        if state == "FAILED":
            answer["error"] = {"message": "the pod is gone"}
            answer["run_details"] = {
                "task_details": [
                    {"display_name": "train-xgboost", "state": "FAILED"},
                    {"display_name": "fetch-features", "state": "SUCCEEDED"},
                ]
            }
        return answer

    def _list(self, name, shelf, query):
        predicates = json.loads(query["filter"])["predicates"] if query.get("filter") else []
        values = [
            entry
            for entry in shelf.values()
            if all(entry[predicate["key"]] == predicate["stringValue"] for predicate in predicates)
        ]
        start = int(query.get("page_token") or 0)
        size = min(int(query.get("page_size") or self.page_size), self.page_size)
        page = {name: values[start : start + size], "total_size": len(values)}
        if start + size < len(values):
            page["next_page_token"] = str(start + size)
        return page
