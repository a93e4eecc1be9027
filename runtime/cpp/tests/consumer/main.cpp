// Runs a bundle with an adapter for each row: consumer BUNDLE ADAPTER.
#include <adexport/adexport.hpp>
#include <cstdint>
#include <iostream>
#include <vector>

int main(int count, char** arguments) {
  if (count != 3) return 2;
  try {
    auto engine = adexport::Engine::open(arguments[1]);
    const std::vector<std::int64_t> ids{5, 6, 7, 5, 6, 7};
    const auto outputs = engine.run({{"input_ids", ids, {2, 3}}}, {arguments[2], std::nullopt});
    const auto first = outputs.at(0);
    std::cout << adexport::version() << " " << engine.provider() << " " << first.name() << " " << first.size() << "\n";
    return first.size() > 0 && first[0] != first[first.size() / 2] ? 0 : 1;
  } catch (const adexport::Error& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
