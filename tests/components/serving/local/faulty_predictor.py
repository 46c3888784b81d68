"""A predictor that fails as told by ``MODEL_VERSION``: what a real one cannot be made to do on purpose.

``crash`` ends before it is ready, ``refuse`` ends as one whose model is refused but says no reason, ``serve`` answers health
checks until it is stopped, ``once`` does so and crashes after its first request.
"""

import argparse
import http.server
import json
import os
import socket
import sys
from pathlib import Path


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"modelyard_requests_in_flight{} 0\n")
        if os.environ["MODEL_VERSION"] == "once":
            os._exit(1)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--model_name", "--model_dir", "--fd", "--status_file"):
        parser.add_argument(name)
    arguments = parser.parse_args()
    behaviour = os.environ["MODEL_VERSION"]
    if behaviour == "crash":
        sys.exit("first line\nthe last words")
    if behaviour == "refuse":
        print("no reason but this", file=sys.stderr)
        sys.exit(3)
    listening = socket.socket(fileno=int(arguments.fd))
    server = http.server.HTTPServer(listening.getsockname(), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    told = {"state": "ready", "reason": "", "pid": os.getpid(), "port": listening.getsockname()[1]}
    partial = Path(arguments.status_file + ".partial")
    partial.write_text(json.dumps(told))
    partial.rename(arguments.status_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
