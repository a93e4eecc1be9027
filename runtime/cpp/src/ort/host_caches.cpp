#include "ort/host_caches.hpp"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace adexport::core {

namespace {

constexpr std::size_t alignment = 64;

// Zeros, taken from the system page by page as they are written.
std::shared_ptr<void> zeros(std::size_t bytes) {
  void* start = bytes <= SIZE_MAX - alignment ? std::calloc(bytes + alignment, 1) : nullptr;
  if (start == nullptr) throw std::bad_alloc();
  const std::shared_ptr<void> owner(start, std::free);
  void* aligned = start;
  std::size_t space = bytes + alignment;
  return {owner, std::align(alignment, bytes, aligned, space)};
}

std::size_t product(std::size_t one, std::int64_t other) {
  std::size_t result = 0;
  if (__builtin_mul_overflow(one, static_cast<std::size_t>(other), &result)) throw std::bad_alloc();
  return result;
}

}  // namespace

HostCaches::HostCaches(const std::vector<Cache>& layers, Element dtype, std::int64_t rows, std::int64_t room)
    : rows_(rows), room_(room) {
  arrays_.reserve(2 * layers.size());
  for (const auto& layer : layers) {
    for (int which = 0; which < 2; ++which) {  // keys, values
      BankArray array;
      array.element = dtype;
      array.shape = {rows, layer.kv_heads, room, layer.size};
      array.bytes = size_of(dtype);
      for (const auto size : array.shape) array.bytes = product(array.bytes, size);
      array.data = zeros(array.bytes);
      arrays_.push_back(std::move(array));
    }
  }
}

void HostCaches::move(std::int64_t source, std::int64_t target, std::int64_t tokens) {
  for (const auto& array : arrays_) {
    const auto heads = array.shape[1];
    const auto token = static_cast<std::size_t>(array.shape[3]) * size_of(array.element);
    const auto head = token * static_cast<std::size_t>(room_);
    auto* start = static_cast<std::byte*>(array.data.get());
    for (std::int64_t at = 0; at < heads; ++at) {
      std::memcpy(start + head * static_cast<std::size_t>(target * heads + at),
                  start + head * static_cast<std::size_t>(source * heads + at),
                  token * static_cast<std::size_t>(tokens));
    }
  }
}

void HostCaches::clear(std::int64_t row) {
  for (const auto& array : arrays_) {
    const auto bytes = array.bytes / static_cast<std::size_t>(rows_);
    std::memset(static_cast<std::byte*>(array.data.get()) + bytes * static_cast<std::size_t>(row), 0, bytes);
  }
}

}  // namespace adexport::core
