#include "ort/gathered.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>

namespace adexport::core {

namespace {

std::size_t row_bytes(const std::vector<std::int64_t>& shape, Element element) {
  return std::accumulate(
      shape.begin() + 1, shape.end(), size_of(element),
      [](std::size_t bytes, std::int64_t size) { return bytes * static_cast<std::size_t>(size); });
}

BankArray rows_of(const BankArray& array, const std::vector<std::int64_t>& rows, bool at_least_one) {
  BankArray made;
  made.element = array.element;
  made.shape = array.shape;
  made.shape.front() = static_cast<std::int64_t>(rows.size());
  if (at_least_one) {
    std::replace(made.shape.begin(), made.shape.end(), std::int64_t{0}, std::int64_t{1});
  }
  const auto row = row_bytes(array.shape, array.element);
  made.bytes = rows.size() * row_bytes(made.shape, array.element);
  const auto values = std::make_shared<std::vector<std::byte>>(std::max<std::size_t>(made.bytes, 1));
  made.data = {values, values->data()};
  if (row == 0) return made;
  const auto* from = static_cast<const std::byte*>(array.data.get());
  auto* to = values->data();
  for (const auto index : rows) {
    std::memcpy(to, from + static_cast<std::size_t>(index) * row, row);
    to += row;
  }
  return made;
}

}  // namespace

Gathered gather(const BankArrays& bank, const std::int64_t* ids, std::size_t count, bool at_least_one) {
  std::vector<std::int64_t> rows(ids, ids + count);
  std::sort(rows.begin(), rows.end());
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  Gathered gathered;
  gathered.ids.reserve(count);
  for (std::size_t index = 0; index < count; ++index) {
    gathered.ids.push_back(std::lower_bound(rows.begin(), rows.end(), ids[index]) - rows.begin());
  }
  gathered.arrays.reserve(bank.arrays.size());
  for (const auto& array : bank.arrays) gathered.arrays.push_back(rows_of(array, rows, at_least_one));
  return gathered;
}

}  // namespace adexport::core
