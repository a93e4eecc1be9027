// Checks of shapes, which gather all that does not fit.
#pragma once

#include <initializer_list>
#include <string>

#include "call.hpp"

namespace adexport::kernels {

// An axis: its size, and what it is.
struct Axis {
  std::size_t size;
  const char* name;
};

class Shapes {
 public:
  explicit Shapes(const char* where) : where_(where) {}

  // That a tensor has so many axes; whether it does.
  bool axes(const char* name, const View& tensor, std::size_t count);
  // That a tensor has exactly these sizes; nothing if it was left out.
  void sizes(const char* name, const View& tensor, std::initializer_list<Axis> axes);
  void add(const std::string& problem);
  // Throws all that was found.
  void done() const;

 private:
  std::string where_;
  std::string problems_;
};

std::string shape_text(const View& tensor);

}  // namespace adexport::kernels
