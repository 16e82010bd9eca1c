"""
OpenVINO's side of bench.ts: runs ONNX files when it is told to.

    python infer.py THREADS INPUT MODEL...

INPUT holds the elements of the input, f32. First it prints a line of JSON: OpenVINO's version and each model's output.
Then it reads the number of a model a line, from 0, runs it once and prints an empty line.
"""

import json
import sys

import numpy
import openvino

threads, file, *models = sys.argv[1:]
core = openvino.Core()
options = {
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_NUM_THREADS": int(threads),
    "INFERENCE_PRECISION_HINT": "f32",
}


def opened(path):
    model = core.read_model(path)
    shape = [1, *(size.get_length() for size in list(model.input().partial_shape)[1:])]  # N is dynamic in the file
    model.reshape(shape)
    request = core.compile_model(model, "CPU", options).create_infer_request()
    request.set_input_tensor(openvino.Tensor(numpy.fromfile(file, dtype="<f4").reshape(shape)))
    return request


requests = [opened(path) for path in models]
for request in requests:
    request.infer()
outputs = [request.get_output_tensor().data.ravel().tolist() for request in requests]
print(json.dumps({"version": openvino.__version__, "outputs": outputs}), flush=True)
for line in sys.stdin:
    requests[int(line)].infer()
    print(flush=True)
