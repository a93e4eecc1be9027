#include "shapes.hpp"

namespace adexport::kernels {

std::string shape_text(const View& tensor) {
  std::string text = "[";
  for (std::size_t axis = 0; axis < tensor.axes; ++axis) {
    text += (axis == 0 ? "" : ", ") + (axis < tensor.shape.size() ? std::to_string(tensor.shape[axis]) : "…");
  }
  return text + "]";
}

bool Shapes::axes(const char* name, const View& tensor, std::size_t count) {
  if (tensor.there && tensor.axes == count) return true;
  if (!tensor.there) {
    add(std::string(name) + " is missing");
  } else {
    add(std::string(name) + " is " + shape_text(tensor) + ", expected " + std::to_string(count) + " axes");
  }
  return false;
}

void Shapes::sizes(const char* name, const View& tensor, std::initializer_list<Axis> axes) {
  if (!tensor.there) return;
  bool fits = tensor.axes == axes.size();
  std::string expected;
  std::size_t axis = 0;
  for (const Axis& wanted : axes) {
    fits = fits && tensor.at(axis) == wanted.size;
    expected += (axis == 0 ? "[" : ", ") + std::string(wanted.name) + " = " + std::to_string(wanted.size);
    ++axis;
  }
  if (!fits) add(std::string(name) + " is " + shape_text(tensor) + ", expected " + expected + "]");
}

void Shapes::add(const std::string& problem) {
  problems_ += (problems_.empty() ? ": " : "; ") + problem;
}

void Shapes::done() const {
  if (!problems_.empty()) throw Misfit(where_ + problems_);
}

}  // namespace adexport::kernels
