"""The runtime that `octconv bench serve` loads in MLServer, as a user writes it: onnxruntime, pictures of raw bytes."""

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Runtime(MLModel):
    async def load(self) -> bool:
        given = self.settings.parameters.extra
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = given["threads"]
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri, options)
        self.shape = (-1, given["height"], given["width"], 3)
        std = np.array(given["std"], np.float32)
        self.scale = np.float32(given["scale"]) / std
        self.shift = np.array(given["mean"], np.float32) / std
        return True

    async def predict(self, request: InferenceRequest) -> InferenceResponse:
        pictures = Base64Codec.decode_input(request.inputs[0])
        pixels = np.frombuffer(b"".join(pictures), np.uint8).reshape(self.shape)
        x = np.ascontiguousarray((pixels * self.scale - self.shift).transpose(0, 3, 1, 2))
        (logits,) = self.session.run(None, {self.session.get_inputs()[0].name: x})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("logits", logits)])
