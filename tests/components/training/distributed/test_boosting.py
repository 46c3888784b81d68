import subprocess
import sys

import pytest

from tests.services.servers import free_port

_FIRST = """
import os, sys
from modelyard.components.training.distributed import boosting
from modelyard.components.training.distributed.team import Place
boosting.PATIENCE_SECONDS = 2.0
try:
    with boosting._joined(Place(0, 2, "127.0.0.1", int(sys.argv[1]))):
        print("joined", flush=True)
except Exception as error:
    print(type(error).__name__, flush=True)
os._exit(0)
"""


@pytest.mark.slow
def test_nodes_wait_for_each_other_as_long_as_they_say_and_not_as_long_as_xgboost_would():
    # By itself it gives up after five minutes.
    said = subprocess.run(
        [sys.executable, "-c", _FIRST, str(free_port())], stdout=subprocess.PIPE, text=True, timeout=120, check=True
    ).stdout
    assert said.splitlines()[-1] == "XGBoostError"
