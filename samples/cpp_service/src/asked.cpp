#include "asked.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "refused.hpp"

using nlohmann::json;

namespace {

std::string shown(const json& value) {
  return value.dump(-1, ' ', true, json::error_handler_t::replace).substr(0, 80);
}

bool is_id(const json& value) {
  if (value.is_number_unsigned()) {
    return value.get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  }
  return value.is_number_integer();
}

class Reader {
 public:
  std::vector<Row> rows(const json& body, std::size_t most) {
    std::vector<Row> rows;
    if (has_keys(body, "body", {"rows"})) {
      const json& asked = body["rows"];
      if (!asked.is_array() || asked.empty() || asked.size() > most) {
        wrong("body.rows", asked, "a list of 1 to " + std::to_string(most) + " rows");
      } else {
        for (std::size_t number = 0; number < asked.size(); ++number) {
          rows.push_back(row(asked[number], "body.rows." + std::to_string(number)));
        }
      }
    }
    if (!problems_.empty()) {
      throw Refused(422, adexport::Kind::request, "the request does not fit", std::move(problems_));
    }
    return rows;
  }

 private:
  Row row(const json& asked, const std::string& where) {
    Row row;
    if (!has_keys(asked, where, {"ids", "tenant"})) {
      return row;
    }
    const json& ids = asked["ids"];
    if (!ids.is_array() || ids.empty() || !std::all_of(ids.begin(), ids.end(), is_id)) {
      wrong(where + ".ids", ids, "a list of token ids, at least one");
    } else {
      row.ids = ids.get<std::vector<std::int64_t>>();
    }
    const json& tenant = asked["tenant"];
    if (tenant.is_string() && tenant.get_ref<const std::string&>().find('\0') == std::string::npos) {
      row.tenant = tenant.get<std::string>();
    } else if (!tenant.is_null()) {
      wrong(where + ".tenant", tenant, "an adapter's name, or null: the base");
    }
    return row;
  }

  bool has_keys(const json& value, const std::string& where, const std::vector<std::string>& keys) {
    const std::size_t before = problems_.size();
    if (!value.is_object()) {
      wrong(where, value, "an object");
      return false;
    }
    for (const std::string& key : keys) {
      if (!value.contains(key)) {
        problems_.push_back({"bad-input", where + "." + key, "nothing", "a value", "", ""});
      }
    }
    for (const auto& [key, held] : value.items()) {
      if (std::find(keys.begin(), keys.end(), key) == keys.end()) {
        wrong(where + "." + key, held, "no such key");
      }
    }
    return problems_.size() == before;
  }

  void wrong(const std::string& where, const json& got, const std::string& expected) {
    problems_.push_back({"bad-input", where, shown(got), expected, "", ""});
  }

  std::vector<adexport::Problem> problems_;
};

}  // namespace

std::vector<Row> asked_rows(const std::string& body, std::size_t most) {
  json parsed;
  try {
    parsed = json::parse(body);
  } catch (const json::exception& error) {
    throw Refused(422, adexport::Kind::request, "the request does not fit",
                  {{"bad-input", "body", error.what(), "JSON", "", ""}});
  }
  return Reader().rows(parsed, most);
}

bool is_name(const std::string& text) {
  const auto letter = [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
  };
  const auto allowed = [&](char c) { return letter(c) || c == '.' || c == '_' || c == '-'; };
  return !text.empty() && text.size() <= 128 && letter(text[0]) && std::all_of(text.begin(), text.end(), allowed);
}
