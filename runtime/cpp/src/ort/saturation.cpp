#include "ort/saturation.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <mutex>

namespace adexport::core {

namespace {

// An ONNX graph of one node: y = MatMulIntegerToFloat(a, b, scale s, scale s, zero point z).
constexpr unsigned char probe[] = {
    8,   9,   18, 0,   58,  119, 10, 55,  10,  1,  97,  10,  1,   98,  10,  1,   115, 10,  1,   115, 10,  1,
    122, 18,  1,  121, 34,  20,  77, 97,  116, 77, 117, 108, 73,  110, 116, 101, 103, 101, 114, 84,  111, 70,
    108, 111, 97, 116, 58,  13,  99, 111, 109, 46, 109, 105, 99,  114, 111, 115, 111, 102, 116, 18,  1,   112,
    90,  9,   10, 1,   97,  18,  4,  10,  2,   8,  2,   90,  9,   10,  1,   98,  18,  4,   10,  2,   8,   3,
    90,  11,  10, 1,   115, 18,  6,  10,  4,   8,  1,   18,  0,   90,  11,  10,  1,   122, 18,  6,   10,  4,
    8,   2,   18, 0,   98,  9,   10, 1,   121, 18, 4,   10,  2,   8,   1,   66,  4,   10,  0,   16,  20,  66,
    17,  10,  13, 99,  111, 109, 46, 109, 105, 99, 114, 111, 115, 111, 102, 116, 16,  1};

// Sizes of a product that no kernel for single rows takes.
constexpr std::int64_t rows = 8, inner = 64, columns = 16;

class Probe {
 public:
  explicit Probe(const OrtLibrary& ort) : ort_(ort), memory_(nullptr, ort->ReleaseMemoryInfo) {
    OrtMemoryInfo* memory = nullptr;
    ort_.check(ort_->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
    memory_.reset(memory);
  }

  bool saturates() {
    std::array<std::uint8_t, rows * inner> a{};
    std::array<std::int8_t, inner * columns> b{};
    a.fill(255);
    b.fill(127);
    float scale = 1;
    std::uint8_t zero = 128;
    const auto left = tensor(a.data(), a.size(), {rows, inner}, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
    const auto right = tensor(b.data(), b.size(), {inner, columns}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8);
    const auto scales = tensor(&scale, sizeof scale, {}, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    const auto zeros = tensor(&zero, sizeof zero, {}, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
    const std::array<const OrtValue*, 4> inputs{left.get(), right.get(), scales.get(), zeros.get()};
    const std::array<const char*, 4> names{"a", "b", "s", "z"};
    const std::array<const char*, 1> wanted{"y"};
    const auto session = open();
    OrtValue* output = nullptr;
    ort_.check(ort_->Run(session.get(), nullptr, names.data(), inputs.data(), inputs.size(), wanted.data(),
                         wanted.size(), &output));
    const OrtOwned<OrtValue> owned(output, ort_->ReleaseValue);
    void* data = nullptr;
    ort_.check(ort_->GetTensorMutableData(output, &data));
    const auto* found = static_cast<const float*>(data);
    constexpr auto exact = static_cast<float>(inner * (255 - 128) * 127);
    return std::any_of(found, found + rows * columns, [](float value) { return value != exact; });
  }

 private:
  OrtOwned<OrtSession> open() {
    OrtSessionOptions* created = nullptr;
    ort_.check(ort_->CreateSessionOptions(&created));
    const OrtOwned<OrtSessionOptions> options(created, ort_->ReleaseSessionOptions);
    ort_.check(ort_->SetIntraOpNumThreads(created, 1));
    ort_.check(ort_->SetSessionLogSeverityLevel(created, ORT_LOGGING_LEVEL_ERROR));
    OrtSession* session = nullptr;
    ort_.check(ort_->CreateSessionFromArray(ort_.env(), probe, sizeof probe, created, &session));
    return {session, ort_->ReleaseSession};
  }

  OrtOwned<OrtValue> tensor(void* data, std::size_t bytes, const std::vector<std::int64_t>& shape,
                            ONNXTensorElementDataType type) {
    OrtValue* value = nullptr;
    ort_.check(
        ort_->CreateTensorWithDataAsOrtValue(memory_.get(), data, bytes, shape.data(), shape.size(), type, &value));
    return {value, ort_->ReleaseValue};
  }

  const OrtLibrary& ort_;
  OrtOwned<OrtMemoryInfo> memory_;
};

}  // namespace

bool saturates(const OrtLibrary& ort) {
  static auto& lock = *new std::mutex;
  static auto& known = *new std::map<const OrtLibrary*, bool>;
  const std::scoped_lock guard(lock);
  const auto found = known.find(&ort);
  return found != known.end() ? found->second : known.emplace(&ort, Probe(ort).saturates()).first->second;
}

}  // namespace adexport::core
