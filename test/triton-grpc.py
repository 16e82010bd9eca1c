"""Triton's own gRPC client against a server of octconv: triton-grpc.py HOST:PORT PICTURE."""

import queue
import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

url, picture = sys.argv[1:]
model = "cifar"
client = triton.InferenceServerClient(url)


def tensor(array, datatype):
    given = triton.InferInput("input", list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return [given]


def fails(call, status):
    try:
        call()
    except InferenceServerException as error:
        assert error.status() == f"StatusCode.{status}", error
        return error.message()
    raise AssertionError(f"no error, wanted {status}")


assert client.is_server_live() and client.is_server_ready()
assert client.is_model_ready(model) and client.is_model_ready(model, "1")
assert not client.is_model_ready("nothing")
assert {"classification", "statistics"} <= set(client.get_server_metadata(as_json=True)["extensions"])

metadata = client.get_model_metadata(model)
assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("input", "UINT8", [-1, 32, 32, 3])], metadata
assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [("logits", "FP32", [-1, 10])], metadata
config = client.get_model_config(model, "1").config
assert list(config.input[0].dims) == [32, 32, 3] and config.max_batch_size >= 1, config
assert config.HasField("dynamic_batching") and config.dynamic_batching.default_queue_policy.max_queue_size > 0, config
as_json = client.get_model_config(model, as_json=True)["config"]
assert as_json["input"][0]["data_type"] == "TYPE_UINT8" and as_json["output"][0]["data_type"] == "TYPE_FP32", as_json
assert as_json["parameters"]["alpha"]["string_value"] == "0.5", as_json

pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
result = client.infer(model, tensor(pixels, "UINT8"), request_id="seven")
wanted = result.as_numpy("logits")
response = result.get_response()
assert wanted.shape == (3, 10) and wanted.dtype == np.float32 and np.isfinite(wanted).all()
assert (response.id, response.model_name, response.model_version) == ("seven", model, "1"), response

outputs = [triton.InferRequestedOutput("logits")]
for compression in (None, "gzip", "deflate"):
    again = client.infer(
        model,
        tensor(pixels, "UINT8"),
        outputs=outputs,
        priority=1,
        timeout=10_000_000,
        client_timeout=20,
        compression_algorithm=compression,
    ).as_numpy("logits")
    assert np.allclose(again, wanted, atol=1e-4), np.abs(again - wanted).max()

mean, std = np.float32([0.4914, 0.4822, 0.4465]), np.float32([0.247, 0.2435, 0.2616])
floats = ((pixels / np.float32(255) - mean) / std).astype(np.float32)
same = client.infer(model, tensor(floats, "FP32")).as_numpy("logits")
assert np.allclose(same, wanted, atol=1e-3), np.abs(same - wanted).max()

with open(picture, "rb") as file:
    encoded = np.array([[file.read()]], dtype=np.object_)
outputs = [triton.InferRequestedOutput("logits", class_count=2)]
named = client.infer(model, tensor(encoded, "BYTES"), outputs=outputs).as_numpy("logits")
assert named.shape == (1, 2) and named[0][0].decode().endswith(":3:cat"), named

answers = queue.Queue()


def keep(result, error):
    answers.put(error or result)


for _ in range(8):
    client.async_infer(model, tensor(pixels[:1], "UINT8"), keep)
assert all(np.allclose(answers.get(timeout=20).as_numpy("logits"), wanted[:1], atol=1e-4) for _ in range(8))

client.start_stream(keep)
for i in range(8):
    given = pixels[:1, :31] if i == 5 else pixels[:1]
    client.async_stream_infer(
        model, tensor(np.ascontiguousarray(given), "UINT8"), request_id=str(i), enable_empty_final_response=True
    )
streamed = [answers.get(timeout=20) for _ in range(8)]
client.stop_stream()
(failed,) = [each for each in streamed if isinstance(each, InferenceServerException)]
assert "wanted f32 or u8 [N,32,32,3]" in failed.message(), failed
rest = [each for each in streamed if each is not failed]
assert {each.get_response().id for each in rest} == set("0123467")
assert all(each.get_response().parameters["triton_final_response"].bool_param for each in rest)
assert all(np.allclose(each.as_numpy("logits"), wanted[:1], atol=1e-4) for each in rest)

(stats,) = client.get_inference_statistics(model, "1").model_stats
assert stats.inference_stats.success.count >= 20 and stats.inference_count >= 28, stats
assert stats.inference_stats.success.ns > 0 and stats.last_inference > 0, stats
assert len(client.get_inference_statistics().model_stats) >= 1

assert "wanted f32 or u8" in fails(lambda: client.infer(model, tensor(pixels[:, 1:], "UINT8")), "INVALID_ARGUMENT")
assert "wanted FP32, UINT8 or BYTES" in fails(
    lambda: client.infer(model, tensor(pixels.astype("f2"), "FP16")), "INVALID_ARGUMENT"
)
fails(lambda: client.infer("nothing", tensor(pixels, "UINT8")), "NOT_FOUND")
fails(lambda: client.get_system_shared_memory_status(), "UNIMPLEMENTED")

def traced(answer):
    return {name: list(setting.value) for name, setting in answer.settings.items()}


settings = traced(client.get_trace_settings())
assert settings["trace_level"] == ["OFF"] and settings["trace_rate"] == ["1000"], settings
assert traced(client.get_trace_settings(model)) == settings
changed = {"trace_rate": "7", "trace_level": ["OFF"]}
assert traced(client.update_trace_settings(model, changed))["trace_rate"] == ["7"]
assert client.get_trace_settings(as_json=True)["settings"]["trace_rate"] == {"value": ["1000"]}
assert traced(client.update_trace_settings(model, {"trace_rate": None, "trace_level": None})) == settings
assert "no trace file" in fails(
    lambda: client.update_trace_settings(model, {"trace_level": ["TIMESTAMPS"]}), "INVALID_ARGUMENT"
)
assert "the server decides" in fails(
    lambda: client.update_trace_settings(settings={"trace_file": "x"}), "PERMISSION_DENIED"
)
fails(lambda: client.get_trace_settings("nothing"), "NOT_FOUND")

(one,) = [each for each in client.get_model_repository_index().models if each.name == model]
assert (one.version, one.state, one.reason) == ("1", "READY", ""), one
client.unload_model(model)
assert not client.is_model_ready(model)
fails(lambda: client.infer(model, tensor(pixels, "UINT8")), "UNAVAILABLE")
client.load_model(model)
assert np.allclose(client.infer(model, tensor(pixels, "UINT8")).as_numpy("logits"), wanted, atol=1e-4)
fails(lambda: client.load_model("nothing"), "NOT_FOUND")
client.close()
print("fine")
