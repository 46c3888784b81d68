import subprocess
import sys

import kserve

from modelyard.components.predictor.lean_kserve import import_kserve_model

_WITHOUT = """
import sys
from modelyard.components.predictor.lean_kserve import import_kserve_model
import_kserve_model()
from kserve.model import Model
print(sorted(name for name in ("pandas", "fastapi", "kubernetes") if name in sys.modules))
"""


def _run(code):
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()


def test_the_model_s_class_comes_without_what_only_other_parts_use_and_that_can_be_used_later():
    code = _WITHOUT + (
        "import asyncio, numpy, kserve\n"
        "assert kserve.Model is Model\n"
        "assert issubclass(kserve.ModelServer, object) and kserve.KServeClient\n"
        "tensor = kserve.InferInput('a', [2], 'FP32')\n"
        "tensor.set_data_from_numpy(numpy.array([1, 2], numpy.float32), binary_data=False)\n"
        "print(kserve.InferRequest('fraud', [tensor]).as_dataframe()['a'].tolist())\n"
        "from kserve.errors import InvalidInput, invalid_input_handler\n"
        "print(asyncio.run(invalid_input_handler(None, InvalidInput('no'))).status_code)\n"
        "import pandas, fastapi.responses\n"
        "print(pandas.DataFrame({'a': [1]}).shape)\n"
    )
    assert _run(code) == ["[]", "[1.0, 2.0]", "400", "(1, 1)"]


def test_where_kserve_is_imported_already_nothing_happens():
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in ("kserve", "pandas", "fastapi")}
    import_kserve_model()
    assert {name: sys.modules[name] for name in before} == before
    assert kserve.Model is sys.modules["kserve.model"].Model
