// Whether the factors of an adapter fit the slots of a bundle: shapes, sizes and values.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "errors.hpp"
#include "manifest.hpp"
#include "safetensors.hpp"

namespace adexport::core {

// Everything that keeps an adapter off the slots. `tensors` are float32, by slot input, without the rows.
std::vector<Problem> fit_problems(const std::map<std::string, TensorView>& tensors,
                                  const std::optional<BottleneckStyle>& bottleneck,
                                  const std::optional<HeadStyle>& head, const Manifest& manifest);

// What keeps the factors of one slot off it.
struct SlotCheck {
  const Manifest& manifest;
  std::string where;  // the site, for messages
  const Factors& slots;

  // The largest size that the bundle takes of the slot's ragged one, and how to get a larger one.
  struct Limit {
    const char* what;
    std::optional<std::int64_t> largest;
    const char* option;
  };
  // Factors of the slot that the adapter brings, in the order of the slot.
  using Found = std::vector<std::pair<std::string, const TensorView*>>;
  [[nodiscard]] std::vector<Problem> problems(const Found& found, const std::optional<Limit>& limit) const;
};

}  // namespace adexport::core
