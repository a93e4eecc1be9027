#include "engine.hpp"

#include <utility>

#include "c_api/guard.hpp"
#include "c_api/handles.hpp"

using adexport::capi::Arguments;
using adexport::capi::guarded;
using adexport::capi::Sized;
using adexport::core::Engine;
using adexport::core::EngineSettings;

namespace {

std::optional<std::string> optional_text(const char* text) {
  return text == nullptr ? std::nullopt : std::optional<std::string>(text);
}

EngineSettings settings_of(const adexport_engine_options* given, Arguments& arguments) {
  Sized<adexport_engine_options> options(given, ADEXPORT_ENGINE_OPTIONS_INIT, "options", arguments);
  options.take(&adexport_engine_options::provider)
      .take(&adexport_engine_options::ort_library)
      .take(&adexport_engine_options::kernels)
      .take(&adexport_engine_options::rows)
      .take(&adexport_engine_options::threads)
      .take(&adexport_engine_options::spin)
      .take(&adexport_engine_options::provider_options)
      .take(&adexport_engine_options::provider_option_count);
  EngineSettings settings;
  settings.provider = optional_text(options->provider).value_or(settings.provider);
  settings.ort_library = optional_text(options->ort_library);
  settings.kernels = optional_text(options->kernels);
  settings.rows = options->rows;
  settings.threads = options->threads;
  settings.spin = options->spin != 0;
  arguments.array(options->provider_options, options->provider_option_count, "options.provider_options");
  if (options->provider_options == nullptr) return settings;
  for (std::size_t index = 0; index < options->provider_option_count; ++index) {
    const auto& option = options->provider_options[index];
    const auto subject = "options.provider_options[" + std::to_string(index) + "]";
    arguments.needed(option.key, subject + ".key", "a text");
    arguments.needed(option.value, subject + ".value", "a text");
    if (option.key != nullptr && option.value != nullptr) {
      settings.provider_options.emplace_back(option.key, option.value);
    }
  }
  return settings;
}

}  // namespace

const char* adexport_version(void) {
  return ADEXPORT_VERSION;
}

adexport_error* adexport_engine_open(const char* bundle, const adexport_engine_options* options,
                                     adexport_engine** engine) {
  return guarded([&] {
    Arguments arguments("the engine is not opened");
    arguments.needed(bundle, "bundle", "a path");
    arguments.needed(engine, "engine", "where to write the engine");
    const auto settings = settings_of(options, arguments);
    arguments.check();
    auto opened = std::make_unique<adexport_engine>();
    opened->engine = Engine::open(bundle, settings);
    opened->provider = opened->engine->provider();
    *engine = opened.release();
  });
}

void adexport_engine_close(adexport_engine* engine) {
  delete engine;
}

const char* adexport_engine_provider(const adexport_engine* engine) {
  return engine == nullptr ? "" : engine->provider.c_str();
}

const char* adexport_engine_ort_version(const adexport_engine* engine) {
  return engine == nullptr ? "" : engine->engine->ort_version().c_str();
}

const char* adexport_engine_kernels(const adexport_engine* engine) {
  return engine == nullptr ? "" : engine->engine->kernels().c_str();
}

const char* adexport_engine_manifest(const adexport_engine* engine) {
  return engine == nullptr ? "" : engine->engine->manifest().text.c_str();
}

adexport_error* adexport_engine_bind(adexport_engine* engine, const char* name, const char* path) {
  return guarded([&] {
    Arguments arguments("the adapter is not bound");
    arguments.needed(engine, "engine", "an engine");
    arguments.needed(name, "name", "a name");
    arguments.check();
    engine->engine->bind(name, optional_text(path));
  });
}

adexport_error* adexport_engine_unbind(adexport_engine* engine, const char* name) {
  return guarded([&] {
    Arguments arguments("the adapter is not unbound");
    arguments.needed(engine, "engine", "an engine");
    arguments.needed(name, "name", "a name");
    arguments.check();
    engine->engine->unbind(name);
  });
}

adexport_error* adexport_engine_adapters(const adexport_engine* engine, adexport_names** names) {
  return guarded([&] {
    Arguments arguments("the adapters are not listed");
    arguments.needed(engine, "engine", "an engine");
    arguments.needed(names, "names", "where to write the names");
    arguments.check();
    *names = std::make_unique<adexport_names>(adexport_names{engine->engine->adapters()}).release();
  });
}

size_t adexport_names_count(const adexport_names* names) {
  return names == nullptr ? 0 : names->names.size();
}

const char* adexport_names_get(const adexport_names* names, size_t index) {
  return index < adexport_names_count(names) ? names->names[index].c_str() : nullptr;
}

void adexport_names_free(adexport_names* names) {
  delete names;
}
