"""Triton's own HTTP client against a server of octconv: triton-client.py HOST:PORT PICTURE."""

import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

url, picture = sys.argv[1:]
model = "cifar"
client = triton.InferenceServerClient(url)


def tensor(array, datatype, binary=True):
    given = triton.InferInput("input", list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return [given]


def fails(call, status):
    try:
        call()
    except InferenceServerException as error:
        assert error.status() == str(status), error
        return error.message()
    raise AssertionError(f"no error, wanted {status}")


assert client.is_server_live() and client.is_server_ready()
assert client.is_model_ready(model) and client.is_model_ready(model, "1")
assert not client.is_model_ready("nothing")
assert {"binary_tensor_data", "classification", "statistics"} <= set(client.get_server_metadata()["extensions"])

metadata = client.get_model_metadata(model)
assert metadata["inputs"] == [{"name": "input", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}], metadata
assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}], metadata
config = client.get_model_config(model, "1")
assert config["input"][0]["dims"] == [32, 32, 3] and config["max_batch_size"] >= 1, config

pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
binary = client.infer(model, tensor(pixels, "UINT8"), request_id="seven")
wanted = binary.as_numpy("logits")
response = binary.get_response()
assert wanted.shape == (3, 10) and wanted.dtype == np.float32 and np.isfinite(wanted).all()
assert (response["id"], response["model_name"], response["model_version"]) == ("seven", model, "1"), response

for binary in (True, False):
    for given in (tensor(pixels, "UINT8", binary), tensor(pixels, "UINT8")):
        outputs = [triton.InferRequestedOutput("logits", binary_data=binary)]
        again = client.infer(model, given, outputs=outputs, priority=1, timeout=10_000_000).as_numpy("logits")
        assert np.allclose(again, wanted, atol=1e-4), np.abs(again - wanted).max()

mean, std = np.float32([0.4914, 0.4822, 0.4465]), np.float32([0.247, 0.2435, 0.2616])
floats = ((pixels / np.float32(255) - mean) / std).astype(np.float32)
for binary in (True, False):
    same = client.infer(model, tensor(floats, "FP32", binary)).as_numpy("logits")
    assert np.allclose(same, wanted, atol=1e-3), np.abs(same - wanted).max()

later = [client.async_infer(model, tensor(pixels[:1], "UINT8")) for _ in range(8)]
assert all(np.allclose(each.get_result().as_numpy("logits"), wanted[:1], atol=1e-4) for each in later)

with open(picture, "rb") as file:
    encoded = np.array([[file.read()]], dtype=np.object_)
for binary in (True, False):
    outputs = [triton.InferRequestedOutput("logits", binary_data=binary, class_count=2)]
    named = client.infer(model, tensor(encoded, "BYTES"), outputs=outputs).as_numpy("logits")
    assert named.shape == (1, 2), named
    first = named[0][0]
    assert (first.decode() if isinstance(first, bytes) else str(first)).endswith(":3:cat"), named

(stats,) = client.get_inference_statistics(model, "1")["model_stats"]
assert stats["inference_stats"]["success"]["count"] >= 14 and stats["inference_count"] >= 30, stats
assert stats["inference_stats"]["success"]["ns"] > 0 and stats["last_inference"] > 0, stats

assert "wanted f32 or u8 [N,32,32,3]" in fails(lambda: client.infer(model, tensor(pixels[:, 1:], "UINT8")), 400)
assert "wanted FP32, UINT8 or BYTES" in fails(lambda: client.infer(model, tensor(pixels.astype("f2"), "FP16")), 400)
fails(lambda: client.infer("nothing", tensor(pixels, "UINT8")), 404)

settings = client.get_trace_settings()
assert settings["trace_level"] == ["OFF"] and settings["trace_rate"] == "1000", settings
assert client.get_trace_settings(model) == settings
assert client.update_trace_settings(model, {"trace_rate": "7", "trace_level": ["OFF"]})["trace_rate"] == "7"
assert client.get_trace_settings() == settings
assert client.update_trace_settings(model, {"trace_rate": None, "trace_level": None}) == settings
assert "no trace file" in fails(lambda: client.update_trace_settings(model, {"trace_level": ["TIMESTAMPS"]}), 400)
assert "the server decides" in fails(lambda: client.update_trace_settings(settings={"trace_file": "x"}), 403)
fails(lambda: client.get_trace_settings("nothing"), 404)

index = client.get_model_repository_index()
assert {"name": model, "version": "1", "state": "READY", "reason": ""} in index, index
client.unload_model(model)
assert not client.is_model_ready(model)
fails(lambda: client.infer(model, tensor(pixels, "UINT8")), 503)
client.load_model(model)
assert np.allclose(client.infer(model, tensor(pixels, "UINT8")).as_numpy("logits"), wanted, atol=1e-4)
fails(lambda: client.load_model("nothing"), 404)
client.close()
print("fine")
