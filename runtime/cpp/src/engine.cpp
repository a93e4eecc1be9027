#include "engine.hpp"

#include <algorithm>
#include <set>
#include <system_error>
#include <utility>

#include "bound.hpp"
#include "errors.hpp"
#include "ort/kernels.hpp"
#include "ort/library.hpp"
#include "ort/ort_backend.hpp"
#include "ort/session.hpp"

namespace adexport::core {

namespace {

constexpr const char* logits = "logits";

void check_settings(const EngineSettings& settings) {
  std::vector<Problem> problems;
  if (settings.rows < 0) {
    problems.push_back(
        Problem{code::bad_input, "rows", std::to_string(settings.rows), "at least 1, or 0: as many as are bound"});
  }
  if (settings.threads < 0) {
    problems.push_back(Problem{code::bad_input, "threads", std::to_string(settings.threads), "0 or more"});
  }
  if (!problems.empty()) throw Error(Kind::request, "the engine is not opened", std::move(problems));
}

std::set<std::string> distinct(const Adapters& names) {
  std::set<std::string> found;
  for (const auto& name : names) {
    if (name) found.insert(*name);
  }
  return found;
}

}  // namespace

std::unique_ptr<Engine> Engine::open(const std::filesystem::path& path, const EngineSettings& settings) {
  auto bundle = Bundle::open(path);
  // adapters are read later: by then a service may be in another folder
  std::error_code unknown;
  if (auto whole = std::filesystem::absolute(bundle.root, unknown); !unknown) bundle.root = std::move(whole);
  check_settings(settings);
  SessionSettings wanted;
  wanted.provider = provider_named(settings.provider, settings.provider_options);
  wanted.options = settings.provider_options;
  wanted.threads = settings.threads;
  wanted.spin = settings.spin;
  const auto& ort = OrtLibrary::load(settings.ort_library);
  if (wanted.provider.cpu()) {
    wanted.kernels = find_kernels(settings.kernels);
  } else if (settings.kernels && !settings.kernels->empty()) {
    throw Error(Kind::request, "the engine is not opened",
                Problem{code::bad_input, "kernels", *settings.kernels, "none on " + settings.provider,
                        "these operators run on the CPU alone", "leave it out"});
  }
  auto opened = open_session(ort, bundle.model_path(), bundle.manifest, wanted);
  auto backend = std::make_unique<OrtBackend>(std::move(opened), bundle.manifest);
  std::unique_ptr<Engine> engine(new Engine(std::move(bundle), std::move(backend), settings.rows));
  engine->ort_version_ = ort.version();
  engine->kernels_ = wanted.kernels;
  for (const auto& [name, file] : engine->bundle_.adapters()) {
    engine->bank_.put_lazily(name, [self = engine.get(), file = file] { return self->load(file); });
  }
  return engine;
}

Engine::Engine(Bundle bundle, std::unique_ptr<Backend> backend, std::int64_t rows)
    : bundle_(std::move(bundle)),
      backend_(std::move(backend)),
      bank_(bundle_.manifest.slot_inputs, bundle_.manifest.dtype, rows) {}

void Engine::bind(const std::string& name, const std::optional<std::filesystem::path>& path) {
  check_name(name);
  bank_.put(name, load(path ? *path : bundle_.adapter_path(name)));
}

void Engine::unbind(const std::string& name) {
  bank_.drop(name);
}

std::vector<std::string> Engine::adapters() const {
  auto names = bank_.names();
  std::sort(names.begin(), names.end());
  return names;
}

Outputs Engine::run(const std::vector<Feed>& inputs, const Adapters& adapters) {
  auto checked = check_inputs(inputs, manifest());
  const auto names = check_adapters(adapters, checked.batch, manifest());
  return manifest().generation ? run_prompts(checked, names) : run_once(std::move(checked), names);
}

Outputs Engine::run_once(Inputs inputs, const Adapters& names) {
  const auto lease = bank_.lease(distinct(names));
  std::vector<std::int64_t> ids;
  if (manifest().adapter_ids) {
    for (const auto& name : names) ids.push_back(name ? lease.held(*name).row : 0);
    // one adapter for the whole batch is one matrix product, not many
    if (std::all_of(ids.begin(), ids.end(), [&](std::int64_t id) { return id == ids.front(); })) ids.resize(1);
    inputs.feeds.push_back(
        Feed{*manifest().adapter_ids, Element::int64, {static_cast<std::int64_t>(ids.size())}, ids.data()});
  }
  Outputs outputs{backend_->run(inputs.feeds, lease), labels(names, lease)};
  if (manifest().head) {
    for (auto& array : outputs.arrays) {
      if (array.name == logits) cut_logits(array, outputs.labels);
    }
  }
  return outputs;
}

// The label names of each row: its adapter's own head's, or the base's.
std::vector<Labels> Engine::labels(const Adapters& names, const Lease& lease) const {
  std::vector<Labels> found;
  found.reserve(names.size());
  for (const auto& name : names) {
    const auto* own = name ? &lease.held(*name).labels : nullptr;
    found.push_back(own != nullptr && *own ? **own : manifest().base_labels);
  }
  return found;
}

RowTensors Engine::load(const std::filesystem::path& path) const {
  return load_bound(path, bundle_.manifest);
}

}  // namespace adexport::core
