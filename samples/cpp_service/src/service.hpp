// The service over HTTP.
#pragma once

#include <httplib.h>

#include <filesystem>

#include "batcher.hpp"

// Bytes of a body.
inline constexpr std::size_t body_limit = 64 * 1024;

// Tell a server what to serve; the engine and the batcher must outlive it. `adapters`: a folder of
// NAME.safetensors.
void add_service(httplib::Server& server, adexport::Engine& engine, Batcher& batcher,
                 std::filesystem::path adapters);
