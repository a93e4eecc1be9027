// Files, read whole.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>

namespace adexport::core {

// Read a file into `content`, a container of bytes; why that failed, or nothing.
template <class Bytes>
std::optional<std::string> read_whole(const std::filesystem::path& path, Bytes& content);

}  // namespace adexport::core
