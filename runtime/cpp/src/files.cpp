#include "files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <vector>

namespace adexport::core {
namespace {

std::string reason() {
  return std::generic_category().message(errno);
}

// Closes what was opened.
struct Handle {
  int number;
  ~Handle() {
    if (number >= 0) ::close(number);
  }
};

}  // namespace

template <class Bytes>
std::optional<std::string> read_whole(const std::filesystem::path& path, Bytes& content) {
  const Handle file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.number < 0) return reason();
  struct stat status {};
  if (::fstat(file.number, &status) != 0) return reason();
  // One byte more than it should have, so that the end shows without another round.
  content.resize(static_cast<std::size_t>(std::max<off_t>(status.st_size, 0)) + 1);
  std::size_t filled = 0;
  while (true) {
    if (filled == content.size()) content.resize(content.size() * 2);
    const ssize_t count = ::read(file.number, content.data() + filled, content.size() - filled);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return reason();
    if (count == 0) break;
    filled += static_cast<std::size_t>(count);
  }
  content.resize(filled);
  return std::nullopt;
}

template std::optional<std::string> read_whole(const std::filesystem::path&, std::string&);
template std::optional<std::string> read_whole(const std::filesystem::path&, std::vector<std::byte>&);

}  // namespace adexport::core
