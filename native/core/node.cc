#include "node.h"

#include <cstring>

namespace octconv {

int64_t Param::elements() const {
  int64_t count = 1;
  for (const int64_t size : shape) count = product(count, size);
  return count;
}

size_t Param::bytes() const { return static_cast<size_t>(product(elements(), bytesOf(dtype))); }

std::vector<float> Param::floats() const { return floats(0, elements()); }

std::vector<float> Param::floats(int64_t first, int64_t count) const {
  std::vector<float> out(static_cast<size_t>(count));
  const auto convert = [&](const auto* from, auto&& value) {
    for (size_t i = 0; i < out.size(); i++) out[i] = value(from[first + static_cast<int64_t>(i)]);
  };
  switch (dtype) {
    case DType::f32:
      std::memcpy(out.data(), data + first * 4, out.size() * 4);
      break;
    case DType::f16:
      convert(reinterpret_cast<const Float16*>(data), [](Float16 x) { return floatOf(x); });
      break;
    case DType::bf16:
      convert(reinterpret_cast<const BFloat16*>(data), [](BFloat16 x) { return floatOf(x); });
      break;
    case DType::i8:
      convert(reinterpret_cast<const int8_t*>(data), [](int8_t x) { return static_cast<float>(x); });
      break;
    default:
      fail("parameter of type ", nameOf(dtype), ", wanted f32, f16, bf16 or i8");
  }
  return out;
}

void Node::want(size_t inputCount, size_t outputCount) const {
  if (inputs.size() != inputCount || outputs.size() != outputCount)
    fail(op, ": '", name, "' has ", inputs.size(), " inputs and ", outputs.size(), " outputs, wanted ", inputCount,
         " and ", outputCount);
}

static const Shape& shapeAt(const Node& node, const std::vector<TensorType>& types, size_t i, const char* side) {
  if (i >= types.size()) fail(node.op, ": '", node.name, "' has no ", side, ' ', i, ", only ", types.size());
  return types[i].shape;
}

const Shape& Node::in(size_t i) const { return shapeAt(*this, inputs, i, "input"); }
const Shape& Node::out(size_t i) const { return shapeAt(*this, outputs, i, "output"); }

void Node::wantOneType() const {
  if (inputs.empty()) return;
  const TensorType& first = inputs[0];
  for (const auto* side : {&inputs, &outputs})
    for (const TensorType& type : *side)
      if (type.dtype != first.dtype || type.scale != first.scale || type.zero != first.zero)
        fail(op, ": '", name, "' has ", nameOf(first.dtype), " and ", nameOf(type.dtype),
             ", wanted one type and scale");
}

}  // namespace octconv
