// Tensors of ONNX Runtime over memory that belongs to somebody else, and bindings of a session.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend.hpp"
#include "bank.hpp"
#include "ort/library.hpp"

namespace adexport::core {

using OrtTensor = OrtOwned<OrtValue>;

// Makes tensors; safe to use from several threads.
class OrtTensors {
 public:
  explicit OrtTensors(const OrtLibrary& ort);

  // Over `data`, which must live as long as the tensor is in use.
  [[nodiscard]] OrtTensor over(const void* data, Element element, const std::vector<std::int64_t>& shape) const;
  // Rows from `first` to `last` of arrays [rows, …].
  [[nodiscard]] OrtTensor rows(const BankArray& array, std::int64_t first, std::int64_t last) const;
  // A float32 output, which keeps its memory.
  [[nodiscard]] Array taken(std::string name, OrtTensor value) const;
  [[nodiscard]] const OrtMemoryInfo* memory() const { return memory_.get(); }

 private:
  const OrtLibrary& ort_;
  OrtOwned<OrtMemoryInfo> memory_;
};

// An IoBinding.
class OrtBinding {
 public:
  OrtBinding(const OrtLibrary& ort, OrtSession* session);

  void input(const std::string& name, const OrtValue* value);
  void output(const std::string& name, const OrtValue* value);
  // Let ONNX Runtime make an output, anew for each run: a kept one keeps its last shape.
  void output(const std::string& name, const OrtMemoryInfo* memory);
  // `copies`: inputs are copied to a device, and outputs from it.
  void run(OrtSession* session, bool copies);
  // In the order in which they were first bound.
  [[nodiscard]] std::vector<OrtTensor> outputs() const;

 private:
  const OrtLibrary& ort_;
  OrtOwned<OrtIoBinding> binding_;
};

}  // namespace adexport::core
