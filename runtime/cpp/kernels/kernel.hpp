// An operator at one node of a model.
#pragma once

#include "api.hpp"
#include "operator.hpp"

namespace adexport::kernels {

class Kernel {
 public:
  Kernel(const Operator& op, const OrtApi& api, const OrtKernelInfo& info);
  void compute(OrtKernelContext& context) const;

 private:
  [[nodiscard]] View input(const OrtKernelContext& context, std::string_view name) const;
  void read_shape(const OrtValue& value, View& view) const;
  [[nodiscard]] bool flag(const OrtKernelContext& context) const;
  void* output(OrtKernelContext& context, const View& like) const;
  void low_rank(OrtKernelContext& context) const;
  void elementwise(OrtKernelContext& context) const;

  const Operator& operator_;
  const OrtApi& api_;
  std::string where_;
  std::vector<Activation> activations_;
};

}  // namespace adexport::kernels
