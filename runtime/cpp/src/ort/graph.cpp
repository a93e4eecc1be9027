#include "ort/graph.hpp"

#include <algorithm>
#include <map>
#include <utility>

#include "errors.hpp"

namespace adexport::core {

namespace {

struct Heads {
  std::int64_t count = 0, size = 0;
};

// A shape of the graph; ragged sizes have their names.
struct GraphShape {
  std::vector<std::int64_t> sizes;
  std::vector<std::string> names;

  [[nodiscard]] std::string text() const {
    std::string shown;
    for (std::size_t at = 0; at < sizes.size(); ++at) {
      if (at != 0) shown += ", ";
      shown += sizes[at] >= 0 ? std::to_string(sizes[at]) : "'" + names[at] + "'";
    }
    return "[" + shown + "]";
  }

  // As a cache has them: [batch, heads, room, size].
  [[nodiscard]] bool has(const Heads& heads) const {
    return sizes.size() == 4 && sizes[1] == heads.count && sizes[3] == heads.size;
  }
};

GraphShape shape_of(const OrtLibrary& ort, const OrtTypeInfo* type) {
  const OrtTensorTypeAndShapeInfo* info = nullptr;
  ort.check(ort->CastTypeInfoToTensorInfo(type, &info));
  GraphShape shape;
  if (info == nullptr) return shape;
  std::size_t rank = 0;
  ort.check(ort->GetDimensionsCount(info, &rank));
  shape.sizes.resize(rank);
  ort.check(ort->GetDimensions(info, shape.sizes.data(), rank));
  std::vector<const char*> names(rank, "");
  ort.check(ort->GetSymbolicDimensions(info, names.data(), rank));
  shape.names.assign(names.begin(), names.end());
  return shape;
}

std::map<std::string, GraphShape> graph_inputs(const OrtLibrary& ort, const OrtSession* session) {
  OrtAllocator* allocator = nullptr;
  ort.check(ort->GetAllocatorWithDefaultOptions(&allocator));
  std::size_t count = 0;
  ort.check(ort->SessionGetInputCount(session, &count));
  std::map<std::string, GraphShape> found;
  for (std::size_t index = 0; index < count; ++index) {
    char* name = nullptr;
    ort.check(ort->SessionGetInputName(session, index, allocator, &name));
    std::string kept(name);
    ort.check(ort->AllocatorFree(allocator, name));
    OrtTypeInfo* type = nullptr;
    ort.check(ort->SessionGetInputTypeInfo(session, index, &type));
    const OrtOwned<OrtTypeInfo> owned(type, ort->ReleaseTypeInfo);
    found.emplace(std::move(kept), shape_of(ort, type));
  }
  return found;
}

std::map<std::string, std::optional<Heads>> expected_inputs(const Manifest& manifest) {
  std::map<std::string, std::optional<Heads>> expected;
  for (const auto& slot : manifest.slot_inputs) expected[slot.name] = std::nullopt;
  if (!manifest.generation) {
    for (const auto& input : manifest.inputs) expected[input.name] = std::nullopt;
    if (manifest.adapter_ids) expected[*manifest.adapter_ids] = std::nullopt;
    return expected;
  }
  const auto& generation = *manifest.generation;
  for (const auto& name :
       {std::string("input_ids"), generation.lengths, generation.past_lengths, generation.logits_at}) {
    expected[name] = std::nullopt;
  }
  for (const auto& cache : generation.caches) {
    expected[cache.past_key] = expected[cache.past_value] = Heads{cache.kv_heads, cache.size};
  }
  return expected;
}

}  // namespace

void check_graph(const OrtLibrary& ort, const OrtSession* session, const std::string& model,
                 const Manifest& manifest) {
  const auto expected = expected_inputs(manifest);
  const auto found = graph_inputs(ort, session);
  std::vector<Problem> problems;
  for (const auto& [name, shape] : found) {
    if (expected.count(name) == 0) {
      problems.push_back(Problem{code::bad_manifest, name, "an input that only the graph has"});
    }
  }
  for (const auto& [name, heads] : expected) {
    const auto given = found.find(name);
    if (given == found.end()) {
      problems.push_back(Problem{code::bad_manifest, name, "no such input of the graph"});
    } else if (heads && !given->second.has(*heads)) {
      problems.push_back(Problem{
          code::bad_manifest, name, "the shape " + given->second.text() + " in the graph",
          std::to_string(heads->count) + " heads of " + std::to_string(heads->size) + ", as the manifest says"});
    }
  }
  if (problems.empty()) return;
  std::sort(problems.begin(), problems.end(),
            [](const Problem& one, const Problem& other) { return one.subject < other.subject; });
  throw Error(Kind::bundle, model + " is not the graph of its manifest", std::move(problems));
}

}  // namespace adexport::core
