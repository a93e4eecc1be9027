// Float32 values, owned by whoever made them: an output of ONNX Runtime is handed on without a copy.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

namespace adexport::core {

class Floats {
 public:
  Floats() = default;
  // NOLINTNEXTLINE(google-explicit-constructor): what was made as a vector is taken as it is
  Floats(std::vector<float> values) {
    auto kept = std::make_shared<std::vector<float>>(std::move(values));
    data_ = {kept, kept->data()};
    size_ = kept->size();
  }
  Floats(std::shared_ptr<float> data, std::size_t size) : data_(std::move(data)), size_(size) {}

  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] bool empty() const { return size_ == 0; }
  [[nodiscard]] float* data() { return data_.get(); }
  [[nodiscard]] const float* data() const { return data_.get(); }
  float& operator[](std::size_t index) { return data_.get()[index]; }
  const float& operator[](std::size_t index) const { return data_.get()[index]; }
  [[nodiscard]] float* begin() { return data(); }
  [[nodiscard]] float* end() { return data() + size_; }
  [[nodiscard]] const float* begin() const { return data(); }
  [[nodiscard]] const float* end() const { return data() + size_; }

 private:
  std::shared_ptr<float> data_;
  std::size_t size_ = 0;
};

}  // namespace adexport::core
