#include "service.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <nlohmann/json.hpp>
#include <regex>
#include <string>
#include <vector>

#include "asked.hpp"
#include "refused.hpp"

namespace {

using json = nlohmann::ordered_json;  // labels stay in the order of the logits
using httplib::ContentReader;
using httplib::Request;
using httplib::Response;

constexpr const char* type = "application/json";
// a body that is too large is read to its end, as far as this, so that the answer arrives
constexpr std::size_t read_limit = 64 * body_limit;
constexpr std::size_t path_limit = 512;
const std::regex known_path("/v1/classify|/v1/tenants(/[^/]+)?|/healthz");

void tell(Response& response, int status, const json& body) {
  response.status = status;
  if (status == 503) {
    response.set_header("retry-after", "1");
  }
  response.set_content(body.dump(-1, ' ', false, json::error_handler_t::replace), type);
}

const char* name_of(adexport::Kind kind) {
  switch (kind) {
    case adexport::Kind::bundle:
      return "BundleError";
    case adexport::Kind::adapter:
      return "AdapterError";
    case adexport::Kind::provider:
      return "ProviderError";
    case adexport::Kind::request:
      return "RequestError";
    case adexport::Kind::unknown_adapter:
      return "UnknownAdapterError";
    case adexport::Kind::bank_full:
      return "BankFullError";
    case adexport::Kind::dependency:
      return "DependencyError";
    case adexport::Kind::internal:
      break;
  }
  return "InternalError";
}

int status_of(const adexport::Error& error) {
  switch (error.kind()) {
    case adexport::Kind::bank_full:
      return 503;
    case adexport::Kind::unknown_adapter:
      return 404;
    case adexport::Kind::adapter:
      return error.has("wrong-base") ? 409 : 422;
    case adexport::Kind::request:
      return error.has("run-failed") ? 500 : 422;
    default:
      return 500;
  }
}

void tell(Response& response, int status, const adexport::Error& error) {
  json problems = json::array();
  for (const adexport::Problem& one : error.problems()) {
    problems.push_back({{"code", one.code},
                        {"subject", one.subject},
                        {"got", one.got},
                        {"expected", one.expected},
                        {"cause", one.cause},
                        {"mend", one.mend}});
  }
  tell(response, status,
       {{"error", name_of(error.kind())}, {"message", error.what()}, {"problems", std::move(problems)}});
}

// Tell what a handler throws.
void tell_thrown(const Request&, Response& response, std::exception_ptr thrown) {
  try {
    std::rethrow_exception(std::move(thrown));
  } catch (const Refused& refused) {
    tell(response, refused.status(), refused);
  } catch (const adexport::Error& error) {
    tell(response, status_of(error), error);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "the service failed: %s\n", error.what());
    tell(response, 500, adexport::Error(adexport::Kind::internal, "the service failed", {}));
  }
}

// What the server itself refuses, before any handler: in the form of all others.
std::string told_by_server(int status) {
  switch (status) {
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 413:
      return "a body of more than " + std::to_string(body_limit) + " bytes";
    case 414:
      return "a path that is too long";
    default:
      return "no request that HTTP allows";
  }
}

Refused unserved(const Request& request, int status, const std::string& got) {
  return {status,
          adexport::Kind::request,
          "the request is not served",
          {{"bad-input", request.method + " " + request.path, got, "", "", ""}}};
}

// The body, in whatever pieces it comes. Throws Refused: it is too large, or does not come whole.
std::string read_body(const Request& request, const Response& response, const ContentReader& reader) {
  std::string body;
  std::size_t size = 0;
  const bool whole = reader([&](const char* data, std::size_t length) {
    size += length;
    if (size <= body_limit) {
      body.append(data, length);
    }
    return size <= read_limit;
  });
  if (size > body_limit || response.status == 413) {
    throw unserved(request, 413, told_by_server(413));
  }
  if (!whole) {
    throw unserved(request, 400, "a body that ends early");
  }
  return body;
}

json told(const Answer& answer) {
  json logits = json::object();
  const std::pair<std::string, float>* best = nullptr;
  bool finite = true;
  for (const auto& one : answer.logits) {
    finite = finite && std::isfinite(one.second);
    logits[one.first] = std::isfinite(one.second) ? json(static_cast<double>(one.second)) : json(nullptr);
    best = best != nullptr && best->second >= one.second ? best : &one;
  }
  return {{"tenant", answer.tenant ? json(*answer.tenant) : json(nullptr)},
          {"label", finite && best != nullptr ? json(best->first) : json(nullptr)},
          {"logits", std::move(logits)}};
}

std::string name_in(const Request& request) {
  std::string name = request.matches[1];
  if (!is_name(name)) {
    throw Refused(422, adexport::Kind::adapter, "adapter name refused",
                  {{"bad-name", json(name).dump(-1, ' ', true, json::error_handler_t::replace), "",
                    "1 to 128 of A-Z a-z 0-9 . _ -, the first a letter or a digit", "a name is an id, never a path",
                    "give another name"}});
  }
  return name;
}

}  // namespace

void add_service(httplib::Server& server, adexport::Engine& engine, Batcher& batcher,
                 std::filesystem::path adapters) {
  server.Post("/v1/classify", [&](const Request& request, Response& response, const ContentReader& reader) {
    const std::string body = read_body(request, response, reader);
    if (request.get_header_value("content-type").rfind(type, 0) != 0) {
      throw unserved(request, 422, "a body that is not application/json");
    }
    json rows = json::array();
    for (const Answer& answer : batcher.submit(asked_rows(body, batcher.limits().rows)).get()) {
      rows.push_back(told(answer));
    }
    tell(response, 200, {{"rows", std::move(rows)}});
  });
  server.Get("/v1/tenants", [&](const Request&, Response& response) {
    tell(response, 200, {{"tenants", engine.adapters()}});
  });
  const char* const tenant = "/v1/tenants/([^/]+)";
  server.Put(tenant, [&, adapters = std::move(adapters)](const Request& request, Response& response,
                                                         const ContentReader& reader) {
    read_body(request, response, reader);
    const std::string name = name_in(request);
    const std::filesystem::path path = adapters / (name + ".safetensors");
    if (!std::filesystem::is_regular_file(path)) {
      throw Refused(404, adexport::Kind::unknown_adapter, name + " is not bound",
                    {{"absent", name, "", "an adapter that the operator has put there", "", ""}});
    }
    engine.bind(name, path.string());
    tell(response, 200, {{"bound", name}});
  });
  server.Delete(tenant, [&](const Request& request, Response& response, const ContentReader& reader) {
    read_body(request, response, reader);
    const std::string name = name_in(request);
    engine.unbind(name);
    tell(response, 200, {{"unbound", name}});
  });
  server.Get("/healthz", [&](const Request&, Response& response) {
    const bool alive = batcher.alive();
    tell(response, alive ? 200 : 503,
         {{"status", alive ? "ok" : "ended"},
          {"provider", engine.provider()},
          {"requests", batcher.pending()},
          {"batches", batcher.batches()}});
  });

  server.set_exception_handler(tell_thrown);
  server.set_pre_routing_handler([](const Request& request, Response& response) {
    if (request.path.size() <= path_limit) {  // long ones would go deep into std::regex
      return httplib::Server::HandlerResponse::Unhandled;
    }
    response.status = 414;
    return httplib::Server::HandlerResponse::Handled;
  });
  const httplib::Server::Handler refused_by_server = [](const Request& request, Response& response) {
    if (!response.body.empty()) {
      return;  // told already
    }
    const bool other_method = response.status == 404 && std::regex_match(request.path, known_path);
    const Refused refused = unserved(request, other_method ? 405 : response.status,
                                     told_by_server(other_method ? 405 : response.status));
    tell(response, refused.status(), refused);
  };
  server.set_error_handler(refused_by_server);
  // one request for a connection: what is left of a body that was refused is never read as the next request
  server.set_keep_alive_max_count(1);
  server.set_payload_max_length(read_limit);
}
