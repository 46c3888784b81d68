import json
import re
import ssl
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from modelyard.components.artifacts.model import Feature, ModelSpec, write_spec
from modelyard.components.artifacts.scoring import write_golden_rows
from modelyard.components.errors import NotAvailable
from modelyard.components.rollout.golden import golden_fault
from modelyard.components.serving.target import PREDICTOR, TRITON, Arm, ServedModel
from tests.support.certificates import write_certificates, write_private_key

SCORES = [0.1, 0.7, 0.4]


@pytest.fixture
def directory(tmp_path):
    """A model of a number and a category, with golden rows of which one is all missing."""
    spec = ModelSpec((Feature("amount"), Feature("country", ("at", "de"))), "fraud", "model.ubj", 0.5)
    write_spec(tmp_path, spec)
    matrix = np.array([[1.5, 0], [np.nan, 1], [np.nan, np.nan]], np.float32)
    write_golden_rows(tmp_path, spec, matrix, np.array(SCORES))
    return tmp_path


def certificate_of_localhost(folder: Path) -> Path:
    """A certificate that vouches for itself, with its key beside it as ``key.pem``."""
    key = write_private_key(folder / "key.pem")
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")]), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return write_certificates(folder / "certificate.pem", certificate)


def at(url: str, layout: str = PREDICTOR) -> Arm:
    return Arm(ServedModel("1", "blake3:1", "/models/1"), 0, ready=True, url=url, layout=layout)


@pytest.fixture
def arm():
    """A server that keeps what it was asked, and answers with what is in ``answers``, one after another."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.server.marks.add(self.headers["x-modelyard-check"])
            self.server.asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            status, body = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *details):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.answers, server.marks = [], [], set()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def scored(scores):
    return 200, {"outputs": [{"name": "probability", "shape": [3], "datatype": "FP64", "data": scores}]}


def test_rows_are_asked_as_a_client_would_with_categories_by_name_and_missing_values_as_null(arm, directory):
    arm.answers = [scored(SCORES)]
    assert golden_fault(at(arm.url), "fraud", directory) == ""
    ((path, body),) = arm.asked
    assert path == "/v2/models/fraud/infer"
    assert arm.marks == {"golden"}
    assert body["inputs"] == [
        {"name": "amount", "shape": [3], "datatype": "FP64", "data": [1.5, None, None]},
        {"name": "country", "shape": [3], "datatype": "BYTES", "data": ["at", "de", None]},
    ]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (scored([0.1, 0.7001, 0.4]), "golden row 1 scores 0.7001 instead of 0.7"),
        (scored([0.1, float("nan"), 0.4]), "golden row 1 scores nan"),
        (scored([0.1, 0.7]), "3 golden rows got 2 scores"),
        (scored([0.1, None, 0.4]), "without probabilities"),
        ((200, {"outputs": []}), "without probabilities"),
        ((200, []), "without probabilities"),
        ((200, b"no json"), "got no scores.*no JSON"),
        ((400, {"error": "unknown feature"}), "answered 400.*unknown feature"),
        ((500, b""), "answered 500"),
    ],
)
def test_any_other_answer_is_a_fault(arm, directory, answer, fault):
    arm.answers = [answer]
    assert re.search(fault, golden_fault(at(arm.url), "fraud", directory, sleep=lambda seconds: None))


def test_an_answer_that_failed_is_asked_for_again(arm, directory):
    arm.answers = [(503, b""), scored(SCORES)]
    assert golden_fault(at(arm.url), "fraud", directory, sleep=lambda seconds: None) == ""
    assert len(arm.asked) == 2


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:1", "ftp://127.0.0.1"])
def test_where_nothing_answers_nothing_is_said_of_the_arm(directory, url):
    with pytest.raises(NotAvailable, match=re.escape(url or "the arm's address")):
        golden_fault(at(url), "fraud", directory, sleep=lambda seconds: None)
    with pytest.raises(NotAvailable):
        golden_fault(at(url), "fraud", directory, sleep=pytest.fail, patient=False)


def test_an_address_with_a_path_is_asked_below_it(arm, directory):
    arm.answers = [scored(SCORES)]
    assert golden_fault(at(f"{arm.url}/serving/team/"), "fraud", directory) == ""
    assert arm.asked[0][0] == "/serving/team/v2/models/fraud/infer"


def test_an_arm_behind_tls_is_asked_only_if_its_certificate_is_trusted(arm, directory, tmp_path, monkeypatch):
    certificate = certificate_of_localhost(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, tmp_path / "key.pem")
    arm.socket = context.wrap_socket(arm.socket, server_side=True)
    arm.answers = [scored(SCORES)]
    here = at(arm.url.replace("http://127.0.0.1", "https://localhost"))
    with pytest.raises(NotAvailable, match="certificate verify failed"):
        golden_fault(here, "fraud", directory, sleep=lambda seconds: None)
    assert arm.asked == []
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert golden_fault(here, "fraud", directory) == ""


def test_triton_is_asked_with_categories_as_codes_and_one_tensor(arm, directory):
    arm.answers = [(200, {"outputs": [{"name": "output__0", "shape": [3, 1], "datatype": "FP32", "data": SCORES}]})]
    assert golden_fault(at(arm.url, TRITON), "fraud", directory) == ""
    ((path, body),) = arm.asked
    assert path == "/v2/models/fraud/infer"
    (tensor,) = body["inputs"]
    assert (tensor["name"], tensor["shape"], tensor["data"][:2]) == ("input__0", [3, 2], [1.5, 0])
    arm.answers = [scored([0.1, 0.7, 0.5])]
    assert golden_fault(at(arm.url, TRITON), "fraud", directory) == "golden row 2 scores 0.5 instead of 0.4"
    arm.answers = [(200, {"outputs": []})]
    assert "without probabilities" in golden_fault(at(arm.url, TRITON), "fraud", directory)
