#include "bound.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <string_view>
#include <utility>

#include "bundle.hpp"
#include "errors.hpp"
#include "fit.hpp"
#include "slots.hpp"

namespace adexport::core {
namespace {

constexpr const char* format_name = "adexport-adapter";
constexpr const char* bind_again = "bind the original adapter again";
constexpr std::array<const char*, 6> required = {"format_version",   "name", "source_type", "source_sha256",
                                                 "base_fingerprint", "rank"};

// What the metadata say.
struct Description {
  std::string name;
  std::optional<BottleneckStyle> bottleneck;
  std::optional<HeadStyle> head;
};

[[noreturn]] void refuse(const TensorFile& file, std::vector<Problem> problems) {
  throw Error(Kind::adapter, file.path.filename().string() + " is refused", std::move(problems));
}

template <class Items>
std::string joined(const Items& items) {
  std::string text;
  for (const auto& item : items) text += (text.empty() ? "" : ", ") + std::string(item);
  return text;
}

const std::string* value_of(const TensorFile& file, const std::string& key) {
  const auto found = file.metadata.find(key);
  return found == file.metadata.end() ? nullptr : &found->second;
}

// As numpy names the type.
std::string dtype_name(const std::string& dtype) {
  static const std::map<std::string, std::string> names = {
      {"F64", "float64"},   {"F16", "float16"},
      {"BF16", "bfloat16"}, {"F8_E4M3", "float8_e4m3fn"},
      {"I64", "int64"},     {"F8_E5M2", "float8_e5m2"},
      {"I32", "int32"},     {"I16", "int16"},
      {"I8", "int8"},       {"U8", "uint8"},
      {"BOOL", "bool"},
  };
  const auto found = names.find(dtype);
  return found == names.end() ? dtype : found->second;
}

void check_version(const TensorFile& file) {
  if (const std::string* format = value_of(file, "format"); format == nullptr || *format != format_name) {
    refuse(file, {{code::version, file.path.string(), "no adexport metadata", std::string("format ") + format_name,
                   "not an adapter that `adexport bind` wrote", "adexport bind ADAPTER"}});
  }
  std::vector<std::string> lacking;
  for (const char* key : required) {
    if (value_of(file, key) == nullptr) lacking.emplace_back(key);
  }
  const std::string* version = value_of(file, "format_version");
  if (lacking.empty() && (*version == "1" || *version == "2")) return;
  refuse(file, {{code::version, file.path.string(),
                 "version " + (version == nullptr ? "None" : *version) +
                     (lacking.empty() ? "" : ", without " + joined(lacking)),
                 "version 1 or 2 with " + joined(required), "bound by another version of adexport", bind_again}});
}

// Metadata that the version does not have, and tensors of another type.
void check_contents(const TensorFile& file) {
  const std::string& version = *value_of(file, "format_version");
  std::set<std::string> known(required.begin(), required.end());
  known.insert("format");
  if (version == "2") known.insert({"bottleneck", "head"});
  std::vector<Problem> wrong;
  for (const auto& item : file.metadata) {
    if (known.count(item.first) > 0) continue;
    wrong.push_back({code::bad_config, item.first, "metadata that version " + version + " does not have",
                     joined(known), "an edited file", bind_again});
  }
  for (const auto& [key, value] : file.metadata) {
    if (known.count(key) == 0 || value.find('\0') == std::string::npos) continue;
    wrong.push_back({code::bad_config, key, json::repr(json::Value{value}), "a text without NUL", "an edited file",
                     bind_again});
  }
  for (const auto& [name, tensor] : file.tensors) {
    if (tensor.dtype == "F32") continue;
    wrong.push_back({code::wrong_dtype, name, dtype_name(tensor.dtype), "float32", "an edited file"});
  }
  if (!wrong.empty()) refuse(file, std::move(wrong));
}

// What the adapter's tensors of a kind are, as the metadata have it in JSON.
template <class Read>
auto style_of(const TensorFile& file, const std::string& key, Read read) {
  schema::Violations found;
  std::optional<decltype(read(json::Value{}, "", found))> style;
  const std::string* text = value_of(file, key);
  if (text == nullptr) return style;
  try {
    style = read(json::parse(*text), "", found);
  } catch (const json::RepeatedKeys& error) {
    refuse(file,
           {{code::duplicate_key, key + ": key " + error.what(), "the same key twice", {}, "an edited file"}});
  } catch (const json::SyntaxError& error) {
    refuse(
        file,
        {{code::bad_config, key, "no JSON (" + std::string(error.what()) + ")", {}, "an edited file", bind_again}});
  }
  std::vector<Problem> problems;
  for (const schema::Violation& item : found.found()) {
    problems.push_back({code::bad_config, item.where.empty() ? key : schema::member_of(key, item.where), item.got,
                        item.expected, "an edited file, or bound by a newer adexport", bind_again});
  }
  if (!problems.empty()) refuse(file, std::move(problems));
  return style;
}

Description describe(const TensorFile& file) {
  check_version(file);
  check_contents(file);
  check_name(*value_of(file, "name"));
  return {*value_of(file, "name"), style_of(file, "bottleneck", read_bottleneck_style),
          style_of(file, "head", read_head_style)};
}

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// Whether a tensor is a factor of a linear layer's slot, by how its name ends.
bool is_linear(std::string_view name) {
  static constexpr std::array<std::string_view, 5> factors = {"lora_A", "lora_B", "adapter_bias", "scale_in",
                                                              "scale_out"};
  const std::string_view end = name.substr(name.rfind('.') + 1);  // the whole of it without a dot
  return std::find(factors.begin(), factors.end(), end) != factors.end();
}

// The file, and copies of tensors that do not lie in it as floats must.
struct Content {
  std::shared_ptr<const std::vector<std::byte>> file;
  std::vector<std::vector<float>> copies;
};

RowTensor row_of(const TensorView& view, Content& content) {
  RowTensor row;
  row.shape = view.shape;
  if (reinterpret_cast<std::uintptr_t>(view.data) % alignof(float) == 0) {
    row.values = reinterpret_cast<const float*>(view.data);
    return row;
  }
  std::vector<float>& copy = content.copies.emplace_back(view.bytes / sizeof(float));
  std::memcpy(copy.data(), view.data, view.bytes);
  row.values = copy.data();
  return row;
}

void put_number(RowTensors& rows, const SlotInput* slot, std::int64_t number) {
  if (slot != nullptr) rows.tensors[slot->name] = RowTensor{{}, nullptr, number};
}

// The codes and guards that the bundle wants; that there are codes was checked.
void add_numbers(RowTensors& rows, const TensorFile& file, const Description& said, const Manifest& manifest) {
  if (said.bottleneck.has_value() && manifest.bottlenecks.has_value()) {
    const std::int64_t code = manifest.bottlenecks->code(*said.bottleneck).value();
    for (const BottleneckSite& site : manifest.bottlenecks->sites) {
      if (file.tensors.count(find(site.slot, "down")->name) > 0) put_number(rows, find(site.slot, "code"), code);
    }
  }
  if (said.head.has_value() && manifest.head.has_value()) {
    put_number(rows, find(manifest.head->slot, "code"), manifest.head->code(*said.head).value());
  }
  const auto any = [&](auto matches) {
    return std::any_of(file.tensors.begin(), file.tensors.end(),
                       [&](const auto& item) { return matches(item.first); });
  };
  put_number(rows, find(manifest.guards, "linear"), any(is_linear) ? 1 : 0);
  const bool bottlenecks = any([](const std::string& name) { return ends_with(name, ".bottleneck.down"); });
  put_number(rows, find(manifest.guards, "bottleneck"), bottlenecks ? 1 : 0);
}

}  // namespace

RowTensors check_bound(const TensorFile& file, const Manifest& manifest) {
  Description said = describe(file);
  if (const std::string& base = *value_of(file, "base_fingerprint"); base != manifest.fingerprint) {
    refuse(file, {{code::wrong_base, said.name, "an adapter bound for the base " + base, manifest.fingerprint,
                   "bound for another base than " + manifest.base_name,
                   "bind the original adapter to this bundle, if it was trained on this base"}});
  }
  if (std::vector<Problem> problems = fit_problems(file.tensors, said.bottleneck, said.head, manifest);
      !problems.empty()) {
    refuse(file, std::move(problems));
  }
  auto content = std::make_shared<Content>(Content{file.content, {}});
  RowTensors rows;
  for (const auto& [name, tensor] : file.tensors) rows.tensors.emplace(name, row_of(tensor, *content));
  add_numbers(rows, file, said, manifest);
  if (said.head.has_value()) rows.labels = std::move(said.head->labels);
  rows.content = std::move(content);
  return rows;
}

RowTensors load_bound(const std::filesystem::path& path, const Manifest& manifest) {
  return check_bound(read_tensors(path), manifest);
}

}  // namespace adexport::core
