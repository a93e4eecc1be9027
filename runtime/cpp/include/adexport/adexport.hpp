// C++17 over adexport.h: run bundles of adexport, with an adapter for each row of a batch.
//
//   auto engine = adexport::Engine::open("minilm.bundle");
//   std::vector<std::int64_t> ids = …;  // [2, 7]
//   auto out = engine.run({{"input_ids", ids, {2, 7}}}, {"acme", std::nullopt});
//   const float* vectors = out["last_hidden_state"].data();
//
// What the library refuses throws adexport::Error, which names all culprits; an output that is not there,
// std::out_of_range.
#ifndef ADEXPORT_ADEXPORT_HPP
#define ADEXPORT_ADEXPORT_HPP

#include <cstdint>
#include <exception>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adexport/adexport.h"
#include "adexport/error.hpp"

namespace adexport {

/// The version of the library, as "0.1.0".
inline std::string version() {
  return adexport_version();
}

/// How an engine is opened.
struct Options {
  /// "cpu", "cuda", "ort-tensorrt" or "ort-tensorrt-rtx".
  std::string provider = "cpu";
  /// The path of libonnxruntime; none: $ADEXPORT_ORT_LIBRARY, then the loader's search.
  std::optional<std::string> ort_library;
  /// The path of libadexport_kernels; none: $ADEXPORT_KERNELS, then beside libadexport; "" or "none": without.
  std::optional<std::string> kernels;
  /// Adapters resident at once; 0: as many as are bound.
  std::int64_t rows = 0;
  /// Threads of one operator on the CPU; 0: ONNX Runtime chooses.
  std::int32_t threads = 0;
  /// Whether idle threads wait busily: faster alone, slower beside other work.
  bool spin = true;
  /// Settings of ONNX Runtime's provider, as {"device_id", "1"}.
  std::map<std::string, std::string> provider_options;
};

/// A dense row-major input that belongs to the caller, and must live until the run has ended.
class Tensor {
 public:
  Tensor(std::string name, const float* data, std::vector<std::int64_t> shape)
      : Tensor(std::move(name), ADEXPORT_FLOAT32, data, std::move(shape)) {}
  Tensor(std::string name, const std::int64_t* data, std::vector<std::int64_t> shape)
      : Tensor(std::move(name), ADEXPORT_INT64, data, std::move(shape)) {}
  Tensor(std::string name, const std::int32_t* data, std::vector<std::int64_t> shape)
      : Tensor(std::move(name), ADEXPORT_INT32, data, std::move(shape)) {}
  /// Throws Error unless the vector has as many elements as the shape.
  template <class T>
  Tensor(std::string name, const std::vector<T>& values, std::vector<std::int64_t> shape)
      : Tensor(std::move(name), values.data(), std::move(shape)) {
    std::size_t count = 1;
    for (const std::int64_t size : shape_) count *= static_cast<std::size_t>(size);
    if (count != values.size()) {
      throw Error(Kind::request, "the inputs do not fit: " + name_ + " has not as many elements as its shape",
                  {{"bad-input", name_, std::to_string(values.size()) + " elements",
                    std::to_string(count) + ", as the shape says", "", ""}});
    }
  }

  [[nodiscard]] const std::string& name() const { return name_; }
  /// As the C interface takes it; good as long as this.
  [[nodiscard]] adexport_tensor view() const {
    return {name_.c_str(), dtype_, data_, shape_.data(), shape_.size()};
  }

 private:
  Tensor(std::string name, adexport_dtype dtype, const void* data, std::vector<std::int64_t> shape)
      : name_(std::move(name)), dtype_(dtype), data_(data), shape_(std::move(shape)) {}

  std::string name_;
  adexport_dtype dtype_;
  const void* data_;
  std::vector<std::int64_t> shape_;
};

/// A float32 output, the batch first. It belongs to its Outputs.
class Output {
 public:
  explicit Output(const adexport_tensor& tensor) : tensor_(tensor) {}

  [[nodiscard]] std::string name() const { return tensor_.name; }
  [[nodiscard]] const float* data() const { return static_cast<const float*>(tensor_.data); }
  [[nodiscard]] std::vector<std::int64_t> shape() const { return {tensor_.shape, tensor_.shape + tensor_.rank}; }
  /// How many elements there are.
  [[nodiscard]] std::size_t size() const {
    std::size_t count = 1;
    for (std::size_t at = 0; at < tensor_.rank; ++at) count *= static_cast<std::size_t>(tensor_.shape[at]);
    return count;
  }
  [[nodiscard]] const float* begin() const { return data(); }
  [[nodiscard]] const float* end() const { return data() + size(); }
  float operator[](std::size_t index) const { return data()[index]; }

 private:
  adexport_tensor tensor_;
};

/// What a run gives back.
class Outputs {
 public:
  explicit Outputs(adexport_outputs* outputs) : outputs_(outputs) {}

  [[nodiscard]] std::size_t size() const { return adexport_outputs_count(outputs_.get()); }
  /// By its place in the manifest; throws std::out_of_range.
  [[nodiscard]] Output at(std::size_t index) const {
    if (index >= size()) throw std::out_of_range("no output " + std::to_string(index));
    return Output(adexport_outputs_get(outputs_.get(), index));
  }
  /// By its name; throws std::out_of_range.
  [[nodiscard]] Output operator[](std::string_view name) const {
    for (std::size_t index = 0; index < size(); ++index) {
      const adexport_tensor tensor = adexport_outputs_get(outputs_.get(), index);
      if (name == tensor.name) return Output(tensor);
    }
    throw std::out_of_range("no output " + std::string(name));
  }
  /// The label names of a row; none where the row has no head. Logits beyond them are minus infinity.
  [[nodiscard]] std::vector<std::string> labels(std::size_t row) const {
    std::vector<std::string> names;
    for (std::size_t index = 0; index < adexport_outputs_label_count(outputs_.get(), row); ++index) {
      names.emplace_back(adexport_outputs_label(outputs_.get(), row, index));
    }
    return names;
  }

 private:
  detail::Owned<adexport_outputs, adexport_outputs_free> outputs_;
};

/// A prompt to continue, and the adapter for it (none: the base).
struct Prompt {
  std::vector<std::int64_t> ids;
  std::optional<std::string> adapter;
};

/// How tokens are picked; the same seed gives the same tokens.
struct Sampling {
  std::int64_t max_new_tokens = 128;
  double temperature = 0.0;                          ///< 0: greedy
  std::int64_t top_k = 0;                            ///< 0: all
  double top_p = 0.0;                                ///< 0 or 1: all
  double repetition_penalty = 1.0;                   ///< 1: none
  std::optional<std::uint64_t> seed;                 ///< row i takes seed + i; none: a seed from the system
  std::optional<std::vector<std::int64_t>> eos_ids;  ///< none: the bundle's; empty: none
};

/// Why a text ended.
enum class Reason {
  eos = ADEXPORT_EOS,
  length = ADEXPORT_LENGTH,
  cancelled = ADEXPORT_CANCELLED,
  failed = ADEXPORT_FAILED,
};

/// A text that has ended.
struct Generated {
  std::vector<std::int64_t> ids;  ///< the new tokens, the one that ended the text included
  Reason reason = Reason::length;
  std::optional<Error> error;  ///< of a row that failed
};

/// One frozen base for many tenants. All functions may be called from several threads.
class Engine {
 public:
  /// Told every new token of a row, from the calling thread; false ends that row as cancelled.
  using OnToken = std::function<bool(std::size_t row, std::int64_t id)>;

  /// Open a bundle; the adapters that were bound into its folder are bound.
  static Engine open(const std::string& bundle, const Options& options = {}) {
    adexport_engine_options given = ADEXPORT_ENGINE_OPTIONS_INIT;
    detail::Texts texts(Kind::request, "bad-input", "the engine is not opened");
    const char* path = texts.of(bundle, "bundle");
    given.provider = texts.of(options.provider, "options.provider");
    given.ort_library = texts.of(options.ort_library, "options.ort_library");
    given.kernels = texts.of(options.kernels, "options.kernels");
    given.rows = options.rows;
    given.threads = options.threads;
    given.spin = options.spin ? 1 : 0;
    std::vector<adexport_option> settings;
    settings.reserve(options.provider_options.size());
    for (const auto& [key, value] : options.provider_options) {
      const std::string subject = "options.provider_options[" + key + "]";
      settings.push_back({texts.of(key, "a key of options.provider_options"), texts.of(value, subject)});
    }
    texts.check();
    given.provider_options = settings.data();
    given.provider_option_count = settings.size();
    adexport_engine* engine = nullptr;
    detail::check(adexport_engine_open(path, &given, &engine));
    return Engine(engine);
  }

  /// What runs the graph, as ONNX Runtime names it.
  [[nodiscard]] std::string provider() const { return adexport_engine_provider(engine_.get()); }
  [[nodiscard]] std::string ort_version() const { return adexport_engine_ort_version(engine_.get()); }
  /// The path of the kernel library that is in use; empty without one.
  [[nodiscard]] std::string kernels() const { return adexport_engine_kernels(engine_.get()); }
  /// The bundle's manifest.json, as it is on disk.
  [[nodiscard]] std::string manifest() const { return adexport_engine_manifest(engine_.get()); }

  /// Bind what `adexport bind` wrote into the bundle under this name. Runs under way keep what they have.
  void bind(const std::string& name) { bind_from(name, std::nullopt); }
  /// Bind an adapter, or the name anew, from the file of a bound adapter.
  void bind(const std::string& name, const std::string& path) { bind_from(name, path); }
  /// Forget an adapter. Runs under way finish with it.
  void unbind(const std::string& name) {
    detail::Texts texts(Kind::unknown_adapter, "unknown-adapter", "unknown adapter");
    const char* known = texts.of(name, "name");
    texts.check();
    detail::check(adexport_engine_unbind(engine_.get(), known));
  }
  /// The names that a run may ask for, sorted.
  [[nodiscard]] std::vector<std::string> adapters() const {
    adexport_names* listed = nullptr;
    detail::check(adexport_engine_adapters(engine_.get(), &listed));
    const detail::Owned<adexport_names, adexport_names_free> owned(listed);
    std::vector<std::string> names;
    for (std::size_t index = 0; index < adexport_names_count(listed); ++index) {
      names.emplace_back(adexport_names_get(listed, index));
    }
    return names;
  }

  /// Run one batch. `adapters`: a name (none: the base) for each row, or one for all rows, or nothing.
  Outputs run(const std::vector<Tensor>& inputs, const std::vector<std::optional<std::string>>& adapters = {}) {
    std::vector<adexport_tensor> views;
    views.reserve(inputs.size());
    detail::Texts tensors(Kind::request, "bad-input", "the inputs do not fit");
    for (const Tensor& input : inputs) {
      tensors.of(input.name(), "the name of " + detail::place_in("inputs", views.size()));
      views.push_back(input.view());
    }
    tensors.check();
    detail::Texts texts(Kind::unknown_adapter, "unknown-adapter", "unknown adapter");
    std::vector<const char*> names;
    names.reserve(adapters.size());
    for (const auto& name : adapters) {
      names.push_back(texts.of(name, detail::place_in("adapters", names.size())));
    }
    texts.check();
    adexport_outputs* outputs = nullptr;
    detail::check(
        adexport_engine_run(engine_.get(), views.data(), views.size(), names.data(), names.size(), &outputs));
    return Outputs(outputs);
  }

  /// Continue prompts, all in one batch of at most `max_batch` rows (0: 8). A row that fails while it runs has
  /// its error in its own result. What `on_token` throws ends all rows, and is thrown on.
  std::vector<Generated> generate(const std::vector<Prompt>& prompts, const Sampling& sampling = {},
                                  std::size_t max_batch = 0, const OnToken& on_token = {}) {
    std::vector<adexport_prompt> rows;
    rows.reserve(prompts.size());
    detail::Texts texts(Kind::unknown_adapter, "unknown-adapter", "unknown adapter");
    for (const Prompt& prompt : prompts) {
      const char* name = texts.of(prompt.adapter, detail::place_in("prompts", rows.size()) + ".adapter");
      rows.push_back({prompt.ids.data(), prompt.ids.size(), name});
    }
    texts.check();
    const adexport_sampling settings = sampling_of(sampling);
    Listener listener{on_token, nullptr};
    adexport_generated* made = nullptr;
    detail::check(adexport_engine_generate(engine_.get(), rows.data(), rows.size(), &settings, max_batch,
                                           on_token ? &Engine::tell : nullptr, &listener, &made));
    const detail::Owned<adexport_generated, adexport_generated_free> owned(made);
    if (listener.thrown) std::rethrow_exception(listener.thrown);
    std::vector<Generated> results(adexport_generated_count(made));
    for (std::size_t row = 0; row < results.size(); ++row) {
      std::size_t count = 0;
      const std::int64_t* ids = adexport_generated_ids(made, row, &count);
      results[row].ids.assign(ids, ids + count);
      results[row].reason = static_cast<Reason>(adexport_generated_reason(made, row));
      const adexport_error* error = adexport_generated_error(made, row);
      if (error != nullptr) results[row].error.emplace(error);
    }
    return results;
  }

  /// For what the C interface has and this has not; it belongs to this.
  [[nodiscard]] adexport_engine* get() const noexcept { return engine_.get(); }

 private:
  struct Listener {
    const OnToken& on_token;
    std::exception_ptr thrown;
  };

  explicit Engine(adexport_engine* engine) : engine_(engine) {}

  void bind_from(const std::string& name, const std::optional<std::string>& path) {
    detail::Texts names(Kind::adapter, "bad-name", "adapter name refused");
    const char* known = names.of(name, "name");
    names.check();
    detail::Texts texts(Kind::request, "bad-input", "the adapter is not bound");
    const char* file = texts.of(path, "path");
    texts.check();
    detail::check(adexport_engine_bind(engine_.get(), known, file));
  }

  static std::int32_t tell(void* user, std::size_t row, std::int64_t id) noexcept {
    auto& listener = *static_cast<Listener*>(user);
    if (listener.thrown) return 1;
    try {
      return listener.on_token(row, id) ? 0 : 1;
    } catch (...) {
      listener.thrown = std::current_exception();
      return 1;
    }
  }

  static adexport_sampling sampling_of(const Sampling& sampling) {
    adexport_sampling settings = ADEXPORT_SAMPLING_INIT;
    settings.max_new_tokens = sampling.max_new_tokens;
    settings.temperature = sampling.temperature;
    settings.top_k = sampling.top_k;
    settings.top_p = sampling.top_p;
    settings.repetition_penalty = sampling.repetition_penalty;
    settings.has_seed = sampling.seed ? 1 : 0;
    settings.seed = sampling.seed.value_or(0);
    settings.has_eos = sampling.eos_ids ? 1 : 0;
    if (sampling.eos_ids) {
      settings.eos_ids = sampling.eos_ids->data();
      settings.eos_count = sampling.eos_ids->size();
    }
    return settings;
  }

  detail::Owned<adexport_engine, adexport_engine_close> engine_;
};

}  // namespace adexport

#endif  // ADEXPORT_ADEXPORT_HPP
