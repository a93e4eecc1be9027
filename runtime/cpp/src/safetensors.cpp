#include "safetensors.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <optional>
#include <string_view>

#include "errors.hpp"
#include "files.hpp"
#include "json.hpp"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "tensors are read as they lie in the file, which is little-endian"
#endif

namespace adexport::core {
namespace {

constexpr std::size_t length_bytes = 8;
constexpr std::uint64_t largest_header = 100'000'000;

struct Dtype {
  const char* name;
  unsigned bits;
  bool known;  // whether adapters can have it
};

constexpr std::array<Dtype, 22> dtypes = {{
    {"F64", 64, true},         {"F32", 32, true},         {"F16", 16, true},     {"BF16", 16, true},
    {"F8_E4M3", 8, true},      {"F8_E5M2", 8, true},      {"I64", 64, true},     {"I32", 32, true},
    {"I16", 16, true},         {"I8", 8, true},           {"U8", 8, true},       {"BOOL", 8, true},
    {"F4", 4, false},          {"F6_E2M3", 6, false},     {"F6_E3M2", 6, false}, {"F8_E8M0", 8, false},
    {"F8_E4M3FNUZ", 8, false}, {"F8_E5M2FNUZ", 8, false}, {"U16", 16, false},    {"U32", 32, false},
    {"C64", 64, false},        {"U64", 64, false},
}};

// A file that is no whole safetensors file; what() says how.
struct Malformed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A tensor as the header has it.
struct Entry {
  const std::string* name = nullptr;
  const Dtype* dtype = nullptr;
  std::vector<std::uint64_t> shape;
  std::uint64_t begin = 0, end = 0;
};

struct Header {
  std::vector<Entry> entries;  // in the order of the text, each name once
  std::map<std::string, std::string> metadata;
  std::size_t data = 0;  // where it starts in the file
};

[[noreturn]] void refuse(const std::filesystem::path& path, std::vector<Problem> problems) {
  throw Error(Kind::adapter, path.filename().string() + " is refused", std::move(problems));
}

// What a file that does not parse is, by its first bytes.
Problem not_safetensors(const std::filesystem::path& path, std::string_view content, const std::string& error) {
  const auto starts = [&](std::string_view mark) { return content.substr(0, mark.size()) == mark; };
  Problem problem{code::not_safetensors, path.string(), {}, "a whole safetensors file"};
  if (starts("version https://git-lfs")) {
    problem.got = "a Git LFS pointer, not the file it points to";
    problem.cause = "cloned without Git LFS";
    problem.mend = "git lfs pull";
    return problem;
  }
  if (starts("PK\x03\x04")) problem.got = "a zip archive (a torch .bin or .pt file?)";
  if (content.size() > 1 && content[0] == '\x80' && content[1] >= 2 && content[1] <= 5) {
    problem.got = "a Python pickle";
  }
  if (!problem.got.empty()) {
    problem.cause = "the file was saved by torch.save";
    problem.mend = "adexport convert FILE -o FOLDER (offline; needs torch)";
    return problem;
  }
  problem.code = code::damaged;
  problem.got = "bytes that do not parse (" + error + ")";
  problem.cause = "a truncated copy or download";
  problem.mend = "copy or download the file again";
  return problem;
}

std::uint64_t natural(const json::Value& value, const std::string& where) {
  if (const auto* integer = value.as<std::int64_t>(); integer != nullptr && *integer >= 0) {
    return static_cast<std::uint64_t>(*integer);
  }
  if (const auto* large = value.as<std::uint64_t>()) return *large;
  throw Malformed(where + " is no size: " + json::repr(value));
}

// The value of a key that must be there once.
const json::Value& field(const json::Object& object, std::string_view key, const std::string& tensor) {
  const json::Value* found = nullptr;
  for (const json::Member& member : object) {
    if (member.key != key) continue;
    if (found != nullptr) throw Malformed("two " + std::string(key) + " of tensor " + tensor);
    found = &member.value;
  }
  if (found == nullptr) throw Malformed("no " + std::string(key) + " of tensor " + tensor);
  return *found;
}

Entry read_entry(const std::string& name, const json::Value& value) {
  const std::string shown = json::repr(name);
  const auto* object = value.as<json::Object>();
  if (object == nullptr) throw Malformed("tensor " + shown + " is no object");
  Entry entry;
  entry.name = &name;
  const json::Value& dtype = field(*object, "dtype", shown);
  if (const auto* text = dtype.as<std::string>()) {
    const auto* found = std::find_if(dtypes.begin(), dtypes.end(), [&](const Dtype& d) { return *text == d.name; });
    if (found != dtypes.end()) entry.dtype = found;
  }
  if (entry.dtype == nullptr) throw Malformed("unknown dtype of " + shown + ": " + json::repr(dtype));
  const auto* shape = field(*object, "shape", shown).as<json::Array>();
  if (shape == nullptr) throw Malformed("the shape of " + shown + " is no list");
  for (const json::Value& size : *shape) entry.shape.push_back(natural(size, "the shape of " + shown));
  const auto* offsets = field(*object, "data_offsets", shown).as<json::Array>();
  if (offsets == nullptr || offsets->size() != 2) {
    throw Malformed("the data_offsets of " + shown + " are no pair");
  }
  entry.begin = natural((*offsets)[0], "an offset of " + shown);
  entry.end = natural((*offsets)[1], "an offset of " + shown);
  return entry;
}

std::map<std::string, std::string> read_metadata(const json::Value& value) {
  std::map<std::string, std::string> metadata;
  const auto* object = value.as<json::Object>();
  if (object == nullptr) throw Malformed("__metadata__ is no object");
  for (const json::Member& member : *object) {
    const auto* text = member.value.as<std::string>();
    if (text == nullptr) throw Malformed(json::repr(member.key) + " of the metadata is no text");
    metadata[member.key] = *text;
  }
  return metadata;
}

// How many bytes a tensor takes.
std::uint64_t bytes_of(const Entry& entry) {
  const auto times = [&](std::uint64_t left, std::uint64_t right) {
    std::uint64_t product = 0;
    if (__builtin_mul_overflow(left, right, &product)) {
      throw Malformed("the size of " + json::repr(*entry.name) + " overflows");
    }
    return product;
  };
  std::uint64_t bits =
      times(std::accumulate(entry.shape.begin(), entry.shape.end(), std::uint64_t{1}, times), entry.dtype->bits);
  if (bits % 8 != 0) throw Malformed("tensor " + json::repr(*entry.name) + " does not end with a byte");
  return bits / 8;
}

// Tensors lie one behind the other, with nothing between, before or behind them.
void check_places(const std::vector<Entry>& entries, std::uint64_t there) {
  std::vector<const Entry*> ordered;
  ordered.reserve(entries.size());
  for (const Entry& entry : entries) ordered.push_back(&entry);
  std::stable_sort(ordered.begin(), ordered.end(), [](const Entry* left, const Entry* right) {
    return std::pair(left->begin, left->end) < std::pair(right->begin, right->end);
  });
  std::uint64_t start = 0;
  for (const Entry* entry : ordered) {
    const std::string shown = json::repr(*entry->name);
    if (entry->begin != start || entry->end < entry->begin) throw Malformed("invalid offset for tensor " + shown);
    if (entry->end - entry->begin != bytes_of(*entry)) {
      throw Malformed("dtype, shape and data_offsets of tensor " + shown + " disagree");
    }
    start = entry->end;
  }
  if (start != there) {
    throw Malformed("tensors of " + std::to_string(start) + " bytes, data of " + std::to_string(there));
  }
}

// The last of those with one name; that names repeat is refused later, unless they lie.
std::vector<Entry> last_of_each(std::vector<Entry> entries) {
  std::map<std::string_view, std::size_t> places;
  std::vector<Entry> kept;
  for (Entry& entry : entries) {
    const auto [place, fresh] = places.emplace(*entry.name, kept.size());
    if (fresh) {
      kept.push_back(std::move(entry));
    } else {
      kept[place->second] = std::move(entry);
    }
  }
  return kept;
}

// The parsed JSON of the header; `length` becomes how many bytes it takes.
json::Value parse_header(std::string_view content, std::size_t& length) {
  if (content.size() < length_bytes) throw Malformed("header too small");
  std::uint64_t declared = 0;
  std::memcpy(&declared, content.data(), length_bytes);
  if (declared > largest_header) throw Malformed("header too large");
  if (declared > content.size() - length_bytes) throw Malformed("invalid header length");
  length = static_cast<std::size_t>(declared);
  return json::parse(content.substr(length_bytes, length), json::Keys::any);
}

Header read_header(const json::Value& parsed, std::size_t length, std::size_t file_bytes) {
  const auto* object = parsed.as<json::Object>();
  if (object == nullptr) throw Malformed("invalid header: no object");
  Header header;
  header.data = length_bytes + length;
  bool described = false;
  std::string faults;  // of all entries
  for (const json::Member& member : *object) {
    try {
      if (member.key != "__metadata__") {
        header.entries.push_back(read_entry(member.key, member.value));
        continue;
      }
      if (described) throw Malformed("two __metadata__");
      described = true;
      header.metadata = read_metadata(member.value);
    } catch (const Malformed& fault) {
      faults += (faults.empty() ? "" : "; ") + std::string(fault.what());
    }
  }
  if (!faults.empty()) throw Malformed("invalid header: " + faults);
  header.entries = last_of_each(std::move(header.entries));
  check_places(header.entries, file_bytes - header.data);
  return header;
}

std::string text_of(const std::vector<std::uint64_t>& shape) {
  std::string text = "[";
  for (std::size_t index = 0; index < shape.size(); ++index) {
    text += (index > 0 ? ", " : "") + std::to_string(shape[index]);
  }
  return text + "]";
}

// What no module path has: control characters and slashes.
bool bad_name(const std::string& name) {
  return name.empty() || std::any_of(name.begin(), name.end(), [](char character) {
           return static_cast<unsigned char>(character) < 0x20 || character == '/' || character == '\\';
         });
}

std::string known_dtypes() {
  std::string text = "one of ";
  for (const Dtype& dtype : dtypes) {
    if (dtype.known) text += (&dtype == dtypes.data() ? "" : ", ") + std::string(dtype.name);
  }
  return text;
}

std::vector<Problem> entry_problems(const Header& header) {
  std::vector<Problem> problems;
  for (const Entry& entry : header.entries) {
    if (bad_name(*entry.name)) {
      problems.push_back({code::bad_name,
                          "tensor " + json::repr(*entry.name),
                          {},
                          "a module path without slashes or control characters",
                          "a tampered file"});
    }
    if (std::find(entry.shape.begin(), entry.shape.end(), 0U) != entry.shape.end()) {
      problems.push_back({code::empty_tensor, *entry.name, "shape " + text_of(entry.shape), "at least one element",
                          "saved from a sharded (ZeRO-3) model whose weights were not gathered",
                          "gather the weights and save the adapter again"});
    }
    if (!entry.dtype->known) {
      problems.push_back({code::wrong_dtype, *entry.name, entry.dtype->name, known_dtypes()});
    }
  }
  return problems;
}

}  // namespace

std::size_t TensorView::count() const {
  return std::accumulate(shape.begin(), shape.end(), std::size_t{1}, [](std::size_t product, std::int64_t size) {
    return product * static_cast<std::size_t>(size);
  });
}

TensorFile parse_tensors(std::shared_ptr<const std::vector<std::byte>> content, const std::filesystem::path& path) {
  const std::string_view bytes(reinterpret_cast<const char*>(content->data()), content->size());
  json::Value parsed;
  Header header;
  try {
    std::size_t length = 0;
    parsed = parse_header(bytes, length);
    header = read_header(parsed, length, bytes.size());
  } catch (const std::runtime_error& error) {
    refuse(path, {not_safetensors(path, bytes, error.what())});
  }
  try {
    json::check_keys(parsed);
  } catch (const json::RepeatedKeys& error) {
    refuse(path, {{code::duplicate_key, std::string("header key ") + error.what(), "the same key twice",
                   "every tensor named once", "a tampered or badly merged file", "save the adapter again"}});
  }
  if (std::vector<Problem> problems = entry_problems(header); !problems.empty()) refuse(path, std::move(problems));
  if (header.entries.empty()) refuse(path, {{code::empty_tensor, path.string(), "no tensors at all"}});
  TensorFile file{path, {}, std::move(header.metadata), std::move(content)};
  for (const Entry& entry : header.entries) {
    TensorView view{entry.dtype->name,
                    {},
                    file.content->data() + header.data + entry.begin,
                    static_cast<std::size_t>(entry.end - entry.begin)};
    // Not empty, so no size is larger than the file.
    for (const std::uint64_t size : entry.shape) view.shape.push_back(static_cast<std::int64_t>(size));
    file.tensors.emplace(*entry.name, std::move(view));
  }
  return file;
}

TensorFile read_tensors(const std::filesystem::path& path) {
  auto content = std::make_shared<std::vector<std::byte>>();
  if (const auto reason = read_whole(path, *content)) refuse(path, {{code::absent, path.string(), *reason}});
  return parse_tensors(std::move(content), path);
}

}  // namespace adexport::core
