#include "fit.hpp"

#include <algorithm>
#include <iterator>
#include <set>
#include <string_view>
#include <utility>

#include "slots.hpp"

namespace adexport::core {
namespace {

using Found = SlotCheck::Found;
using Left = std::map<std::string, const TensorView*>;

constexpr const char* edited = "an edited file";
constexpr const char* bind_again = "bind the original adapter again";

std::string joined(const std::vector<std::string>& items, const char* between) {
  std::string text;
  for (const std::string& item : items) text += (&item == &items.front() ? "" : between) + item;
  return text;
}

void append(std::vector<Problem>& problems, std::vector<Problem> more) {
  std::move(more.begin(), more.end(), std::back_inserter(problems));
}

// The factors of one slot, taken out of what is left; codes are no adapter's to bring.
Found take(Left& left, const Factors& slots) {
  Found found;
  for (const auto& [factor, slot] : slots) {
    const auto place = left.find(slot.name);
    if (place == left.end() || slot.dtype.has_value()) continue;
    found.emplace_back(factor, place->second);
    left.erase(place);
  }
  return found;
}

const TensorView* brought(const Found& found, std::string_view factor) {
  const auto place =
      std::find_if(found.begin(), found.end(), [&](const auto& item) { return item.first == factor; });
  return place == found.end() ? nullptr : place->second;
}

// What an adapter brings where the bundle has no slots of that kind.
Problem no_kind(const std::string& kind, const Manifest& manifest, const std::string& task) {
  std::vector<std::string> slots = manifest.slots;
  slots.push_back(kind);
  std::vector<std::string> distinct;
  for (const std::string& slot : slots) {
    if (std::find(distinct.begin(), distinct.end(), slot) == distinct.end()) distinct.push_back(slot);
  }
  static const std::set<std::string> with_heads = {"text-classification", "token-classification",
                                                   "image-classification"};
  const bool headless = kind == "head" && with_heads.count(manifest.task) == 0;
  const std::string again = headless ? "MODEL --task " + task : "BUNDLE";
  return {code::no_slot,
          kind,
          "a " + kind + " of the adapter's own",
          "what the bundle has slots for: " + (manifest.slots.empty() ? "nothing" : joined(manifest.slots, ", ")),
          "the bundle was built without " + kind + " slots",
          "adexport build " + again + " --slots " + joined(distinct, ",")};
}

// Tensors without the metadata that say what they are, or such metadata without tensors.
Problem unmatched(const std::string& kind, bool said) {
  return {code::bad_config,
          kind,
          said ? "a " + kind + " in the metadata, and no tensors of it"
               : "tensors, and nothing that says what they are",
          "both, the tensors and " + kind + " in the metadata",
          edited,
          bind_again};
}

// A bottleneck or a head has the factors of its style, no more and no fewer.
std::vector<Problem> whole(const std::string& where, const std::set<std::string>& needed, const Found& found) {
  std::vector<std::string> names;
  for (const auto& item : found) names.push_back(item.first);
  const std::set<std::string> there(names.begin(), names.end());
  if (needed == there) return {};
  const bool lacking = !std::includes(there.begin(), there.end(), needed.begin(), needed.end());
  return {{lacking ? code::half_missing : code::bad_config, where, joined(names, ", "),
           joined({needed.begin(), needed.end()}, ", "),
           "an edited file: its tensors are not what its metadata say", bind_again}};
}

std::vector<Problem> linear_problems(Left& left, const Manifest& manifest) {
  const SlotCheck::Limit rank{"rank", manifest.max_rank, "--max-rank"};
  std::vector<Problem> problems;
  for (const Site& site : manifest.sites) {
    const Found found = take(left, site.linear);
    const bool a = brought(found, "lora_A") != nullptr, b = brought(found, "lora_B") != nullptr;
    if (a == b) {
      append(problems, SlotCheck{manifest, site.path, site.linear}.problems(found, rank));
      continue;
    }
    const std::string name_a = find(site.linear, "lora_A")->name, name_b = find(site.linear, "lora_B")->name;
    problems.push_back({code::half_missing, site.path, (a ? name_a : name_b) + " only", name_a + " and " + name_b,
                        edited, bind_again});
  }
  return problems;
}

// A form or an activation that the bundle's graph does not have.
Problem strange_bottleneck(const BottleneckStyle& style, const Bottlenecks& slots) {
  std::vector<std::string> forms;
  for (const BottleneckForm& form : slots.forms) forms.push_back(brief(form));
  return {code::no_slot,
          "bottleneck",
          brief(style.form) + " with " + style.activation,
          joined(forms, " or ") + " with " + joined(slots.activations, ", "),
          "the bundle was built for other bottlenecks",
          "adexport build BUNDLE --like ADAPTER (repeat it for every kind), or --bottlenecks and --activations"};
}

// Norms of a form that the bundle does not take are no strays: the form is refused as a whole.
void drop_norms(Left& left, const BottleneckForm& form, const Factors& slots) {
  std::string stem = find(slots, "down")->name;
  constexpr std::string_view end = "down";
  if (stem.size() >= end.size() && stem.compare(stem.size() - end.size(), end.size(), end) == 0) {
    stem.resize(stem.size() - end.size());
  }
  for (const std::string& norm : norms_of(form)) {
    if (find(slots, norm) == nullptr) left.erase(stem + norm);
  }
}

std::vector<Problem> bottleneck_problems(Left& left, const std::optional<BottleneckStyle>& style,
                                         const Manifest& manifest) {
  std::vector<Problem> problems;
  if (!manifest.bottlenecks.has_value()) {
    if (style.has_value()) problems.push_back(no_kind("bottleneck", manifest, "text-classification"));
    return problems;
  }
  const SlotCheck::Limit width{"width", manifest.max_width, "--max-width"};
  const bool served = style.has_value() && manifest.bottlenecks->code(*style).has_value();
  bool there = false;
  for (const BottleneckSite& site : manifest.bottlenecks->sites) {
    const Found found = take(left, site.slot);
    if (style.has_value() && !served) drop_norms(left, style->form, site.slot);
    if (found.empty()) continue;
    there = true;
    append(problems, SlotCheck{manifest, site.path, site.slot}.problems(found, width));
    if (served) append(problems, whole(site.path, factors_of(style->form), found));
  }
  if (style.has_value() && !served) {
    problems.push_back(strange_bottleneck(*style, *manifest.bottlenecks));
  } else if (there != style.has_value()) {
    problems.push_back(unmatched("bottleneck", style.has_value()));
  }
  return problems;
}

// The task of the bundles that take such a head.
std::string task_of(const HeadStyle& style) {
  return style.feature == "tokens" ? "token-classification" : "text-classification";
}

// A head on what the bundle's graph does not offer, or with an activation that it does not have.
Problem strange_head(const HeadStyle& style, const Head& head, const Manifest& manifest) {
  Problem problem{code::no_slot,
                  "head",
                  "a head on " + style.feature + (style.activation ? " with " + *style.activation : ""),
                  "on " + joined(head.inputs, " or ") + " with " + joined(head.activations, ", "),
                  "the bundle was built for other heads",
                  "adexport build BUNDLE --like ADAPTER (repeat it for every kind), or --activations"};
  if (std::find(head.inputs.begin(), head.inputs.end(), style.feature) != head.inputs.end()) return problem;
  if (task_of(style) == manifest.task) {
    problem.cause = "the base has no such output";
    problem.mend = "train the head on " + joined(head.inputs, " or ");
  } else {
    problem.cause = "the head is of another task";
    problem.mend = "adexport build MODEL --task " + task_of(style) + " --slots " + joined(manifest.slots, ",");
  }
  return problem;
}

std::vector<Problem> head_problems(Left& left, const std::optional<HeadStyle>& style, const Manifest& manifest) {
  if (!manifest.head.has_value()) {
    if (!style.has_value()) return {};
    return {no_kind("head", manifest, task_of(*style))};
  }
  const Head& head = *manifest.head;
  const Found found = take(left, head.slot);
  std::vector<Problem> problems = SlotCheck{manifest, "the head", head.slot}.problems(found, std::nullopt);
  if (found.empty() == style.has_value()) {
    problems.push_back(unmatched("head", style.has_value()));
    return problems;
  }
  if (!style.has_value()) return problems;
  append(problems, whole("the head", factors_of(*style), found));
  const TensorView* bias = brought(found, "out_bias");
  if (bias != nullptr && bias->shape.size() == 1 && bias->count() != style->labels.size()) {
    problems.push_back({code::bad_config, "labels", std::to_string(style->labels.size()) + " names",
                        std::to_string(bias->count()) + ", as the head's tensors have",
                        "the config of another head", "put the config beside the head that it was saved with"});
  }
  if (!head.code(*style).has_value()) problems.push_back(strange_head(*style, head, manifest));
  return problems;
}

}  // namespace

std::vector<Problem> fit_problems(const std::map<std::string, TensorView>& tensors,
                                  const std::optional<BottleneckStyle>& bottleneck,
                                  const std::optional<HeadStyle>& head, const Manifest& manifest) {
  Left left;
  for (const auto& [name, tensor] : tensors) left.emplace_hint(left.end(), name, &tensor);
  std::vector<Problem> problems = linear_problems(left, manifest);
  append(problems, bottleneck_problems(left, bottleneck, manifest));
  append(problems, head_problems(left, head, manifest));
  for (const auto& item : left) {
    problems.push_back({code::unknown_site, item.first, "a tensor without a slot here", "slot inputs of the bundle",
                        "the bundle was built for other targets or slots than the one it was bound for",
                        "adexport build BUNDLE with --targets and --slots that cover it"});
  }
  return problems;
}

}  // namespace adexport::core
