#include "signature.hpp"

namespace adexport::kernels {

const std::vector<Signature>& signatures() {
  const Input y{"y", Takes::flow}, x{"x", Takes::flow}, bias{"bias", Takes::flow};
  const Input a{"A", Takes::bank}, b{"B", Takes::bank};
  const Input down{"down", Takes::bank}, down_bias{"down_bias", Takes::bank};
  const Input up{"up", Takes::bank}, up_bias{"up_bias", Takes::bank};
  const Input used{"used", Takes::flag}, code{"code", Takes::integers, true}, ids{"ids", Takes::integers, true};
  static const std::vector<Signature> all{
      {"LoraAdd", {y, x, a, b, ids}},
      {"LoraAddIf", {y, x, a, b, used, ids}},
      {"LoraBiasAddIf", {y, bias, x, a, b, used, ids}},
      {"BottleneckAdd", {y, x, down, down_bias, up, up_bias, code, ids}},
      {"BottleneckAddIf", {y, x, down, down_bias, up, up_bias, code, used, ids}},
      {"RowScale", {x, {"scale", Takes::bank}, ids}},
      {"RowAdd", {y, {"bias", Takes::bank}, ids}},
  };
  return all;
}

}  // namespace adexport::kernels
